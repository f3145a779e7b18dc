"""Observers: statistics of what is multiplied with a weight.

Rows are written X `[*batch, rows, R]`: R is the weight's reduction axes, flattened in the weight's
own order, so that statistics match `Layout.to_matrix`; a convolution's rows are its patches.
All are accumulated in float32. A new observer is one function `(contraction, x) -> statistic`.
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.numerics import scales
from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import hooks


class Observer(NamedTuple):
  """A statistic of the inputs that meet a weight.

  Attributes:
    observe: `(contraction, x) -> statistic`, a tree of arrays, or None where there is none.
    merge: associative `(statistic, statistic) -> statistic`, across uses, steps and batches.
    finish: applied once, at the end.

  Example:
    >>> import jaxsparse as jsp
    >>> rows = Observer(lambda contraction, x: jnp.float32(x.shape[0]))
    >>> fn = lambda params, x: x @ params['w']
    >>> stats = jsp.calibrate(fn, {'w': jnp.ones((4, 3))}, [jnp.ones((5, 4))] * 2, rows)
    >>> float(stats['w'])
    10.0
  """

  observe: Callable[[contractions.Contraction, jax.Array], Any]
  merge: Callable[[Any, Any], Any] = hooks.add
  finish: Callable[[Any], Any] = lambda statistic: statistic


class Range(NamedTuple):
  """The smallest and largest value met: float32 `[*batch]` each."""

  low: jax.Array
  high: jax.Array


def hook_of(observer: Observer) -> hooks.Hook:
  """The hook that computes as usual and returns the observer's statistic."""
  return lambda contraction, x, w: (contraction.compute(x, w), observer.observe(contraction, x))


def rows_of(contraction: contractions.Contraction, x: jax.Array) -> jax.Array | None:
  """The rows X `[*batch, rows, R]` of a dot or convolution, in float32.

  Args:
    contraction: a use of a weight.
    x: its other operand.

  Returns:
    X, with the groups of a grouped convolution after the batch axes; one entry along an axis of
    which the program picked one. None for other kinds, and where a slice or reshape left no whole
    batch and reduction axes to speak of.
  """
  rule = {'dot': _dot_rows, 'conv': _patches}.get(contraction.kind)
  source, axes = contraction.origin, contraction.axes
  if rule is None or axes is None:
    return None
  if {*source.cut} - {*axes.output} - {n for n, _ in source.picked}:
    return None
  return rule(contraction, x.astype(jnp.float32))


def _of_rows(contraction, x, statistic):
  """`statistic` of the rows X, in the place of their layer; None where there are no rows."""
  rows = rows_of(contraction, x)
  return None if rows is None else _in_stack(contraction, statistic(rows))


def _gram(contraction, x):
  if contraction.kind == 'ragged_dot':
    return _ragged(contraction, x, lambda rows: rows, 2)
  return _of_rows(contraction, x, lambda rows: jnp.einsum(
      '...nr,...ns->...rs', rows, rows, precision='highest'))


def _square_sums(contraction, x):
  if contraction.kind == 'ragged_dot':
    return _ragged(contraction, x, jnp.square, 1)
  return _of_rows(contraction, x, lambda rows: jnp.square(rows).sum(-2))


def _peaks(contraction, x):
  return _of_rows(contraction, x, lambda rows: scales.or_nan(
      jnp.abs(rows).max(-2, initial=0.0), rows, -2))


def _sums(contraction, x):
  return _of_rows(contraction, x, lambda rows: (
      rows.sum(-2), jnp.full(rows.shape[:-2] + (1,), float(rows.shape[-2]))))


def _range(contraction, x):
  if contraction.kind == 'gather':
    return None
  batch = _batch_shape(contraction) if contraction.axes is not None else ()
  rows = rows_of(contraction, x) if batch and contraction.kind == 'dot' else None
  # Without a batch axis the tensor itself will do: a convolution's padding is not an input.
  values, axes = (x.astype(jnp.float32), None) if rows is None else (rows, (-2, -1))
  low = scales.or_nan(values.min(axes, initial=jnp.inf), values, axes)
  high = values.max(axes, initial=-jnp.inf)
  return Range(jnp.broadcast_to(low, batch), jnp.broadcast_to(high, batch))


def _wider(a, b):
  return Range(jnp.minimum(a.low, b.low), jnp.maximum(a.high, b.high))


# X^T X: float32 [*batch, R, R]; [*batch, group, R, R] for a grouped convolution.
gram = Observer(_gram)

# The l2 norm of each input feature over all rows: float32 [*batch, R] (groups as for gram).
input_norm = Observer(_square_sums, finish=jnp.sqrt)

# The largest magnitude of each input feature: float32 [*batch, R] (groups as for gram).
input_max = Observer(_peaks, merge=lambda a, b: jax.tree.map(jnp.maximum, a, b))

# The mean of each input feature over all rows: float32 [*batch, R] (groups as for gram).
input_mean = Observer(_sums, finish=lambda sums: sums[0] / jnp.maximum(sums[1], 1.0))

# The smallest and largest input, as `Range`. The underscore spares Python's own `range`.
range_ = Observer(_range, merge=_wider)


def _batch_axes(contraction):
  """Batch axes that the weight has here; of an inserted axis there is no trace."""
  scanned = {n for n, _ in contraction.origin.scanned}
  roles = {*contraction.axes.reduction, *contraction.axes.output}
  return [n for n in range(len(contraction.shape)) if n not in roles and n not in scanned]


def _batch_shape(contraction):
  return tuple(contraction.shape[n] for n in _batch_axes(contraction))


def _in_stack(contraction, statistic):
  """The statistic of a layer that was picked from a stack, with zeros for the other layers."""
  places = {_batch_axes(contraction).index(n): (index, contraction.shape[n] - 1 - index)
            for n, index in contraction.origin.picked}
  return jax.tree.map(
      lambda a: jnp.pad(a, [places.get(axis, (0, 0)) for axis in range(a.ndim)]), statistic)


def _dot_rows(contraction, x):
  groups, shape = contraction.origin.groups, contraction.shape
  contracted, batched = contraction.params['dimension_numbers']
  own, other = contraction.operand, contraction.input
  # Each axis of x, as the natural axes of the weight that it meets.
  meets = {a: ('batch', groups[w], w) for w, a in zip(batched[own], batched[other]) if groups[w]}
  meets |= {a: ('reduced', groups[w], w) for w, a in zip(contracted[own], contracted[other])}
  parts, sizes = [], []
  for a, size in enumerate(x.shape):
    role, group, w = meets.get(a, ('free', (), 0))
    natural = group if len(group) > 1 else (group or (-1,))
    parts += [(role, n, w) for n in natural]
    sizes += [shape[n] for n in group] if len(group) > 1 else [size]
  of = lambda role: sorted((i for i, p in enumerate(parts) if p[0] == role),
                           key=lambda i: (parts[i][1], parts[i][2], i))
  batch, free, reduced = of('batch'), of('free'), of('reduced')
  rows = x.reshape(sizes).transpose([*batch, *free, *reduced])
  count = lambda places: math.prod(sizes[i] for i in places)
  rows = rows.reshape(*(sizes[i] for i in batch), count(free), count(reduced))
  return _spread(contraction, rows, tuple(parts[i][1] for i in batch))


def _spread(contraction, rows, present):
  """Repeats rows along the batch axes that `x` does not have: experts that share one input."""
  wanted, picked = _batch_axes(contraction), {n for n, _ in contraction.origin.picked}
  for place, n in enumerate(wanted):
    if n not in present:
      rows = jnp.expand_dims(rows, place)
  lead = tuple(1 if n in picked else contraction.shape[n] for n in wanted)
  return jnp.broadcast_to(rows, (*lead, *rows.shape[len(lead):]))


def _patches(contraction, x):
  params, groups = contraction.params, contraction.origin.groups
  spec = params['dimension_numbers']
  if params['batch_group_count'] != 1 or any(len(groups[a]) > 1 for a in spec.rhs_spec[1:]):
    return None
  spatial = [contraction.operand_shape[a] for a in spec.rhs_spec[2:]]
  # Channels last; each output position holds its patch in (channel, *spatial) order.
  last = (0, x.ndim - 1, *range(1, x.ndim - 1))
  names = spec._replace(out_spec=last)
  patches = jax.lax.conv_general_dilated_patches(
      x, spatial, params['window_strides'], params['padding'], params['lhs_dilation'],
      params['rhs_dilation'], dimension_numbers=names,
      precision=jax.lax.Precision.HIGHEST)
  features = params['feature_group_count']
  channels = x.shape[spec.lhs_spec[1]] // features
  rows = patches.reshape(-1, features, channels, *spatial)
  order = sorted(range(1, len(spec.rhs_spec)), key=lambda i: (groups[spec.rhs_spec[i]], i))
  rows = rows.transpose(1, 0, *(i + 1 for i in order))
  rows = rows.reshape(features, rows.shape[1], channels * math.prod(spatial))
  picked = {n for n, _ in contraction.origin.picked}
  batch = [contraction.shape[n] for n in _batch_axes(contraction) if n not in picked]
  if math.prod(batch) == 1 or features % math.prod(batch):
    return _spread(contraction, rows if features > 1 else rows[0], ())
  # A vmapped convolution: jax turned the batch into the leading part of the groups.
  rows = rows.reshape(*batch, features // math.prod(batch), *rows.shape[1:])
  return rows[(slice(None),) * len(batch) + (0,)] if features == math.prod(batch) else rows


def _ragged(contraction, x, of_rows, rank):
  """X^T X or column sums of each group of rows, `[group, R, R]` or `[group, R]`."""
  numbers = contraction.params['ragged_dot_dimension_numbers']
  plain = (numbers.dot_dimension_numbers == (((1,), (1,)), ((), ()))
           and tuple(numbers.lhs_ragged_dimensions) == (0,))
  if not plain or contraction.axes is None or contraction.origin.cut:
    return None
  rows, sizes = x.astype(jnp.float32), contraction.operands[2]
  by_row = jax.lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), (0,), ())
  right = of_rows(rows) if rank == 2 else jnp.ones((rows.shape[0], 1), jnp.float32)
  left = of_rows(rows)
  out = jax.lax.ragged_dot_general(left, right, sizes, by_row, precision='highest')
  return out if rank == 2 else out[..., 0]
