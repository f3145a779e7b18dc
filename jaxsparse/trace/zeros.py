"""Which slices of every value are zero, whatever the inputs are.

A slice is one entry of one axis. What is known of a value: the one number it is filled with, if
any; for each axis which slices are exactly zero; and which do not depend on the inputs.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import jaxprs
from jaxsparse.trace import relations


class Known(NamedTuple):
  """What is known of a value.

  Attributes:
    fill: the number all entries are, or None.
    zero: for each axis a bool mask of zero slices.
    fixed: for each axis a bool mask of slices no input reaches.
  """

  fill: Any
  zero: tuple[np.ndarray, ...]
  fixed: tuple[np.ndarray, ...]


def of_array(value: Any) -> Known:
  """What is known of a constant or a weight."""
  nonzero = np.asarray(value) != 0
  axes = range(nonzero.ndim)
  zero = tuple(~nonzero.any(tuple(b for b in axes if b != a)) for a in axes)
  fill = np.asarray(value) if not axes else None
  return Known(fill, zero, tuple(np.ones(n, bool) for n in nonzero.shape))


def of_input(shape: tuple[int, ...]) -> Known:
  """What is known of an input: nothing."""
  none = tuple(np.zeros(n, bool) for n in shape)
  return Known(None, none, none)


def propagate(coupling: couplings.Coupling, known: dict[int, Known]) -> None:
  """Fills in what is known of every value of a program.

  Args:
    coupling: of the program.
    known: {value number: Known} of inputs and constants, completed in place.
  """
  for number, value in coupling.inner_consts:
    known[number] = of_array(value)
  _steps(coupling, coupling.steps, known)


def read(known: dict[int, Known], atom: Any) -> Known:
  """What is known of an operand, which may be a literal."""
  return known[atom] if isinstance(atom, int) else of_array(atom.val)


def _steps(coupling, steps, known):
  for step in steps:
    operands = [read(known, atom) for atom in step.ins]
    if step.copies:
      _steps(coupling, step.inside, known)
      known.update({out: read(known, source) for source, out in step.copies})
      continue
    if step.relation is None:
      for out in step.outs:
        known[out] = of_input(coupling.shapes[out])
      continue
    shape = coupling.shapes[step.outs[0]]
    known[step.outs[0]] = _tidy(_result(step, operands, shape), shape)


def _tidy(known, shape):
  """A value zero along one whole axis is zero along all."""
  if known.fill is not None and known.fill == 0 or any(z.size and z.all() for z in known.zero):
    return Known(np.float32(0), *[tuple(np.ones(n, bool) for n in shape)] * 2)
  if any(f.size and f.all() for f in known.fixed):
    return known._replace(fixed=tuple(np.ones(n, bool) for n in shape))
  return known


def _result(step, operands, shape):
  name = step.eqn.primitive.name
  zero = [np.zeros(n, bool) for n in shape]
  fixed = [np.zeros(n, bool) for n in shape]
  if all(_constant(k) for k in operands):
    fixed = [np.ones(n, bool) for n in shape]
  if name in relations.ELEMENTWISE:
    return _elementwise(step, operands, shape, fixed)
  if name == 'pad' and (operands[1].fill is None or operands[1].fill != 0):
    return Known(None, tuple(zero), tuple(fixed))
  if name in relations.KEEPS_ZERO or name == 'pad':
    for axis, sources in enumerate(step.relation.out):
      for i, a in sources or ():
        zero[axis] = zero[axis] | operands[i].zero[a]
        fixed[axis] = fixed[axis] | (operands[i].fixed[a] if len(step.ins) == 1
                                     else operands[i].zero[a])
      if len(sources or ()) > 1:  # a batch axis or a depthwise channel: slice meets slice
        both = np.logical_and.reduce([operands[i].fixed[a] for i, a in sources])
        fixed[axis] = fixed[axis] | both
    _merge(step, operands, zero, 'zero')
    _merge(step, operands, fixed, 'fixed')
    if any(_is_zero(operands[i]) for i in range(min(len(operands), 2 if 'dot' in name
                                                    or 'conv' in name else 1))):
      zero = [np.ones(n, bool) for n in shape]
    for pairs in step.relation.sums:
      if name != 'reduce_sum' and np.logical_or.reduce(
          [operands[i].zero[a] for i, a in pairs]).all():
        zero = [np.ones(n, bool) for n in shape]
  moved = name in ('broadcast_in_dim', 'reshape', 'transpose', 'squeeze')
  return Known(operands[0].fill if moved else None, tuple(zero), tuple(fixed))


def _merge(step, operands, masks, field):
  source = getattr(operands[0], field) if operands else ()
  for merge in step.relation.merges:
    parts = [a for _, a in merge.parts]
    if merge.whole[0] == 'out':
      masks[merge.whole[1]] = relations.spread([source[a] for a in parts])
    else:
      sizes = [len(masks[a]) for a in parts]
      for a, mask in zip(parts, relations.gathered(source[merge.whole[1]], sizes)):
        masks[a] = mask


def _is_zero(known):
  return known.fill is not None and known.fill == 0 or any(
      z.size and z.all() for z in known.zero)


def _constant(known):
  return known.fill is not None or all(f.all() for f in known.fixed)


def _along(known, sources, i, axis, size, field):
  """An operand's mask along an axis of the result, to which it may be broadcast."""
  for j, a in sources:
    if j == i:
      return getattr(known, field)[a]
  whole = _is_zero(known) if field == 'zero' else _constant(known)
  return np.full(size, whole)


def _elementwise(step, operands, shape, fixed):
  name, zero = step.eqn.primitive.name, []
  fills = [k.fill for k in operands]
  every = [i for i, fill in enumerate(fills) if fill is None]
  for axis, size in enumerate(shape):
    sources = step.relation.out[axis]
    masks = [_along(k, sources, i, axis, size, 'zero') for i, k in enumerate(operands)]
    still = [_along(k, sources, i, axis, size, 'fixed') for i, k in enumerate(operands)]
    fixed[axis] = fixed[axis] | np.logical_and.reduce(still)
    if name in ('mul', 'and'):
      found = np.logical_or.reduce(masks)
    elif name == 'div':
      found = masks[0]
    elif name == 'select_n':
      found = np.logical_and.reduce(masks[1:])
    else:
      found = np.logical_and.reduce([np.ones(size, bool), *[masks[i] for i in every]])
      if found.any() and not _maps_to_zero(step, fills):
        found = np.zeros(size, bool)
    fixed[axis] = fixed[axis] | found
    zero.append(found)
  fill = _value(step, fills) if not every else None
  return Known(fill, tuple(zero), tuple(fixed))


def _maps_to_zero(step, fills):
  found = _value(step, [0 if fill is None else fill for fill in fills])
  return found == 0


def _value(step, fills):
  """What an elementwise equation makes of scalars."""
  params = dict(step.eqn.params)
  if 'sharding' in params:
    params['sharding'] = None
  scalars = [jnp.asarray(f, v.aval.dtype) for f, v in zip(fills, step.eqn.invars)]
  return np.asarray(jaxprs.bind(step.eqn.primitive, params, scalars)[0])
