"""Quantized weights to and from `qwix.QArray`, which is what tokamax's kernels take.

A `qwix.QArray` has codes in the weight's own shape, and a scale of as many axes, each of which
divides the weight's: `w = (qvalue - zero_point) * scale`. Qwix's own int8 scale is absmax / 127.5;
arrays keep whatever scale they were made with.
"""

from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales

_FLOAT4 = jnp.dtype('float4_e2m1fn')


def to_qwix(params: Any) -> Any:
  """The tree with a `qwix.QArray` for each stored weight; needs `pip install qwix`.

  Args:
    params: packed; what is no `QArray` of this library stays. Scales are float32, and so is what
      Qwix makes of them. Codes of 4 bits are `int4`, of other integers `int8`.

  Raises:
    ValueError: a weight that Qwix cannot hold: binary codes, zero points that are no whole numbers,
      scales of rows, a group that does not divide its axis or spans several; the message names it.
      ImportError: no Qwix.
  """
  try:
    import qwix
  except ImportError as error:
    raise ImportError('to_qwix needs Qwix: pip install qwix') from error

  def one(name, stored):
    values, scale, zero = _natural(name, stored)
    return qwix.QArray(values, scale, zero, qtype='nf4' if stored.grid.name == 'nf4' else None)

  leaves, rebuild = names.named_leaves(params)
  return rebuild([one(leaf.name, leaf.value) if isinstance(leaf.value, quantized.QArray)
                  else leaf.value for leaf in leaves])


def from_qwix(params: Any, *, axes: Mapping[str, Any] | None = None) -> Any:
  """The tree with a `QArray` of this library for each `qwix.QArray`; the inverse of `to_qwix`.

  Args:
    params: a tree with `qwix.QArray` in it; Qwix itself is not needed.
    axes: {weight name: DimensionNumbers}, as `init` takes them.

  Raises:
    ValueError: codes of another type, or scales that differ along several axes of one role; the
      message names the weight.

  Example:
    >>> from typing import NamedTuple
    >>> class QArray(NamedTuple):   # as Qwix's
    ...   qvalue: jax.Array
    ...   scale: jax.Array
    ...   zero_point: jax.Array | None = None
    >>> theirs = QArray(jnp.array([[-128, 3]], jnp.int8), jnp.array([[0.5, 2.0]]))
    >>> from_qwix({'kernel': theirs})['kernel'].todense().tolist()
    [[-64.0, 6.0]]
  """
  leaves, treedef = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_theirs)
  made = []
  for path, leaf in leaves:
    name = names.weight_name(path)
    made.append(_ours(name, leaf, (axes or {}).get(name)) if _is_theirs(leaf) else leaf)
  return treedef.unflatten(made)


def _is_theirs(x: Any) -> bool:
  return all(hasattr(x, word) for word in ('qvalue', 'scale', 'zero_point'))


def _natural(name, stored):
  """Codes, scales and zero points of a `QArray` in the weight's own axes."""
  grid, layout = stored.grid, stored.layout
  if stored.input_scale is not None or grid.name == 'binary':
    raise ValueError(f'{name}: Qwix holds integers, floats and nf4 with one set of scales; got '
                     f'{grid.name}' + ('.' if stored.input_scale is None else
                                       ' with a scale for each row.'))
  *_, rows, columns = layout.matrix_shape
  found = scales.Scale(stored.scale_values, stored.zero, stored.factor).steps()
  many = found.shape[-2:]
  down, across = ((stored.group if isinstance(stored.group, tuple) else (stored.group, 1))
                  if stored.group is not None else (rows, 1))
  for axes_, size, count, of in ((layout.axes.reduction, rows, many[0], down),
                                 (layout.axes.output, columns, many[1], across)):
    if count not in (1, size) and (len(axes_) > 1 or size % count or size // count != of):
      raise ValueError(f'{name}: groups of {of} do not divide one axis of the weight '
                       f'{layout.shape} of {size} entries, as Qwix asks.')

  def spread(a):
    sizes = [layout.shape[n] for n in layout.batch]
    for axes_, size, count in ((layout.axes.reduction, rows, many[0]),
                               (layout.axes.output, columns, many[1])):
      whole = count == size
      sizes += [layout.shape[n] for n in axes_] if whole else [count] + [1] * (len(axes_) - 1)
    return a.reshape(sizes).transpose(np.argsort(layout.order))

  codes = layout.from_matrix(stored.code_matrix())
  if grid.floating == 'float4_e2m1':
    codes = grid.decode(codes).astype(_FLOAT4)
  elif grid.floating is not None:
    codes = jax.lax.bitcast_convert_type(codes, jnp.dtype(grid.floating))
  elif grid.bits == 4:
    codes = codes.astype(jnp.int4 if grid.low < 0 else jnp.uint4)
  if stored.zero is not None and stored.zero.dtype != jnp.uint8:
    raise ValueError(f'{name}: its zero points are no whole numbers, as Qwix asks; choose another '
                     'scale rule than hqq.')
  zero = None if stored.zero is None else spread(stored.zero).astype(codes.dtype)
  return codes, spread(found), zero


def _ours(name, theirs, given):
  codes, scale, zero = theirs.qvalue, theirs.scale, theirs.zero_point
  kind = str(getattr(theirs, 'qtype', None) or codes.dtype)
  unsigned = codes.dtype.name.startswith('u')
  layout = roles.Layout(codes.shape, scale.dtype, roles.DimensionNumbers(
      *(given or roles.known_axes(name, codes.shape))))
  floats = {g.floating: g for g in grids.GRIDS.values() if g.floating}
  if codes.dtype.name in floats:
    grid = floats[codes.dtype.name]
    codes = jax.lax.bitcast_convert_type(codes, jnp.int8)
  elif codes.dtype == _FLOAT4:
    grid = grids.grid('float4_e2m1')
    codes = grid.encode(codes.astype(jnp.float32))
  elif kind == 'nf4':
    grid = grids.grid('nf4')
    codes = codes.astype(jnp.int8)
  elif codes.dtype.name in ('int2', 'int4', 'int8', 'uint4', 'uint8'):
    bits = 8 if codes.dtype.name.endswith('8') else 4
    codes = codes.astype(jnp.int32)
    if zero is None and not unsigned:
      grid = grids.integer(bits, narrow=False)
    else:
      # A zero point of signed codes is one of unsigned codes half the range above.
      shift = 0 if unsigned else 2 ** (bits - 1)
      grid = grids.grid(f'uint{bits}')
      codes = codes + shift
      zero = jnp.zeros(scale.shape, jnp.uint8) if zero is None else zero
      whole = jnp.issubdtype(zero.dtype, jnp.integer)
      zero = (zero.astype(jnp.float32) + shift).astype(jnp.uint8 if whole else jnp.float32)
  else:
    raise ValueError(f'{name}: codes are of {codes.dtype} ({kind}); expected integers or '
                     'floats of 4 or 8 bits, or nf4.')
  group, shape = _grouping(name, layout, scale.shape)
  matrix = lambda a: a.transpose(layout.order).reshape(shape)
  found = scales.Scale(matrix(scale).astype(jnp.float32),
                       None if zero is None else matrix(zero))
  return quantized.QArray.of_codes(layout.to_matrix(codes), found, layout, grid, group)


def _grouping(name, layout, scale_shape):
  """The group, and the shape `[*batch, G, O]` of the scales, that Qwix's scale shape says."""
  *batch, rows, columns = layout.matrix_shape
  counts = []
  for axes_, size in ((layout.axes.reduction, rows), (layout.axes.output, columns)):
    count = int(np.prod([scale_shape[n] for n in axes_]))
    if count not in (1, size) and len(axes_) > 1 or size % count:
      raise ValueError(f'{name}: scales {scale_shape} of a weight {layout.shape} differ along '
                       f'several axes {axes_} of one role.')
    counts.append(count)
  if [scale_shape[n] for n in layout.batch] != batch:
    raise ValueError(f'{name}: scales {scale_shape} of a weight {layout.shape} are not of each '
                     f'matrix; expected {batch} along the axes {layout.batch}.')
  down, across = rows // counts[0], columns // counts[1]
  if counts[0] == 1 and counts[1] in (1, columns):
    group = None
  else:
    group = down if across == 1 else (down, across)
  return group, (*batch, *counts)
