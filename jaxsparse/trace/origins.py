"""Where a value inside a program comes from: which weight, and which of its axes are which.

Everything here is static. `groups` lists, for each axis of the value, the natural axes of the
weight behind it: one for an axis that was only moved, several for axes merged by a reshape
(their sizes multiply to the axis), none for an inserted axis; an axis that was split stands
behind several, in order.
"""

import math
from typing import Any, NamedTuple

from jaxsparse.numerics import axes


class Origin(NamedTuple):
  """The weight behind a value.

  Attributes:
    name: of the weight.
    shape: of the weight, in its natural axes.
    groups: for each axis of the value, the natural axes behind it.
    scanned: `(natural axis, site)` of each axis that a scan slices, outermost first.
    cut: natural axes of which a slice left only a part.
    lost: whether a reshape mixed the axes beyond recognition.
    picked: `(natural axis, index)` of each axis that an index of the program took one entry of.
  """

  name: str
  shape: tuple[int, ...]
  groups: tuple[tuple[int, ...], ...]
  scanned: tuple[tuple[int, str], ...] = ()
  cut: tuple[int, ...] = ()
  lost: bool = False
  picked: tuple[tuple[int, int], ...] = ()

  @property
  def kept(self) -> tuple[int, ...]:
    """Natural axes the value still has, ascending."""
    return tuple(sorted({n for group in self.groups for n in group}))

  @property
  def positions(self) -> tuple[int, ...] | None:
    """Each axis' place among `kept`, when axes were only moved and sliced; else None."""
    if self.lost or any(len(group) != 1 for group in self.groups):
      return None
    flat = [group[0] for group in self.groups]
    return None if len(set(flat)) != len(flat) else tuple(self.kept.index(n) for n in flat)

  def scan(self, site: str) -> 'Origin':
    """The origin of one slice along the leading axis, as a scan body sees it."""
    leading = self.groups[0]
    if len(leading) != 1:
      # A merged or inserted leading axis: no natural axis is what the scan steps along.
      return self._replace(groups=self.groups[1:], scanned=(*self.scanned, (-1, site)), lost=True)
    return self._replace(groups=self.groups[1:], scanned=(*self.scanned, (leading[0], site)))


def origin(name: str, shape: tuple[int, ...]) -> Origin:
  """The origin of a whole weight."""
  return Origin(name, tuple(shape), tuple((n,) for n in range(len(shape))))


def roles(source: Origin, *, reduction, batch=()) -> axes.DimensionNumbers | None:
  """Roles of the natural axes, given those of the value's axes; None when a reshape lost them.

  Axes that came before the contraction was reached (layers of a scan, an index) are batch axes.
  So are free axes that lead a matrix `[..., reduction, output]`: experts that share one input.
  """
  if source.lost:
    return None
  role = {}
  for axis, group in enumerate(source.groups):
    kind = 'reduction' if axis in reduction else 'batch' if axis in batch else 'output'
    for n in group:
      if role.setdefault(n, kind) != kind:
        return None
  reduced = sorted(n for n, kind in role.items() if kind == 'reduction')
  free = sorted(n for n, kind in role.items() if kind == 'output')
  if not reduced:
    return None
  if free and free[0] < reduced[0] and free[-1] > reduced[-1]:
    free = [n for n in free if n > reduced[0]]
  return axes.DimensionNumbers(tuple(reduced), tuple(free))


def follow(eqn: Any, sources: list[Origin | None]) -> list[Origin | None]:
  """Origins of an equation's results: a weight's name survives layout operations only."""
  name = eqn.primitive.name
  if name == 'optimization_barrier':
    return list(sources)
  source = sources[0] if sources else None  # `iota` has no operand
  if source is None or (name not in PRESERVING and name not in _RULES and name != 'unstack'):
    return [None] * len(eqn.outvars)
  if name in PRESERVING:
    return [source]
  old = eqn.invars[0].aval.shape
  if name == 'unstack':   # of jax 0.12, where 0.10 slices
    return [_entry(source, eqn.params['axis'], n, len(old)) for n in range(len(eqn.outvars))]
  return [_RULES[name](source, eqn.params, old, v.aval.shape) for v in eqn.outvars]


PRESERVING = frozenset({
    'convert_element_type', 'copy', 'copy_p', 'device_put', 'layout_constraint', 'mesh_cast',
    'name', 'pcast', 'pvary', 'reduce_precision', 'reshard', 'sharding_constraint',
    'stop_gradient'})


def _transpose(source, params, old, new):
  del old, new
  order = tuple(params['permutation'])
  groups = tuple(source.groups[a] for a in order)
  # A split axis is recognized by the order of its parts.
  parts = {}
  for axis in order:
    for n in source.groups[axis]:
      parts.setdefault(n, []).append(axis)
  lost = source.lost or any(p != sorted(p) for p in parts.values())
  return source._replace(groups=groups, lost=lost)


def _squeeze(source, params, old, new):
  del new
  gone = {a % len(old) for a in params['dimensions']}
  return source._replace(groups=tuple(g for a, g in enumerate(source.groups) if a not in gone))


def _broadcast_in_dim(source, params, old, new):
  groups = [()] * len(new)
  for axis, place in enumerate(params['broadcast_dimensions']):
    if old[axis] == new[place]:
      groups[place] = source.groups[axis]
  return source._replace(groups=tuple(groups))


def _slice(source, params, old, new):
  cut = {n for a, group in enumerate(source.groups) if old[a] != new[a] for n in group}
  cut = tuple(sorted({*source.cut, *cut}))
  # One element of a stack: what is left of the leading axis is no axis of the weight.
  if not (len(old) > 2 and new[:1] == (1,) != old[:1] and new[1:] == old[1:]):
    return source._replace(cut=cut)
  start = params['start_indices'][0] if 'start_indices' in params else None
  return source._replace(groups=((), *source.groups[1:]), cut=cut, picked=_picked(source, start))


def _picked(source, index):
  """What is picked with the entry `index` of the leading axis; None is no number that is known."""
  leading = source.groups[0]
  known = index is not None and len(leading) == 1 and not {*leading} & {*source.cut}
  return (*source.picked, (leading[0], index)) if known else source.picked


def _entry(source, axis, index, rank):
  picked = _picked(source, index) if axis == 0 and rank > 2 else source.picked
  return source._replace(
      groups=tuple(g for a, g in enumerate(source.groups) if a != axis),
      cut=tuple(sorted({*source.cut, *source.groups[axis]})), picked=picked)


def _gather(source, params, old, new):
  # Elements of a stack picked by an array of indices: what is left is no axis of the weight.
  numbers = params['dimension_numbers']
  if (len(old) < 3 or tuple(params['slice_sizes']) != (1, *old[1:])
      or numbers.operand_batching_dims or 0 not in numbers.start_index_map):
    return None
  groups = [()] * len(new)
  window = [a for a in range(len(old)) if a not in numbers.collapsed_slice_dims]
  for place, axis in zip(numbers.offset_dims, window):
    groups[place] = source.groups[axis] if axis else ()
  cut = {*source.cut, *source.groups[0]}
  return source._replace(groups=tuple(groups), cut=tuple(sorted(cut)))


def _reshape(source, params, old, new):
  if params['dimensions'] is not None:
    source = _transpose(source, {'permutation': params['dimensions']}, old, None)
    old = [old[a] for a in params['dimensions']]
  if math.prod(old) == 0:
    return source._replace(groups=((),) * len(new), lost=True)
  if tuple(old) == tuple(new):
    return source
  groups = [()] * len(new)
  before = [(n, g) for n, g in zip(old, source.groups) if n != 1]
  after = [(n, place) for place, n in enumerate(new) if n != 1]
  lost = source.lost
  while before:
    left, right = [before.pop(0)], [after.pop(0)]
    while math.prod(n for n, _ in left) != math.prod(n for n, _ in right):
      short = math.prod(n for n, _ in left) < math.prod(n for n, _ in right)
      (left if short else right).append((before if short else after).pop(0))
    given = _divide(source, left, right)
    lost = lost or given is None
    for (_, place), group in zip(right, given or [()] * len(right)):
      groups[place] = group
  return source._replace(groups=tuple(groups), lost=lost)


def _divide(source, left, right):
  """Natural axes behind each new axis of one block of a reshape; None when they mix."""
  merged = tuple(dict.fromkeys(n for _, group in left for n in group))
  if len(right) == 1:
    whole = math.prod(source.shape[n] for n in merged) == right[0][0]
    return [merged] if whole or len(merged) <= 1 or {*merged} & {*source.cut} else None
  if len(left) == 1 and len(merged) <= 1:
    return [merged] * len(right)
  natural = [n for n in merged if source.shape[n] != 1]
  if [source.shape[n] for n in natural] == [n for n, _ in right]:
    return [(n,) for n in natural]
  return None


_RULES = {
    'transpose': _transpose, 'squeeze': _squeeze, 'broadcast_in_dim': _broadcast_in_dim,
    'slice': _slice, 'dynamic_slice': _slice, 'split': _slice, 'gather': _gather,
    'reshape': _reshape}
