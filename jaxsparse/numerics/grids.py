"""Representable values of a quantized weight: integers, floats of eight and four bits, NF4.

Signed integers are narrow by default, `[-(2^(b-1) - 1), 2^(b-1) - 1]`, the largest magnitude on the
largest code (the GPTQ and TFLite convention). `int2` has four codes, of which -2 is reached only in
part: its range ends half a step beyond the code 1. Unsigned integers have a zero point. Ternary
(Ma et al., "BitNet b1.58", arXiv:2402.17764) and binary (Rastegari et al., "XNOR-Net",
arXiv:1603.05279) codes are in units of the mean magnitude. Floats are those of the OCP
specifications, rounded half to even and clipped, never infinite. NF4 is the table of Dettmers et
al., "QLoRA" (arXiv:2305.14314), appendix E: quantiles of a normal distribution.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import rounding

NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


class Grid(NamedTuple):
  """A set of codes and their values, in units of the scale.

  Attributes:
    name: as users write it.
    bits: of a code.
    low: the lowest code; negative codes are two's complement.
    high: the highest code.
    table: values of the codes 0, 1, ..., ascending; None for integers and floats.
    reach: what the largest magnitude is scaled to; None for the grid's own largest value.
    zero_point: whether the value is `code - zero` for a zero point of each cell.
    rule: the scale rule where none is asked for.
    floating: the name of a dtype of 8 bits, or 'float4_e2m1', whose bits the codes are.
  """

  name: str
  bits: int
  low: int
  high: int
  table: tuple[float, ...] | None = None
  reach: float | None = None
  zero_point: bool = False
  rule: str = 'absmax'
  floating: str | None = None

  @property
  def limit(self) -> float:
    """What the largest magnitude of a cell is scaled to."""
    if self.reach is not None:
      return self.reach
    return float(self.high) if self.table is None else max(self.table)

  @property
  def zero_code(self) -> int | None:
    """The code of the value 0; None where there is none, or it depends on the cell."""
    if self.zero_point:
      return None
    if self.table is None:
      return 0
    return self.table.index(0.0) if 0.0 in self.table else None

  @property
  def is_integer(self) -> bool:
    """Whether codes are whole numbers of steps, so that they can be rounded by chance."""
    return self.table is None and self.floating is None

  def encode(self, x: jax.Array, zero: jax.Array | None = None) -> jax.Array:
    """The nearest code of each `x` (float32, in units of the scale); NaN has one too.

    Args:
      x: any shape.
      zero: zero points, broadcastable; a whole zero point is added after the rounding.

    Returns:
      int8 codes, uint8 where there are zero points.
    """
    if self.zero_point:
      whole = jnp.round(zero)
      codes = jnp.round(jnp.clip(x, -1e6, 1e6) + (zero - whole)) + whole
      return jnp.clip(codes, self.low, self.high).astype(jnp.uint8)
    if self.floating == 'float4_e2m1':
      return _encode_e2m1(x)
    if self.floating is not None:
      # Beyond its range e4m3 would be NaN and e5m2 infinite.
      clipped = jnp.clip(x, -self.limit, self.limit).astype(self.floating)
      return jax.lax.bitcast_convert_type(clipped, jnp.int8)
    if self.table is None:
      return rounding.nearest(x, self.low, self.high).astype(jnp.int8)
    table = np.asarray(self.table, np.float32)
    side = 'right' if len(table) == 2 else 'left'   # the sign of zero is plus
    middles = jnp.asarray((table[1:] + table[:-1]) / 2)
    return jnp.searchsorted(middles, x, side=side).astype(jnp.int8)

  def encode_by_chance(self, x: jax.Array, noise: jax.Array) -> jax.Array:
    """One of the two codes around each `x`, with the chances that make the mean `x`.

    Args:
      x: float32, in units of the scale.
      noise: float32 in [0, 1), of the same shape.

    Returns:
      int8 codes of an integer grid without zero points, or of a float of eight bits.
    """
    if self.floating is None:
      return self.encode(jnp.floor(x + noise))
    info = jnp.finfo(self.floating)
    # The distance of neighbours: that of the exponent, or of the subnormals.
    exponent = jnp.maximum(jnp.frexp(x)[1] - 1, info.minexp) - info.nmant
    step = jnp.ldexp(jnp.ones_like(x), exponent)
    return self.encode(jnp.floor(x / step + noise) * step)

  def nearest(self, x: jax.Array) -> jax.Array:
    """The float32 value nearest to each `x`: `decode(encode(x))` of a grid without zero points.

    Integers are rounded without becoming codes on the way: casts cost XLA:CPU more than the rest.
    """
    if not self.is_integer:
      return self.decode(self.encode(x))
    found = rounding.nearest(x, self.low, self.high)
    # Codes have neither NaN nor a negative zero.
    return jnp.where(jnp.abs(found) > 0, found, 0.0)

  def decode(self, codes: jax.Array, zero: jax.Array | None = None) -> jax.Array:
    """The float32 value of each code, in units of the scale."""
    if self.zero_point:
      return codes.astype(jnp.float32) - zero
    if self.floating == 'float4_e2m1':
      both = np.asarray([*_E2M1, *(-v for v in _E2M1)], np.float32)
      return jnp.asarray(both)[codes.astype(jnp.int32) & 15]
    if self.floating is not None:
      bits = jax.lax.bitcast_convert_type(codes.astype(jnp.int8), jnp.dtype(self.floating))
      return bits.astype(jnp.float32)
    if self.table is None:
      return codes.astype(jnp.float32)
    return jnp.asarray(np.asarray(self.table, np.float32))[codes.astype(jnp.int32)]


def _encode_e2m1(x):
  # Half-way points in ascending order; at every other one half to even goes up.
  middles = [(a + b) / 2 for a, b in itertools.pairwise(_E2M1)]
  magnitude = jnp.abs(x)
  above = [magnitude >= m if n % 2 else magnitude > m for n, m in enumerate(middles)]
  code = sum((a.astype(jnp.int8) for a in above), jnp.int8(0))
  return jnp.where(jnp.signbit(x), code - jnp.int8(8), code)


def integer(bits: int, *, narrow: bool = True) -> Grid:
  """Signed integers of `bits` bits; `narrow` leaves out the lowest, so that the grid is symmetric.

  Raises:
    ValueError: `bits` is outside 2..8.
  """
  if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
    raise ValueError(f'bits must be an integer from 2 to 8, got {bits!r}.')
  high = 2 ** (bits - 1) - 1
  return Grid(f'int{bits}', bits, -high if narrow else -high - 1, high)


def _unsigned(bits):
  return Grid(f'uint{bits}', bits, 0, 2**bits - 1, zero_point=True, rule='minmax')


def _float8(name, dtype, limit):
  return Grid(name, 8, -128, 127, reach=limit, floating=dtype)


GRIDS = {g.name: g for g in (
    Grid('binary', 1, 0, 1, (-1.0, 1.0), rule='absmean'),
    Grid('ternary', 2, -1, 1, rule='absmean'),
    Grid('int2', 2, -2, 1, reach=1.5),
    *(integer(b) for b in (3, 4, 5, 6, 7, 8)),
    *(_unsigned(b) for b in (2, 3, 4, 5, 6, 7, 8)),
    Grid('nf4', 4, 0, 15, NF4),
    _float8('float8_e4m3', 'float8_e4m3fn', 448.0),
    _float8('float8_e5m2', 'float8_e5m2', 57344.0),
    Grid('float4_e2m1', 4, -8, 7, reach=6.0, floating='float4_e2m1'))}


def grid(name: str) -> Grid:
  """The grid called `name`.

  Raises:
    ValueError: no grid has that name; the message lists those that exist.

  Example:
    >>> grid('int4').limit
    7.0
  """
  if name not in GRIDS:
    raise ValueError(f'{name!r} is not a grid; known: {", ".join(sorted(GRIDS))}.')
  return GRIDS[name]
