"""The training loop's body, once for every transform: two compiled programs.

The ordinary step holds no threshold search and no `cond` around the optimizer; the step with a
mask update is a program of its own, run when the transform's static schedule says so.

Where a transform only sets entries to zero (`Spec.projects`), what the optimizer makes is projected
in the pass that writes it, and the loss reads the weights as they lie: a masked copy for the
forward pass would be a buffer of their size, since XLA fuses nothing into an operand of a product.
"""

import functools
import weakref
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.optimizers import moments
from jaxsparse.training import gradients


class TrainState(NamedTuple):
  """What a step carries.

  Attributes:
    params: latent parameters.
    state: the transform's state.
    opt_state: the optimizer's.
    count: steps done, an int on the host (or an int32 array inside `lax.scan`).
  """

  params: Any
  state: Any
  opt_state: Any
  count: Any

  @classmethod
  def create(cls, transform: transforms.Transform, tx: optax.GradientTransformation, params: Any,
             *, shardings: 'TrainState | None' = None, **extra) -> 'TrainState':
    """Initializes transform and optimizer on dense weights.

    The weights are copied, as a step donates its buffers.

    Args:
      transform: any transform.
      tx: any optax optimizer.
      params: effective weights in the model's container, or a traceable function `() -> weights`:
        with `shardings` it is compiled, so that no device ever holds a whole weight.
      shardings: what `train_shardings` returns; None leaves everything where it is.
      **extra: what `transform.init` takes besides (`stats`, `grads`, `axes`).

    Raises:
      TypeError: a leaf of the params is no array.
    """
    def build(weights):
      weights = weights() if is_recipe(weights) else weights
      _check_arrays(weights)
      latents, state = transform.init(weights, **extra)
      latents, state = jax.tree.map(jnp.copy, (latents, state))
      return latents, state, tx.init(latents)

    if shardings is None:
      return cls(*build(params), 0)
    given = () if is_recipe(params) else (params,)
    placed = jax.jit(lambda *weights: build(*weights or (params,)), out_shardings=shardings[:3])
    return cls(*placed(*given), 0)


def _check_arrays(params):
  for leaf in names.named_leaves(params)[0]:
    if not isinstance(leaf.value, (int, float, complex)) and not hasattr(leaf.value, 'dtype'):
      raise TypeError(f'{leaf.name}: found {leaf.value!r}, expected an array; pass the arrays of '
                      'the model alone, as equinox.filter(model, equinox.is_inexact_array) does.')


def is_recipe(params: Any) -> bool:
  """Whether `params` is a function that makes weights; a module that can be called is weights."""
  return callable(params) and jax.tree_util.all_leaves((params,))


def train_step(loss_fn: Callable, tx: optax.GradientTransformation,
               transform: transforms.Transform, *, has_aux: bool = False,
               dense: bool = True, shardings: TrainState | None = None) -> Callable:
  """One optimization step, jitted, with donated buffers.

  Args:
    loss_fn: `(effective params, *args) -> loss`, or `(loss, aux)` with `has_aux`. Mutable
      collections (batch statistics, NNX's rest) and keys go in as args and come back in aux.
    tx: the optimizer of the latents; it is offered `masks=`, as `masked_decay` and its like need.
    transform: any transform.
    has_aux: whether the loss returns aux.
    dense: as in `value_and_grad`; a step with a mask update of `packed_blocks` is always dense.
    shardings: what `train_shardings` returns: the state stays sharded so, loss and aux are
      replicated. None leaves it to the compiler, which replicates masks.

  Returns:
    `step(train_state, *args) -> (train_state, loss, aux)`; aux is None without `has_aux`. The
    state given in is donated: use the one returned. Inside `jit` or `scan`, where the count is an
    array, the step is one program that decides with `lax.cond`.

  Example:
    >>> import jaxsparse as jsp
    >>> transform, tx = jsp.nm(1, 2), optax.sgd(0.5)
    >>> ts = jsp.TrainState.create(transform, tx, {'kernel': jnp.array([[1.0], [2.0]])})
    >>> step = train_step(lambda p: p['kernel'].sum(), tx, transform)
    >>> ts, loss, _ = step(ts)
    >>> ts.params['kernel'].tolist(), ts.count
    ([[0.0], [1.5]], 1)
  """
  projects = transform.spec.projects
  differentiate = functools.partial(
      gradients.value_and_grad, loss_fn, transform, has_aux=has_aux)
  kept = differentiate(projected=projects, dense=dense)
  free = differentiate(dense=dense)
  # Growth ranks what formats leave out: only a step that may grow pays for its gradient.
  whole = differentiate(dense=dense or transform.spec.dense_updates)
  tx = optax.with_extra_args_support(tx)

  def body(refresh, params, state, opt_state, *args):
    # Inside another program nothing says where the params come from.
    grad_fn = free if refresh is None else kept
    if refresh is not False and transform.spec.dense_updates:
      grad_fn = whole
    value, grads, effective_grads = grad_fn(params, state, *args)
    loss, aux = value if has_aux else (value, None)
    updates, opt_state = tx.update(grads, opt_state, params, masks=masks.pruned_masks(state))
    params = optax.apply_updates(params, updates)
    new_state = transform.update(params, state, grads=effective_grads, refresh=refresh)
    if refresh is not False and transform.spec.regrows:
      params, opt_state = moments.realign(tx, params, opt_state, state, new_state)
    if projects:
      params = transform.apply(params, new_state)
    return params, new_state, opt_state, loss, aux

  compiled = jax.jit(body, static_argnums=0, donate_argnums=(1, 2, 3),
                     out_shardings=_outputs(shardings))
  project = jax.jit(transform.apply, donate_argnums=0,
                    out_shardings=None if shardings is None else shardings.params)
  made: list[weakref.ref] = []

  def own(params):
    """Whether this step made them; others may hold something where a mask says zero."""
    leaves = jax.tree.leaves(params)
    return len(leaves) == len(made) and all(x is ref() for x, ref in zip(leaves, made))

  def step(train_state: TrainState, *args):
    params, state, opt_state, count = train_state
    if not isinstance(count, int):
      params, state, opt_state, loss, aux = body(None, params, state, opt_state, *args)
      return TrainState(params, state, opt_state, count + 1), loss, aux
    if projects and not own(params):
      params = project(params, state)
    refresh = bool(transform.spec.due(count))
    params, state, opt_state, loss, aux = compiled(refresh, params, state, opt_state, *args)
    if projects:
      made[:] = map(weakref.ref, jax.tree.leaves(params))
    return TrainState(params, state, opt_state, count + 1), loss, aux

  # For who wants to look at the programs: `step.compiled.lower(refresh, *args)`.
  step.compiled = compiled
  return step


def _outputs(shardings):
  """Shardings of a step's five outputs, as `jax.jit` takes them; None says nothing."""
  if shardings is None:
    return None
  mesh = jax.tree.leaves(shardings)[0].mesh
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  return (*shardings[:3], everywhere, everywhere)
