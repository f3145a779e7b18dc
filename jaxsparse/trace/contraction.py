"""One operation that consumes a weight, described statically, and how to compute it."""

import dataclasses
import math
from typing import Any, Mapping, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import axes as axes_of_names
from jaxsparse.formats import format as formats
from jaxsparse.numerics import axes as roles_of_axes
from jaxsparse.trace import jaxprs
from jaxsparse.trace import origins
from jaxsparse.trace import products

KINDS = {'dot_general': 'dot', 'conv_general_dilated': 'conv', 'ragged_dot_general': 'ragged_dot',
         'ragged_dot': 'ragged_dot', 'gather': 'gather', 'dynamic_slice': 'gather'}


class Place(NamedTuple):
  """Where the interpreter stands: a unique static path, and how often scans repeat it."""

  site: str = ''
  repeats: int = 1

  def inside(self, step: Any, repeats: int = 1) -> 'Place':
    """The place one level further in."""
    return Place(f'{self.site}/{step}' if self.site else str(step), self.repeats * repeats)


@dataclasses.dataclass(frozen=True)
class Contraction:
  """One use of a weight by a product or a lookup.

  Attributes:
    name: of the weight.
    kind: 'dot', 'conv', 'ragged_dot' or 'gather'.
    site: unique static path of the operation in the program.
    repeats: product of the lengths of the scans around it.
    axes: roles of the weight's axes in its natural shape, or None when a reshape lost them.
    params: the operation's own parameters (dimension numbers, strides, ...), addressing the
      operands as the operation receives them.
    multiply_adds: of one execution with the dense weight.
    origin: which weight axes the operand's axes are.
    dtype: of the operand.
    operand_shape: of the operand, as the operation receives it.
    operand: which operand the weight is; `x` is the other one.
    operands: the remaining operands (group sizes), at their places; empty in a static listing.

  Example:
    >>> import jaxsparse as jsp
    >>> fn = lambda params, x: x @ params['w']
    >>> found, = jsp.contractions(fn, {'w': jnp.ones((4, 3))}, jnp.ones((2, 4)))
    >>> found.name, found.kind, found.axes.reduction, found.multiply_adds
    ('w', 'dot', (0,), 24)
  """

  name: str
  kind: str
  site: str
  repeats: int
  axes: roles_of_axes.DimensionNumbers | None
  params: Mapping[str, Any]
  multiply_adds: int
  origin: origins.Origin = dataclasses.field(repr=False)
  dtype: Any = dataclasses.field(repr=False)
  operand_shape: tuple[int, ...] = dataclasses.field(repr=False)
  operand: int = dataclasses.field(repr=False)
  primitive: Any = dataclasses.field(repr=False)
  operands: tuple = dataclasses.field(default=(), repr=False)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the whole weight, in its natural axes."""
    return self.origin.shape

  @property
  def input(self) -> int:
    """Which operand `x` is."""
    return 1 - self.operand

  def compute(self, x: jax.Array, w: Any) -> jax.Array:
    """What the operation returns.

    Args:
      x: the other operand (activations, or the indices of a lookup).
      w: the weight's operand: an array as the operation receives it, or a format in the weight's
        natural axes (less those that scans sliced off).

    Returns:
      The operation's result.
    """
    if formats.is_format(w):
      if self.takes(w):
        return products.RULES[self.primitive.name](self, x, w)
      w = dense(w, self.origin, self.dtype)
    operands = list(self.operands)
    operands[self.operand], operands[self.input] = w, x
    return jaxprs.bind(self.primitive, self.params, operands)[0]

  def takes(self, w: formats.Format) -> bool:
    """Whether `compute` multiplies by the stored form of `w` rather than by its dense array."""
    places = self.origin.positions
    if places is None or self.primitive.name not in products.RULES or len(places) != w.ndim:
      return False
    if self.kind == 'dot':
      return formats.can_dot(w, products.weight_on_the_right(self, w)[0])
    if self.kind == 'ragged_dot':
      return products.grouped(self, w)
    return self.kind == 'conv' or places == tuple(range(w.ndim))


def recognize(eqn: Any, sources: list, place: Place) -> Contraction | None:
  """The contraction that an equation is, if a weight is an operand in the weight's place."""
  kind = KINDS.get(eqn.primitive.name)
  found = kind and _OPERAND[eqn.primitive.name](eqn, sources)
  if not found:
    return None
  operand, reduction, batch = found
  source = sources[operand]
  axes = origins.roles(source, reduction=reduction, batch=batch)
  return Contraction(source.name, kind, place.site, place.repeats, axes, dict(eqn.params),
                     multiply_adds(eqn), source, eqn.invars[operand].aval.dtype,
                     tuple(eqn.invars[operand].aval.shape), operand, eqn.primitive)


def multiply_adds(eqn: Any) -> int:
  """Multiply-adds of a product; 0 of any other equation."""
  if eqn.primitive.name not in ('dot_general', 'conv_general_dilated', 'ragged_dot_general',
                                'ragged_dot'):
    return 0
  x, w = (v.aval.shape for v in eqn.invars[:2])
  out = math.prod(eqn.outvars[0].aval.shape)
  if eqn.primitive.name == 'dot_general':
    return out * math.prod(x[a] for a in eqn.params['dimension_numbers'][0][0])
  if eqn.primitive.name == 'conv_general_dilated':
    # The kernel's own input axis is already divided by the number of feature groups.
    return out * math.prod(w[a] for a in eqn.params['dimension_numbers'].rhs_spec[1:])
  numbers = eqn.params['ragged_dot_dimension_numbers']
  (contracted, _), _ = numbers.dot_dimension_numbers
  ragged = set(numbers.lhs_ragged_dimensions)
  if ragged & set(contracted):
    # Ragged contraction: every row belongs to one group.
    groups = eqn.invars[2].aval.shape[-1]
    return out // max(groups, 1) * math.prod(x[a] for a in contracted)
  return out * math.prod(x[a] for a in contracted)


def dense(value: Any, source: origins.Origin, dtype: Any) -> jax.Array:
  """A tracked value as the array that the program sees."""
  if not formats.is_format(value):
    return value
  kept = [group[0] for group in source.groups if group]
  out = value.todense().transpose([source.kept.index(n) for n in kept]).astype(dtype)
  inserted = [a for a, group in enumerate(source.groups) if not group]
  return jnp.expand_dims(out, inserted) if inserted else out


def _dot_operand(eqn, sources):
  (left, right), (left_batch, right_batch) = eqn.params['dimension_numbers']
  if not left:
    return None  # An elementwise product in a contraction's clothes.
  ranks = [v.aval.ndim for v in eqn.invars]
  if sources[1] and not (sources[0] and ranks[1] < 2 <= ranks[0]):
    return 1, right, right_batch
  return (0, left, left_batch) if sources[0] else None


def _conv_operand(eqn, sources):
  return (1, eqn.params['dimension_numbers'].rhs_spec[1:], ()) if sources[1] else None


def _ragged_operand(eqn, sources):
  if not sources[1]:
    return None
  numbers = eqn.params['ragged_dot_dimension_numbers']
  (_, contracted), (_, batch) = numbers.dot_dimension_numbers
  return 1, contracted, (*batch, *numbers.rhs_group_dimensions)


def _gather_operand(eqn, sources):
  numbers, shape = eqn.params['dimension_numbers'], eqn.invars[0].aval.shape
  rank = eqn.outvars[0].aval.ndim
  if sources[0] and len(shape) > 2 and not axes_of_names.is_table(sources[0].name):
    return None   # Matrices picked from a stack, which a product may consume yet.
  whole = (sources[0] and len(shape) > 1 and not sources[1] and not numbers.operand_batching_dims
           and tuple(eqn.params['slice_sizes']) == (1, *shape[1:]))
  rows = (tuple(numbers.collapsed_slice_dims) == (0,) and tuple(numbers.start_index_map) == (0,)
          and tuple(numbers.offset_dims) == tuple(range(rank - len(shape) + 1, rank)))
  # A lookup of one row under `vmap`: it keeps the row's axis, and where columns start is clipped.
  sliced = (len(shape) == 2 and not numbers.collapsed_slice_dims
            and tuple(numbers.start_index_map) == (0, 1) and shape[0] > 1
            and tuple(numbers.offset_dims) == (rank - 2, rank - 1)
            and eqn.params['mode'] == jax.lax.GatherScatterMode.CLIP)
  return (0, (0,), ()) if whole and (rows or sliced) else None


def _row_operand(eqn, sources):
  # One row of a table, as a decoder looks up a token; a slice of a stack of matrices is not.
  shape, sizes = eqn.invars[0].aval.shape, tuple(eqn.params['slice_sizes'])
  lookup = (sources[0] and not any(sources[1:]) and len(shape) == 2 and sizes == (1, shape[1])
            and shape[0] > 1)
  return (0, (0,), ()) if lookup else None


_OPERAND = {'dot_general': _dot_operand, 'conv_general_dilated': _conv_operand,
            'ragged_dot_general': _ragged_operand, 'ragged_dot': _ragged_operand,
            'gather': _gather_operand, 'dynamic_slice': _row_operand}
