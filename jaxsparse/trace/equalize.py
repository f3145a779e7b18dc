"""Cross-layer equalization: neighbouring layers share the spread of their channels.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721), section 4.1: `f(s x) = s f(x)` for positive s and f a ReLU, so that a channel's
outgoing weights can be divided, and its weights in the next layer multiplied, by any s_i > 0. With
r1, r2 the largest magnitudes of channel i in the first weight and in the second, equations 8 to 11:

  `s_i = r1_i / sqrt(r1_i r2_i)`, after which both are `sqrt(r1_i r2_i)`.

Chains of layers are gone through, on the host, until nothing moves.
"""

from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.trace import dataflow
from jaxsparse.trace import dead
from jaxsparse.trace import jaxprs


class _Pair(NamedTuple):
  """A layer, and the weight that reads its channels: along `axis`, over and over in turn."""

  first: dataflow.Layer
  second: str
  axis: int


def equalize(apply_fn: Callable, params: Any, *args, weights: str | None = None,
             sweeps: int = 20, **kwargs) -> Any:
  """The same model with the ranges of neighbouring layers' channels evened out.

  Neighbours are found in the traced program: a product with a weight, biases, a ReLU (or nothing),
  pooling by windows, and the product that reads the result and nothing else does. Do it after
  `fold_batch_norm` and before quantizing by tensor, which it helps most.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    params: effective weights; formats are densified.
    *args: example inputs.
    weights: a regular expression for the names of the first weights of the pairs; None: all.
    sweeps: times to go through the pairs, at most.
    **kwargs: as args.

  Returns:
    Params of the same structure, shapes and dtypes, for the same model. A channel that is zero on
    either side stays as it is.

  Raises:
    ValueError: the program has no such pair; `sweeps` is no positive integer.

  Example:
    >>> import jax
    >>> fn = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
    >>> params = {'a': jnp.array([[8.0, 1.0]]), 'b': jnp.array([[2.0], [4.0]])}
    >>> new = equalize(fn, params, jnp.ones((1, 1)))
    >>> new['a'].tolist(), new['b'].ravel().tolist()
    ([[4.0, 2.0]], [4.0, 2.0])
  """
  if isinstance(sweeps, bool) or not isinstance(sweeps, int) or sweeps < 1:
    raise ValueError(f'sweeps must be a positive integer, got {sweeps!r}.')
  params = formats.densify(params)
  flow = dataflow.Flow(jaxprs.trace(apply_fn, params, args, kwargs))
  pattern = None if weights is None else names.compile_pattern(weights)
  pairs = [p for p in _pairs(flow) if pattern is None or pattern.fullmatch(p.first.weight)]
  if not pairs:
    raise ValueError('no weight' + ('' if weights is None else f' that {weights!r} matches')
                     + ' is followed by a ReLU and a product that alone reads it.')
  leaves, rebuild = names.named_leaves(params)
  values = {leaf.name: leaf.value for leaf in leaves}
  for _ in range(sweeps):
    if max(_even_out(pair, values) for pair in pairs) < 1e-4:
      break
  return rebuild([values[leaf.name] for leaf in leaves])


def _pairs(flow) -> list[_Pair]:
  """The pairs of a program, in its order."""
  found = []
  for step in flow.coupling.steps:
    inputs = [v for v in step.ins if flow.is_live(v)]
    second = flow.product_of(step)
    if second is None or len(inputs) != 1:
      continue
    value = _before(flow, inputs[0])
    first = None if value is None else flow.behind(value)[0]
    if first is None or first.axis is None or first.weight == second:
      continue
    axis = flow.axis_along(second, first)
    if axis is not None:
      found.append(_Pair(first, second, axis))
  return found


def _before(flow, value):
  """What was multiplied before ReLUs, pooling and changes of layout; None where others read it."""
  while (step := flow.made.get(value)) is not None and flow.only_use(value) is not None:
    name = step.eqn.primitive.name
    moved = name in dead.LAYOUT and name != 'convert_element_type' or dataflow.keeps_values(step)
    if moved or name in ('reduce_window_max', 'reduce_window_sum') or _is_relu(step):
      value = step.ins[0]
    elif name in ('mul', 'div') and jaxprs.is_literal(step.ins[1]) and step.ins[1].val > 0:
      value = step.ins[0]   # the mean of a pool
    else:
      return value
  return value if flow.only_use(value) is not None else None


def _is_relu(step) -> bool:
  if step.inside:
    return len(step.inside) == 1 and _is_relu(step.inside[0]) and len(step.ins) == 1
  return (step.eqn.primitive.name == 'max' and jaxprs.is_literal(step.ins[1])
          and step.ins[1].val == 0)


def _even_out(pair, values) -> float:
  """Evens out one pair in place; returns the largest change, as a logarithm."""
  first, second = (np.asarray(values[n], np.float32) for n in (pair.first.weight, pair.second))
  channels = first.shape[pair.first.axis]
  rest = lambda w, axis: tuple(a for a in range(w.ndim) if a != axis)
  r1 = np.abs(first).max(rest(first, pair.first.axis), initial=0.0)
  if not channels:
    return 0.0
  r2 = np.abs(second).max(rest(second, pair.axis), initial=0.0).reshape(-1, channels).max(0)
  usable = (r1 > 0) & (r2 > 0) & np.isfinite(r1) & np.isfinite(r2)
  scale = np.sqrt(np.where(usable, r1, 1)) / np.sqrt(np.where(usable, r2, 1))
  scale = np.where(usable, scale, 1)

  def scaled(name, axis, factor):
    w = values[name]
    whole = np.tile(factor, w.shape[axis] // channels)
    along = whole.reshape([-1 if a == axis else 1 for a in range(w.ndim)])
    values[name] = jnp.asarray(np.asarray(w, np.float32) * along, w.dtype)

  scaled(pair.first.weight, pair.first.axis, 1 / scale)
  scaled(pair.second, pair.axis, scale)
  for name in pair.first.added:
    bias = values[name]
    values[name] = jnp.asarray(np.asarray(bias, np.float32) / scale.reshape(bias.shape), bias.dtype)
  return float(np.abs(np.log(scale)).max(initial=0.0))
