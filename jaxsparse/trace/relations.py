"""What each primitive does to axes: which stay one axis, which are summed, merged or left alone.

An axis is `(operand, axis)`. Nothing here looks at values or remembers anything.
"""

import math
from typing import Any, NamedTuple

import numpy as np

FREE = ()  # an axis of the result that may be made at any size


class Merge(NamedTuple):
  """Axes laid out as one: `whole` is one `(side, axis)`, `parts` are several, slowest first.

  A side is 'in' for the first operand and 'out' for the result.
  """

  whole: tuple[str, int]
  parts: tuple[tuple[str, int], ...]


class Relation(NamedTuple):
  """The axes of one equation with one result.

  Attributes:
    out: for each axis of the result the operands' axes it is; `FREE`; or None, if it is neither.
    sums: axes contracted with each other: every dropped term must be zero.
    merges: axes split or merged by a reshape.
  """

  out: tuple
  sums: tuple[tuple[tuple[int, int], ...], ...] = ()
  merges: tuple[Merge, ...] = ()


ELEMENTWISE = frozenset({
    'abs', 'acos', 'acosh', 'add', 'and', 'asin', 'asinh', 'atan', 'atan2', 'atanh', 'cbrt',
    'ceil', 'clamp', 'convert_element_type', 'copy', 'copy_p', 'cos', 'cosh', 'div', 'eq',
    'erf', 'erf_inv', 'erfc', 'exp', 'exp2', 'expm1', 'floor', 'ge', 'gt', 'integer_pow',
    'is_finite', 'le', 'log', 'log1p', 'logistic', 'lt', 'max', 'min', 'mul', 'ne', 'neg',
    'nextafter', 'not', 'or', 'pow', 'reduce_precision', 'rem', 'round', 'rsqrt', 'select_n',
    'sign', 'sin', 'sinh', 'sqrt', 'square', 'stop_gradient', 'sub', 'tan', 'tanh', 'xor',
    'add_any', 'name'})
REDUCTIONS = frozenset({'reduce_sum', 'reduce_max', 'reduce_min', 'reduce_and', 'reduce_or',
                        'reduce_prod', 'argmax', 'argmin'})
WINDOWS = frozenset({'reduce_window', 'reduce_window_sum', 'reduce_window_max',
                     'reduce_window_min'})
# A zero slice of an operand is a zero slice of the result: of any operand, for products.
KEEPS_ZERO = frozenset({
    'transpose', 'squeeze', 'expand_dims', 'broadcast_in_dim', 'reshape', 'slice', 'dynamic_slice',
    'rev', 'gather', 'reduce_sum', 'reduce_max', 'reduce_min', 'reduce_window_sum',
    'reduce_window_max', 'reduce_window_min', 'dot_general', 'conv_general_dilated'})


def relation(eqn: Any, shapes: list[tuple], out: tuple) -> Relation | None:
  """How the axes of an equation's result come from its operands; None when that is not known.

  Args:
    eqn: equation of a jaxpr, with one result.
    shapes: of its operands.
    out: shape of its result.
  """
  name = eqn.primitive.name
  if name in ELEMENTWISE:
    return _elementwise(shapes, out)
  rule = _RULES.get(name)
  if name in REDUCTIONS:
    rule = _reduce
  elif name in WINDOWS:
    rule = _window
  return rule(eqn.params, shapes, out, name) if rule else None


def _elementwise(shapes, out):
  return Relation(tuple(
      tuple((i, a) for i, shape in enumerate(shapes) if len(shape) == len(out) and shape[a] == size)
      for a, size in enumerate(out)))


def _transpose(params, shapes, out, name):
  return Relation(tuple(((0, a),) for a in params['permutation']))


def _squeeze(params, shapes, out, name):
  gone = {a % len(shapes[0]) for a in params['dimensions']}
  return Relation(tuple(((0, a),) for a in range(len(shapes[0])) if a not in gone))


def _broadcast_in_dim(params, shapes, out, name):
  places = {place: a for a, place in enumerate(params['broadcast_dimensions'])}
  return Relation(tuple(
      ((0, places[a]),) if a in places and shapes[0][places[a]] == size else FREE
      for a, size in enumerate(out)))


def _iota(params, shapes, out, name):
  return Relation(tuple(None if a == params['dimension'] else FREE for a in range(len(out))))


def _whole(params, shapes, out, name):
  del params, name
  return Relation(tuple(((0, a),) if shapes[0][a] == size else None for a, size in enumerate(out)))


def _slice(params, shapes, out, name):
  strides = params['strides'] or (1,) * len(out)
  return Relation(tuple(((0, a),) if shapes[0][a] == size and strides[a] == 1 else None
                        for a, size in enumerate(out)))


def _pad(params, shapes, out, name):
  return Relation(tuple(((0, a),) if tuple(pad) == (0, 0, 0) else None
                        for a, pad in enumerate(params['padding_config'])))


def _rev(params, shapes, out, name):
  return Relation(tuple(None if a in params['dimensions'] else ((0, a),) for a in range(len(out))))


def _cumulative(params, shapes, out, name):
  return Relation(tuple(None if a == params['axis'] else ((0, a),) for a in range(len(out))))


def _sort(params, shapes, out, name):
  return Relation(tuple(None if a == params['dimension'] else ((0, a),) for a in range(len(out))))


def _concatenate(params, shapes, out, name):
  return Relation(tuple(
      None if a == params['dimension'] else tuple((i, a) for i in range(len(shapes)))
      for a in range(len(out))))


def _reduce(params, shapes, out, name):
  axes = {int(a) for a in params['axes']}
  sums = tuple(((0, a),) for a in sorted(axes)) if name == 'reduce_sum' else ()
  return Relation(tuple(((0, a),) for a in range(len(shapes[0])) if a not in axes), sums)


def _window(params, shapes, out, name):
  kept = []
  for a, size in enumerate(out):
    lone = (params['window_dimensions'][a], params['window_strides'][a]) == (1, 1)
    still = tuple(params['padding'][a]) == (0, 0) and params['base_dilation'][a] == 1
    kept.append(((0, a),) if lone and still and shapes[0][a] == size else None)
  return Relation(tuple(kept))


def _dot_general(params, shapes, out, name):
  (left, right), (left_batch, right_batch) = params['dimension_numbers']
  axes = [((0, a), (1, b)) for a, b in zip(left_batch, right_batch)]
  for i, gone in enumerate(({*left, *left_batch}, {*right, *right_batch})):
    axes += [((i, a),) for a in range(len(shapes[i])) if a not in gone]
  return Relation(tuple(axes), tuple(((0, a), (1, b)) for a, b in zip(left, right)))


def _conv(params, shapes, out, name):
  numbers = params['dimension_numbers']
  lhs, rhs, result = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
  axes = [None] * len(out)
  if params['batch_group_count'] != 1:
    return Relation(tuple(axes))
  axes[result[0]] = ((0, lhs[0]),)
  groups = params['feature_group_count']
  if groups == 1:
    axes[result[1]] = ((1, rhs[0]),)
    return Relation(tuple(axes), (((0, lhs[1]), (1, rhs[1])),))
  if groups == shapes[0][lhs[1]] == shapes[1][rhs[0]]:  # depthwise: a channel each
    axes[result[1]] = ((0, lhs[1]), (1, rhs[0]))
  return Relation(tuple(axes))


def _gather(params, shapes, out, name):
  numbers, sizes = params['dimension_numbers'], params['slice_sizes']
  batching = getattr(numbers, 'operand_batching_dims', ())
  window = [a for a in range(len(shapes[0]))
            if a not in numbers.collapsed_slice_dims and a not in batching]
  axes = [None] * len(out)
  for place, a in zip(numbers.offset_dims, window):
    if sizes[a] == shapes[0][a] and a not in numbers.start_index_map:
      axes[place] = ((0, a),)
  return Relation(tuple(axes))


def _reshape(params, shapes, out, name):
  old = shapes[0]
  if params['dimensions'] is not None or math.prod(old) == 0:
    return None
  axes = [FREE if n == 1 else None for n in out]
  before = [a for a, n in enumerate(old) if n != 1]
  after = [a for a, n in enumerate(out) if n != 1]
  merges = []
  while before:
    left, right = [before.pop(0)], [after.pop(0)]
    while (m := math.prod(old[a] for a in left)) != (n := math.prod(out[a] for a in right)):
      (left if m < n else right).append((before if m < n else after).pop(0))
    if len(left) == len(right) == 1:
      axes[right[0]] = ((0, left[0]),)
    elif len(right) == 1:
      merges.append(Merge(('out', right[0]), tuple(('in', a) for a in left)))
    elif len(left) == 1:
      merges.append(Merge(('in', left[0]), tuple(('out', a) for a in right)))
  return Relation(tuple(axes), merges=tuple(merges))


_RULES = {
    'transpose': _transpose, 'squeeze': _squeeze, 'broadcast_in_dim': _broadcast_in_dim,
    'iota': _iota, 'slice': _slice, 'dynamic_slice': _whole, 'pad': _pad, 'rev': _rev,
    'concatenate': _concatenate, 'dot_general': _dot_general, 'conv_general_dilated': _conv,
    'gather': _gather, 'reshape': _reshape, 'cumsum': _cumulative, 'cumprod': _cumulative,
    'cummax': _cumulative, 'cummin': _cumulative, 'cumlogsumexp': _cumulative}


def resized(eqn: Any, shapes: list[tuple], out: tuple) -> dict:
  """Parameters of an equation whose operands and result have other sizes along coupled axes.

  Args:
    eqn: the equation, as traced at its old sizes.
    shapes: new shapes of its operands.
    out: new shape of its result.
  """
  name, params = eqn.primitive.name, dict(eqn.params)
  if name == 'reshape':
    params['new_sizes'] = out
  elif name in ('broadcast_in_dim', 'iota'):
    params['shape'] = out
  elif name == 'dynamic_slice':
    params['slice_sizes'] = out
  elif name == 'slice':
    full = eqn.invars[0].aval.shape
    params['limit_indices'] = tuple(
        new if new != old else limit
        for limit, old, new in zip(params['limit_indices'], full, shapes[0]))
  elif name == 'gather':
    full = eqn.invars[0].aval.shape
    params['slice_sizes'] = tuple(
        new if new != old else size
        for size, old, new in zip(params['slice_sizes'], full, shapes[0]))
  elif name == 'conv_general_dilated' and params['feature_group_count'] != 1:
    channels = params['dimension_numbers'].lhs_spec[1]
    if eqn.invars[0].aval.shape[channels] != shapes[0][channels]:
      params['feature_group_count'] = shapes[0][channels]
  return params


def spread(masks: list[np.ndarray]) -> np.ndarray:
  """Mask of a merged axis: True where the coordinate along any part is True."""
  grid = np.zeros([len(m) for m in masks], bool)
  for a, mask in enumerate(masks):
    grid |= mask.reshape([-1 if i == a else 1 for i in range(len(masks))])
  return grid.ravel()


def gathered(mask: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
  """Masks of the parts of a merged axis: True where every coordinate behind it is True."""
  grid = mask.reshape(sizes)
  return [grid.all(tuple(i for i in range(len(sizes)) if i != a)) for a in range(len(sizes))]
