"""The one grammar of quantizers: grid x granularity x scale rule.

A dtype names a grid ('int4'), or a microscaling format, which fixes the other two as well.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.formats import format as formats
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales

# OCP Microscaling Formats 1.0, and NVIDIA's: the grid, the rows of a group, the scale rule.
FORMATS = {'mxfp8': ('float8_e4m3', 32, 'power_of_two'),
           'mxfp4': ('float4_e2m1', 32, 'power_of_two'),
           'mxint8': ('int8', 32, 'power_of_two'),
           'nvfp4': ('float4_e2m1', 16, 'two_level')}


class ScaleRule(NamedTuple):
  """A scale rule with an argument: `percentile(99.9)`."""

  name: str
  q: float
  spelling: Any


def percentile(q: float = 99.9) -> ScaleRule:
  """The range that holds `q` percent of the magnitudes of a cell; the rest is clipped.

  Of unsigned grids `q` percent lie below the upper end and as many above the lower. Exact: the
  value at the nearest rank, found by counting.

  Args:
    q: in (0, 100].

  Raises:
    ValueError: it is not.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> w = {'kernel': jnp.array([[7.0], [3.0], [1.0], [100.0]])}
    >>> transform = jsp.quantize('int4', scale=percentile(75))
    >>> transform.apply(*transform.init(w))['kernel'].ravel().tolist()
    [7.0, 3.0, 1.0, 7.0]
  """
  if isinstance(q, bool) or not isinstance(q, (int, float)) or not 0 < q <= 100:
    raise ValueError(f'a percentile is in (0, 100], got {q!r}.')
  return ScaleRule('percentile', float(q), spell.call(percentile, {'q': q}))


class Scheme(NamedTuple):
  """How a matrix is quantized.

  Attributes:
    grid: of the codes.
    granularity: one of `scales.GRANULARITIES`.
    group: rows that share a scale, `(rows, outputs)` of a block, or None.
    rule: one of `scales.RULES`.
    q: of the rule 'percentile'.
    scale_group: scales that share a second one where they are stored, or None.
  """

  grid: grids.Grid
  granularity: str
  group: Any
  rule: str
  q: float = 99.9
  scale_group: int | None = None

  def fit(self, w: jax.Array, importance: jax.Array | None = None) -> scales.Scale:
    """Scales of a matrix `[*batch, R, O]`; `importance` `[*batch, R, 1]` weighs errors of `mse`."""
    return scales.fit(w, self.grid, rule=self.rule, granularity=self.granularity,
                      group=self.group, q=self.q, importance=importance)

  def round(self, w: jax.Array, noise: jax.Array | None = None) -> jax.Array:
    """`w` on its grid, same shape and dtype; by chance with `noise` in [0, 1)."""
    scale = self.fit(w)
    if noise is None:
      return scales.nearest(w, scale, self.grid, self.group).astype(w.dtype)
    codes = scales.encode(w, scale, self.grid, self.group, noise)
    return scales.decode(codes, scale, self.grid, self.group).astype(w.dtype)

  def store(self, w: Any, layout, stored: Any = None) -> quantized.QArray:
    """`w` as codes, inside the sparse format `stored` of an earlier stage where there is one."""
    scale = self.fit(w)
    if self.scale_group is not None:
      used = scales.used(w, self.grid.limit, granularity=self.granularity, group=self.group)
      scale = scale._replace(
          scale=quantized.QuantizedScale.encode(scale.scale, used, self.scale_group))
    source = stored if isinstance(stored, formats.SparseFormat) else w
    return quantized.QArray.encode(source, scale, layout.astype(w.dtype), self.grid, self.group)


def scheme(dtype: str, granularity: str | None, group: Any, scale: Any,
           double_quantize: bool | int = False) -> Scheme:
  """The scheme that a quantizer's arguments ask for.

  Raises:
    ValueError: an unknown dtype, granularity or rule, or ones that do not go together.
  """
  scale_group = _check_double_quantize(double_quantize)
  if dtype in FORMATS:
    if scale_group is not None:
      raise ValueError(f'{dtype!r} has narrow scales already; double_quantize is for float32 ones.')
    if granularity is not None or group is not None or scale is not None:
      raise ValueError(f'{dtype!r} fixes granularity, group and scale rule; give none of them.')
    name, group, rule = FORMATS[dtype]
    return Scheme(grids.grid(name), 'group', group, rule)
  try:
    grid = grids.grid(dtype)
  except ValueError as error:
    raise ValueError(f'{str(error)[:-1]}, {", ".join(FORMATS)}.') from None
  if granularity is None:
    granularity = 'channel' if group is None else 'block' if isinstance(group, tuple) else 'group'
  group = _check_granularity(granularity, group)
  rule, q = (scale.name, scale.q) if isinstance(scale, ScaleRule) else (scale or grid.rule, 99.9)
  if rule not in scales.RULES:
    raise ValueError(f'scale must be percentile(q) or one of {", ".join(scales.RULES)}; got '
                     f'{scale!r}.')
  if grid.zero_point and rule in ('power_of_two', 'two_level'):
    raise ValueError(f'{rule} is for grids without zero points, not {dtype}.')
  if rule == 'kl' and (granularity in ('group', 'block') or not grid.is_integer
                       or grid.zero_point):
    raise ValueError('kl compares histograms of many values: it is for integers without zero '
                     f'points, by tensor or channel; got {dtype!r} by {granularity}.')
  if scale_group is not None and (grid.zero_point or rule in ('power_of_two', 'two_level')):
    raise ValueError('double_quantize is for positive float32 scales without zero points, not '
                     f'those of {dtype} and {rule}.')
  return Scheme(grid, granularity, group, rule, q, scale_group)


def _check_double_quantize(value) -> int | None:
  """Scales that share a second scale, or None: True is the 256 of QLoRA's paper."""
  if isinstance(value, bool):
    return 256 if value else None
  if not isinstance(value, int) or value < 1:
    raise ValueError('double_quantize must be True, False or how many scales share a second one, '
                     f'got {value!r}.')
  return value


def _check_granularity(granularity, group):
  if granularity not in scales.GRANULARITIES:
    raise ValueError(f'granularity must be one of {", ".join(scales.GRANULARITIES)}, '
                     f'got {granularity!r}.')
  if (granularity in ('group', 'block')) != (group is not None):
    raise ValueError('group= goes with granularity=\'group\' (rows) or \'block\' (rows, outputs); '
                     f'got granularity={granularity!r}, group={group!r}.')
  sizes = group if granularity == 'block' else (group,) if group is not None else ()
  whole = lambda n: isinstance(n, int) and not isinstance(n, bool) and n >= 1
  if not isinstance(sizes, tuple) or not all(map(whole, sizes)) or (
      granularity == 'block' and len(sizes) != 2):
    raise ValueError('group must be a positive number of rows, or of a block (rows, outputs); '
                     f'got {group!r}.')
  return group


def by_column(found: scales.Scale, columns: int, x: jax.Array) -> scales.Scale:
  """Float32 scales `[*batch, G, O]` of `x`, whose groups of columns are batch axes."""
  def spread(a):
    if a is None:
      return None
    a = jnp.broadcast_to(a, (*a.shape[:-1], columns))
    if columns != x.shape[-1]:
      a = jnp.moveaxis(a.reshape(*a.shape[:-1], x.shape[-3], -1), -2, -3)
    return a
  return scales.Scale(spread(found.steps()), spread(found.zero))


def cells(scale: scales.Scale, shape: tuple[int, ...], group: Any) -> tuple[jax.Array, jax.Array]:
  """Steps and zero points, float32, broadcastable against a matrix; no step is zero."""
  whole = lambda a: scales.expand(a, shape[-2], group, shape[-1]).astype(jnp.float32)
  size = whole(scale.steps())
  zero = jnp.zeros_like(size) if scale.zero is None else whole(scale.zero)
  return jnp.where(size == 0, 1.0, size), zero


def values(codes: jax.Array, scale: scales.Scale, scheme: Scheme) -> jax.Array:
  """The float32 matrix of codes."""
  return scales.decode(codes, scale, scheme.grid, scheme.group)


def output_error(off: jax.Array, gram: jax.Array) -> jax.Array:
  """`|X off|^2` of each output, `[*batch, 1, O]`, from `X^T X`."""
  seen = jnp.einsum('...rs,...so->...ro', gram, off, precision='high')
  return (off * seen).sum(-2, keepdims=True)


def check_learned(method: str, scheme: Scheme, steps: int, rate: float) -> None:
  """Raises ValueError where roundings cannot be learned on the grid, or not in those steps."""
  if not scheme.grid.is_integer:
    raise ValueError(f'{method} learns the rounding of integers; got {scheme.grid.name}.')
  if scheme.granularity == 'block':
    raise ValueError(f'{method} treats each output by itself; granularity is tensor, channel or '
                     'group, got block.')
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise ValueError(f'steps must be a positive integer, got {steps!r}.')
  if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < float('inf'):
    raise ValueError(f'rate must be a positive number, got {rate!r}.')


def check_rounding(rounding: str, scheme: Scheme) -> None:
  """Raises ValueError where `rounding` is unknown, or the grid cannot be rounded by chance."""
  if rounding not in ('nearest', 'stochastic'):
    raise ValueError(f"rounding must be 'nearest' or 'stochastic', got {rounding!r}.")
  if rounding == 'stochastic' and not scheme.grid.is_integer:
    raise ValueError(f'{scheme.grid.name} has values at uneven distances; stochastic rounding is '
                     'for integer grids.')
