"""Representable values of a quantized weight: symmetric integers and NF4.

Integers are narrow by default, `[-(2^(b-1) - 1), 2^(b-1) - 1]` with scale `absmax / (2^(b-1) - 1)`
(the GPTQ and TFLite convention: the largest value is exact). NF4 is the table of Dettmers et al.,
"QLoRA" (arXiv:2305.14314), appendix E: quantiles of a normal distribution, absmax scaled.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import rounding

NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0)


class Grid(NamedTuple):
  """A set of codes: integers `low..high`, or the entries of `table`, in units of the scale."""

  name: str
  bits: int
  low: int
  high: int
  table: tuple[float, ...] | None = None

  @property
  def limit(self) -> float:
    """The grid's largest magnitude, what `absmax` is scaled to."""
    return float(self.high) if self.table is None else max(self.table)

  @property
  def zero_code(self) -> int:
    """The code of the value 0."""
    return 0 if self.table is None else self.table.index(0.0)

  def encode(self, x: jax.Array) -> jax.Array:
    """The nearest code of each `x` (float32, in units of the scale), as int8."""
    if self.table is None:
      return rounding.nearest(x, self.low, self.high).astype(jnp.int8)
    table = np.asarray(self.table, np.float32)
    return jnp.searchsorted(jnp.asarray((table[1:] + table[:-1]) / 2), x).astype(jnp.int8)

  def decode(self, codes: jax.Array) -> jax.Array:
    """The float32 value of each code, in units of the scale."""
    if self.table is None:
      return codes.astype(jnp.float32)
    return jnp.asarray(np.asarray(self.table, np.float32))[codes.astype(jnp.int32)]


def integer(bits: int, *, narrow: bool = True) -> Grid:
  """Signed integers of `bits` bits; `narrow` leaves out the lowest, so that the grid is symmetric.

  Raises:
    ValueError: `bits` is outside 2..8.
  """
  if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
    raise ValueError(f'bits must be an integer from 2 to 8, got {bits!r}.')
  high = 2 ** (bits - 1) - 1
  return Grid(f'int{bits}', bits, -high if narrow else -high - 1, high)


GRIDS = {g.name: g for g in (*(integer(b) for b in (3, 4, 5, 6, 7, 8)),
                             Grid('nf4', 4, 0, 15, NF4))}


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
