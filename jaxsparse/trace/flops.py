"""Counting floating point operations, weight by weight, given how each weight is stored."""

import dataclasses
import fractions
import math
from typing import Any, Callable, NamedTuple

import jax

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import jaxprs
from jaxsparse.trace import walk


class WeightFlops(NamedTuple):
  """Operations of the products with one weight: those executed, and those on kept entries."""

  executed: int
  ideal: int


@dataclasses.dataclass(frozen=True)
class Flops:
  """Floating point operations of products and convolutions, two for each multiply-add.

  Elementwise operations, reductions and lookups are not counted.

  Attributes:
    weights: `{name: (executed, ideal)}`.
    other: of products between activations, such as attention scores.
    unbounded: sites of the `while` loops, whose bodies are counted once.

  Example:
    >>> import jax.numpy as jnp
    >>> count = flops(lambda p, x: x @ p['w'], {'w': jnp.ones((4, 3))}, jnp.ones((5, 4)))
    >>> print(count)
    weight  executed  ideal
    w            120    120
    other          0      0
    total        120    120
  """

  weights: dict[str, WeightFlops]
  other: int = 0
  unbounded: tuple[str, ...] = ()

  @property
  def executed(self) -> int:
    """What the implementation of each format executes."""
    return self.other + sum(w.executed for w in self.weights.values())

  @property
  def ideal(self) -> int:
    """What multiply-adds with the kept entries alone would take."""
    return self.other + sum(w.ideal for w in self.weights.values())

  def __str__(self) -> str:
    rows = [('weight', 'executed', 'ideal'),
            *((name, f'{w.executed:,}', f'{w.ideal:,}') for name, w in self.weights.items()),
            ('other', f'{self.other:,}', f'{self.other:,}'),
            ('total', f'{self.executed:,}', f'{self.ideal:,}')]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = [f'{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}' for a, b, c in rows]
    if self.unbounded:
      lines.append(f'counted once: the while loops at {", ".join(self.unbounded)}')
    return '\n'.join(lines)


def flops(fn: Callable, params: Any, *args, **kwargs) -> Flops:
  """Counts the floating point operations of `fn(params, *args, **kwargs)` without running it.

  A scan counts as often as it steps, a `cond` as its most expensive branch, the body of a `while`
  once. A weight stored as a format costs what the format says; where `dispatch` would use the
  dense array, that is what is executed.

  Args:
    fn: the function, dispatched or not.
    params: tree of arrays, formats or `jax.ShapeDtypeStruct`.
    *args: arrays, `jax.ShapeDtypeStruct`, or static values.
    **kwargs: likewise.

  Returns:
    The count.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> x = jax.ShapeDtypeStruct((8, 4), jnp.float32)
    >>> flops(lambda p, x: x @ p['w'] @ p['w'].T, {'w': jnp.ones((4, 2))}, x).executed
    256
  """
  program = jaxprs.trace(fn, params, args, kwargs)
  leaves, _ = names.named_leaves(params)
  stored = {leaf.name: leaf.value for leaf in leaves if formats.is_format(leaf.value)}
  return _count(walk.nodes_of(program), stored)


def _count(nodes, stored) -> Flops:
  total = Flops({})
  for node in nodes:
    if isinstance(node, contractions.Contraction):
      more = Flops({node.name: _cost(node, stored.get(node.name))})
    elif isinstance(node, walk.Activations):
      more = Flops({}, 2 * node.multiply_adds * node.repeats)
    elif isinstance(node, walk.Loop):
      inside = _count(node.nodes, stored)
      more = dataclasses.replace(inside, unbounded=(node.site, *inside.unbounded))
    else:
      more = max((_count(branch, stored) for branch in node.branches), key=lambda f: f.executed)
    total = _sum(total, more)
  return total


def _sum(a: Flops, b: Flops) -> Flops:
  weights = dict(a.weights)
  for name, w in b.weights.items():
    before = weights.get(name, WeightFlops(0, 0))
    weights[name] = WeightFlops(before.executed + w.executed, before.ideal + w.ideal)
  return Flops(weights, a.other + b.other, a.unbounded + b.unbounded)


def _cost(contraction, packed) -> WeightFlops:
  dense = 2 * contraction.multiply_adds * contraction.repeats
  if packed is None or not dense:
    return WeightFlops(dense, dense)
  # A format's cost is linear in the rows, so its share of the dense cost holds for any number.
  rows = max(dense // (2 * packed.size), 1)
  cost = packed.multiply_adds(rows)
  share = lambda part: round(dense * fractions.Fraction(int(part), rows * packed.size))
  if _multiplied_as_stored(contraction, packed):
    return WeightFlops(share(cost.executed), share(cost.ideal))
  # Each slice of a stack is merged once a pass over the stack.
  source = contraction.origin
  slices = math.prod(packed.shape[n] for n in range(packed.ndim) if n not in source.kept)
  merge = 2 * packed.merge_multiply_adds() * contraction.repeats // max(slices, 1)
  # Factors that a convolution cannot use (groups, a base) promise it nothing.
  unusable = contraction.kind == 'conv' and hasattr(packed, 'convolves')
  return WeightFlops(dense + merge, dense if unusable else share(cost.ideal))


def _multiplied_as_stored(contraction, packed) -> bool:
  """Whether the stored form reaches the product and is multiplied there."""
  source = contraction.origin
  gone = [n for n in range(packed.ndim) if n not in source.kept]
  # Leading batch axes that a scan or an index took off; a slice of any other axis is dense.
  if gone != list(range(len(gone))) or not {*source.cut} <= {*gone}:
    return False
  for _ in gone:
    if 0 not in packed.layout.batch:
      return False
    one = lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
    packed = jax.tree.map(one, packed).drop_leading()
  if not contraction.takes(packed):
    return False
  if contraction.kind == 'dot':
    return True
  if contraction.kind == 'ragged_dot':
    return hasattr(packed, 'grouped_matmul')
  spec = [source.positions[a] for a in contraction.params['dimension_numbers'].rhs_spec]
  groups = (contraction.params['feature_group_count'], contraction.params['batch_group_count'])
  return hasattr(packed, 'convolves') and packed.convolves(spec, *groups)
