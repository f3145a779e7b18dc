"""Scores of weights: functions `(w, *, grads, stats, seed, name) -> scores`; larger is kept.

`w` is a matrix `[*batch, R, O]`; `grads` and `stats` are of the same weight, or None; `seed` is a
PRNG key of the transform's seed, the weight's name and, after init, the count; `name` is the
weight's. A criterion names the keywords it wants. To add one, write the function and pass it to
`prune`, which also takes those of this file by name: `prune('snip', schedule=0.9)`.

Scores that a loss defines are products of a weight with what comes in as `grads`, so that it is
checked, named and reshaped like every gradient: `init(params, grads=...)`. `hessian_gradient`,
`flow_gradient` and `rms_gradient` make what GraSP, SynFlow and Fisher want there.
"""

from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp


def magnitude(w: jax.Array) -> jax.Array:
  """`|w|` (Han et al., arXiv:1506.02626).

  Example:
    >>> magnitude(jnp.array([[-2.0]])).item()
    2.0
  """
  return jnp.abs(w.astype(jnp.float32))


def random(w: jax.Array, *, seed) -> jax.Array:
  """Uniform in `[0, 1)`, from the weight's name and the count: the baseline of all others.

  Example:
    >>> random(jnp.ones((1, 2)), seed=jax.random.key(0)).shape
    (1, 2)
  """
  return jax.random.uniform(seed, w.shape)


def _product(criterion: str, w, grads):
  if grads is None:
    raise ValueError(f'{criterion} needs gradients; expected grads=, found None.')
  return w.astype(jnp.float32) * grads.astype(jnp.float32)


def saliency(w: jax.Array, *, grads) -> jax.Array:
  """`|w dL/dw|`, the first-order change of the loss (Molchanov et al., arXiv:1611.06440).

  Raises:
    ValueError: no gradients were given: `init(params, grads=...)`, `update(..., grads=...)`.

  Example:
    >>> saliency(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    6.0
  """
  return jnp.abs(_product('saliency', w, grads))


def snip(w: jax.Array, *, grads) -> jax.Array:
  """`|w dL/dw|` of untrained weights (Lee et al., "SNIP", arXiv:1810.02340, equation 6).

  Saliency, once, before training, ranked over all weights together:
  `prune('snip', schedule=0.9, distribution=pooled).init(params, grads=grads)`, where `grads` is
  the gradient over one or more batches. The paper's division by the sum over the network does not
  change the ranking.

  Raises:
    ValueError: no gradients were given.

  Example:
    >>> snip(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    6.0
  """
  return jnp.abs(_product('snip', w, grads))


def grasp(w: jax.Array, *, grads) -> jax.Array:
  """`w (H g)`: what removing `w` takes from the gradient's norm, sign included.

  Wang et al., "Picking Winning Tickets Before Training by Preserving Gradient Flow"
  (arXiv:2002.07376), equation 8; the paper's score is `-w (H g)`, whose lowest are kept.
  Pass `grads=hessian_gradient(loss_fn, params, *batch)`.

  Raises:
    ValueError: no gradients were given.

  Example:
    >>> grasp(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    -6.0
  """
  return _product('grasp', w, grads)


def synflow(w: jax.Array, *, grads) -> jax.Array:
  """`|w dR/d|w||`, the synaptic flow through a weight; no data.

  Tanaka et al., "Pruning neural networks without any data by iteratively conserving synaptic
  flow" (arXiv:2006.05467), equation 2. Pass `grads=flow_gradient(apply_fn, effective, inputs)`,
  anew at each round of `iterative(sparsity, rounds=100, every=1)` with `distribution=pooled`,
  which are the densities of the paper's algorithm 1.

  Raises:
    ValueError: no gradients were given.

  Example:
    >>> synflow(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    6.0
  """
  return jnp.abs(_product('synflow', w, grads))


def fisher(w: jax.Array, *, grads) -> jax.Array:
  """`w^2 E[g^2] / 2`: the loss's second-order change with the Fisher diagonal for its curvature.

  Le Cun et al., "Optimal Brain Damage" (1990), equation 5, with the curvature of Theis et al.,
  "Faster gaze prediction with dense networks and Fisher pruning" (arXiv:1801.05787). Pass the root
  mean square of gradients, `grads=rms_gradient(loss_fn, params, batches)`, or the square root of
  Adam's second moment; a single gradient is a crude estimate of it.

  Raises:
    ValueError: no gradients were given.

  Example:
    >>> fisher(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    18.0
  """
  return _product('fisher', w, grads) ** 2 / 2


def movement(w: jax.Array, *, grads) -> jax.Array:
  """`-w dL/dw`: whether descent moves a weight away from zero, at one step.

  Sanh et al., "Movement Pruning" (arXiv:2005.07683), equation 4 before the sum over steps; the
  transform `movement` sums it.

  Raises:
    ValueError: no gradients were given.

  Example:
    >>> movement(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    6.0
  """
  return -_product('movement', w, grads)


# What a spelled form may say, and the kind of gradients each wants: a function below.
KNOWN = {f.__name__: f for f in (
    magnitude, random, saliency, snip, grasp, synflow, fisher, movement)}
GRADIENTS = {
    saliency: 'mean_gradient', snip: 'mean_gradient', movement: 'mean_gradient',
    grasp: 'hessian_gradient', synflow: 'flow_gradient', fisher: 'rms_gradient'}


def as_criterion(value: Any) -> Callable:
  """The criterion of that name, or a function as it is.

  Raises:
    ValueError: neither; lists the names.

  Example:
    >>> as_criterion('magnitude') is magnitude
    True
  """
  if isinstance(value, str) and value in KNOWN:
    return KNOWN[value]
  if isinstance(value, str) or not callable(value):
    raise ValueError(f'criterion must be a function (w, *, grads, stats) -> scores or one of '
                     f'{", ".join(KNOWN)}; got {value!r}.')
  return value


def mean_gradient(loss_fn: Callable, params: Any, batches: Iterable) -> Any:
  """`E[g]` over batches, for `saliency`, `snip` and `movement`.

  Args:
    loss_fn: `(params, *batch) -> loss`.
    params: floating arrays.
    batches: tuples of a loss's further arguments, at least one.

  Returns:
    A tree like `params`, float32.

  Raises:
    ValueError: there are no batches.

  Example:
    >>> mean_gradient(lambda p, x: p['w'] * x, {'w': 1.0}, [(1.0,), (7.0,)])['w'].item()
    4.0
  """
  return _mean('mean_gradient', loss_fn, params, batches, lambda g: g)


def hessian_gradient(loss_fn: Callable, params: Any, *args) -> Any:
  """`H g` of a loss at `params`, for `grasp`: the derivative of the gradient along itself.

  Args:
    loss_fn: `(params, *args) -> loss`.
    params: floating arrays.
    *args: one batch.

  Returns:
    A tree like `params`.

  Example:
    >>> hessian_gradient(lambda p: 2 * p['w'] ** 2, {'w': 3.0})['w'].item()   # H = 4, g = 12
    48.0
  """
  slope = lambda p: jax.grad(loss_fn)(p, *args)
  return jax.jvp(slope, (params,), (slope(params),))[1]


def flow_gradient(apply_fn: Callable, params: Any, *inputs) -> Any:
  """`dR/d|w|` for `synflow`: `R` sums the outputs of the network of `|w|` on inputs of ones.

  Args:
    apply_fn: `(params, *inputs) -> output`.
    params: floating arrays; those of the current round, pruned weights zero.
    *inputs: arrays whose shape counts; ones take their place.

  Returns:
    A tree like `params`.

  Example:
    >>> flow_gradient(lambda p, x: x @ p['w'], {'w': -jnp.ones((2, 1))}, jnp.zeros((3, 2)))
    {'w': Array([[3.],
           [3.]], dtype=float32)}
  """
  ones = jax.tree.map(jnp.ones_like, inputs)
  return jax.grad(lambda p: apply_fn(p, *ones).sum())(jax.tree.map(jnp.abs, params))


def rms_gradient(loss_fn: Callable, params: Any, batches: Iterable) -> Any:
  """`sqrt(E[g^2])` over batches, for `fisher`; a batch of one example gives the Fisher diagonal.

  Args:
    loss_fn: `(params, *batch) -> loss`.
    params: floating arrays.
    batches: tuples of a loss's further arguments, at least one.

  Returns:
    A tree like `params`, float32.

  Raises:
    ValueError: there are no batches.

  Example:
    >>> rms_gradient(lambda p, x: p['w'] * x, {'w': 1.0}, [(1.0,), (7.0,)])['w'].item()
    5.0
  """
  return jax.tree.map(jnp.sqrt, _mean('rms_gradient', loss_fn, params, batches, jnp.square))


def _mean(word, loss_fn, params, batches, of):
  slope = jax.jit(jax.grad(loss_fn))
  total, count = None, 0
  for batch in batches:
    found = jax.tree.map(lambda g: of(g.astype(jnp.float32)), slope(params, *batch))
    total = found if total is None else jax.tree.map(jnp.add, total, found)
    count += 1
  if not count:
    raise ValueError(f'{word} needs at least one batch, got none.')
  return jax.tree.map(lambda x: x / count, total)
