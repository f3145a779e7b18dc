"""Scales of a matrix: one a tensor, output channel, group of rows, or block; by several rules.

A rule looks at the values of a cell and says which range the grid should span: `absmax` all of it,
`minmax` from the least to the greatest (zero included), `percentile` without the outliers, `mse`
whatever loses least, `kl` whatever changes the histogram least (`numerics.entropy`). `absmean`
(ternary, binary) and `hqq` say the scale themselves. `power_of_two` is that of the OCP Microscaling
formats, version 1.0, section 6.3, stored in float8_e8m0; `two_level` that of NVFP4: float8_e4m3
scales of a float32 factor.

HQQ is Badri and Shaji, "Half-Quadratic Quantization" (2023): robust fit under an l_p norm, p = 0.7,
of the zero point, which is then no whole number; of the scale on grids without zero points.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import entropy
from jaxsparse.numerics import grids
from jaxsparse.numerics import select

GRANULARITIES = ('tensor', 'channel', 'group', 'block')
RULES = ('absmax', 'absmean', 'minmax', 'percentile', 'mse', 'kl', 'hqq', 'power_of_two',
         'two_level')
_TINY = np.finfo(np.float32).tiny
_SHRINKS = 80   # candidates 1.00, 0.99, ... of `mse`, as in GPTQ's own code


class Scale(NamedTuple):
  """What turns codes into values: `decode(codes, zero) * scale * factor`.

  Attributes:
    scale: `[*batch, 1, 1]`, `[*batch, 1, O]`, `[*batch, G, O]` or `[*batch, G, H]`; float32, or
      float8 as the microscaling formats store it.
    zero: zero points of the same shape, uint8, float32 under `hqq`; None on grids without.
    factor: float32 `[*batch, 1, 1]`, of scales in two levels (NVFP4); else None.
  """

  scale: jax.Array
  zero: jax.Array | None = None
  factor: jax.Array | None = None

  def steps(self) -> jax.Array:
    """The float32 scale of each cell."""
    if self.factor is None:
      return self.scale.astype(jnp.float32)
    return self.scale.astype(jnp.float32) * self.factor


@functools.partial(jax.jit, static_argnames=('limit', 'granularity', 'group'))
def absmax(w: jax.Array, limit: float, *, granularity: str, group: Any = None) -> jax.Array:
  """The scale that maps the largest magnitude of each cell to `limit`; 1 where all are zero.

  The division by `limit` is a multiplication by its float32 reciprocal: XLA rewrites a division
  by a constant in just this way under `jit`, and eager and compiled codes must be the same.

  Args:
    w: `[..., R, O]`.
    limit: the grid's largest magnitude.
    granularity: 'tensor' (one cell a matrix), 'channel' (one an output), 'group' (one every
      `group` rows of an output; the tail may be shorter) or 'block' (one every `group[0]` rows and
      `group[1]` outputs).
    group: rows of a group; `(rows, outputs)` of a block.

  Returns:
    float32 `[..., 1, 1]`, `[..., 1, O]`, `[..., ceil(R / group), O]` or that of blocks.
  """
  return _joined(_of_peak(_peak(w, granularity, group), limit), granularity)


@functools.partial(jax.jit, static_argnames=('limit', 'granularity', 'group'))
def used(w: jax.Array, limit: float, *, granularity: str, group: Any = None) -> jax.Array:
  """Which cells `absmax` found something in, bool like its result; the others' scale is free."""
  peak = _peak(w, granularity, group)
  return _joined(peak * np.float32(1.0 / limit) >= _TINY, granularity)


def _peak(w, granularity, group):
  cells, _, axes = _cells(w.astype(jnp.float32), granularity, group)
  return jnp.abs(cells).max(axes, keepdims=True, initial=0.0)


@functools.partial(jax.jit, static_argnames=('grid', 'rule', 'granularity', 'group', 'q'))
def fit(w: jax.Array, grid: grids.Grid, *, rule: str, granularity: str, group: Any = None,
        q: float = 99.9, importance: jax.Array | None = None) -> Scale:
  """The scale, and zero point, of each cell.

  Args:
    w: `[..., R, O]`.
    grid: of the codes.
    rule: one of `RULES`.
    granularity: as for `absmax`.
    group: as for `absmax`.
    q: percentile of the magnitudes (of both ends, with zero points) that the range ends at.
    importance: weights `[..., R, 1]` of the squared errors, for `mse`.

  Returns:
    The `Scale`; of a cell that is all zero it is 1 (0 under `absmean`), and its zero point 0.
  """
  x, valid, axes = _cells(w.astype(jnp.float32), granularity, group)
  if importance is not None:
    importance = _cells(jnp.broadcast_to(importance.astype(jnp.float32), w.shape), granularity,
                        group)[0]
  found = _RULES[rule](x, valid, axes, grid, q, importance)
  joined = Scale(*(None if a is None else _joined(a, granularity) for a in found))
  if joined.zero is not None:
    joined = joined._replace(zero=joined.zero.astype(zero_dtype(rule)))
  return _two_levels(joined) if rule == 'two_level' else joined


def expand(scale: jax.Array, rows: int, group: Any, columns: int | None = None) -> jax.Array:
  """`scale` broadcastable against `[..., rows, columns]`: cells are repeated, the tail cut."""
  if group is None:
    return scale
  down, across = group if isinstance(group, tuple) else (group, 1)
  if across > 1:
    scale = jnp.repeat(scale, across, axis=-1)[..., :columns]
  if scale.shape[-2] == 1:
    return scale
  return jnp.repeat(scale, down, axis=-2)[..., :rows, :]


@functools.partial(jax.jit, static_argnames=('grid', 'group'))
def encode(w: jax.Array, scale: Scale, grid: grids.Grid, group: Any = None,
           noise: jax.Array | None = None) -> jax.Array:
  """Codes of a matrix `[..., R, O]`: the nearest, or by chance with `noise` in [0, 1)."""
  steps, zero = _expanded(scale, w.shape, group)
  # A scale of zero is a cell of zeros.
  x = w.astype(jnp.float32) / jnp.where(steps == 0, 1.0, steps)
  return grid.encode(x if noise is None else jnp.floor(x + noise), zero)


def nearest(w: jax.Array, scale: Scale, grid: grids.Grid, group: Any = None) -> jax.Array:
  """The float32 matrix of the nearest codes of `w`: `decode(encode(w))`, to the bit."""
  if grid.zero_point:
    return decode(encode(w, scale, grid, group), scale, grid, group)
  steps, _ = _expanded(scale, w.shape, group)
  return grid.nearest(w.astype(jnp.float32) / jnp.where(steps == 0, 1.0, steps)) * steps


def decode(codes: jax.Array, scale: Scale, grid: grids.Grid, group: Any = None) -> jax.Array:
  """The float32 matrix of `codes`."""
  steps, zero = _expanded(scale, codes.shape, group)
  return grid.decode(codes, zero) * steps


def _expanded(scale, shape, group):
  whole = lambda a: None if a is None else expand(a, shape[-2], group, shape[-1])
  zero = whole(scale.zero)
  return whole(scale.steps()), None if zero is None else zero.astype(jnp.float32)


def zero_dtype(rule: str):
  """What zero points are stored as: those of `hqq` are no whole numbers."""
  return jnp.float32 if rule == 'hqq' else jnp.uint8


def _cells(w, granularity, group):
  """`w` with its cells apart, which of it is no padding (None: all), and the axes of a cell."""
  if granularity == 'tensor':
    return w, None, (-2, -1)
  if granularity == 'channel':
    return w, None, (-2,)
  rows, columns = w.shape[-2:]
  down, across = (group, 1) if granularity == 'group' else group
  extra = -rows % down, -columns % across
  padded = jnp.pad(w, [(0, 0)] * (w.ndim - 2) + [(0, e) for e in extra])
  shape = (-1, down, columns) if granularity == 'group' else (
      (rows + extra[0]) // down, down, -1, across)
  axes = (-2,) if granularity == 'group' else (-3, -1)
  cells = padded.reshape(*w.shape[:-2], *shape)
  if not any(extra):
    return cells, None, axes
  inside = np.pad(np.ones((rows, columns), bool), [(0, e) for e in extra]).reshape(shape)
  return cells, jnp.broadcast_to(jnp.asarray(inside), cells.shape), axes


def _joined(found, granularity):
  if granularity == 'group':
    return found.squeeze(-2)
  return found.squeeze((-3, -1)) if granularity == 'block' else found


def _of_peak(peak, limit):
  scale = peak * np.float32(1.0 / limit)
  # A peak so small that its scale underflows is as good as zero.
  return jnp.where(scale >= _TINY, scale, 1.0)


def or_nan(extreme: jax.Array, x: jax.Array, axes: Any = None, *,
           keepdims: bool = False) -> jax.Array:
  """`extreme`, a minimum or maximum of `x` over `axes`; NaN where `x` has one.

  XLA:CPU's own reductions of more than some thirty entries lose it.
  """
  return jnp.where(jnp.isnan(x).any(axes, keepdims=keepdims), jnp.nan, extreme)


def extremes(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """The least and the greatest of zero and `x` over axes that stay with size 1.

  Minus zero may be the least. NaN is the one or the other.
  """
  return extremes_of([x], axes)[0]


def extremes_of(arrays: Sequence[jax.Array],
                axes: tuple[int, ...]) -> list[tuple[jax.Array, jax.Array]]:
  """`extremes` of each of several arrays of one shape and dtype.

  Over the last axes all in one pass, into which XLA:CPU fuses what makes the arrays, and reads once
  what they are made of: it writes the operand of a plain minimum or maximum out. Across rows that
  pass would read a column at a time. Bits of floats are compared, as integers, in the order of
  magnitudes, since comparisons of floats that must tell NaN apart make slower loops.
  """
  shape, dtype = arrays[0].shape, arrays[0].dtype
  long = {a for a in axes if shape[a] > 1}
  if long != {*range(len(shape) - len(long), len(shape))}:
    return [_ordered_peaks(x, axes) for x in arrays]
  signed, unsigned = (np.dtype(f'{kind}{dtype.itemsize}') for kind in 'iu')
  bits = [jax.lax.bitcast_convert_type(x, kind) for x in arrays for kind in (unsigned, signed)]
  # Minus zero and zero: what is above has the same sign.
  first = [unsigned.type(1 << (8 * dtype.itemsize - 1)), signed.type(0)] * len(arrays)
  most = lambda a, b: [jax.lax.max(i, j) for i, j in zip(a, b)]
  found = [jax.lax.bitcast_convert_type(jnp.expand_dims(x, axes), dtype)
           for x in jax.lax.reduce(bits, first, most, axes)]
  return list(zip(found[::2], found[1::2]))


def of_finite(x: jax.Array, axes: Any, grid: grids.Grid) -> jax.Array:
  """The least scale over axes, which stay with size 1, that clips nothing of a symmetric grid.

  What is not finite has no scale: its products are NaN rather than finite by accident.
  """
  axes = tuple(range(x.ndim)) if axes is None else (axes,) if isinstance(axes, int) else axes
  axes = tuple(sorted(a % x.ndim for a in axes))
  if axes == tuple(range(x.ndim - len(axes), x.ndim)):
    low, high = extremes(x, axes)
    peak = jnp.maximum(-low, high)
  else:
    peak = _magnitude(x, axes)
  return jnp.where(jnp.isfinite(peak), of_range(-peak, peak, grid).scale, jnp.nan)


def _magnitude(x, axes):
  """The largest `|x|` over axes, not the last ones; NaN where there is one, 0 of nothing.

  As integers, since bits of magnitudes are in their order, those of infinity and NaN above all
  others. XLA:CPU writes out what it reduces across rows: of eight neighbours, one.
  """
  kind = np.dtype(f'u{x.dtype.itemsize}')
  bits = jax.lax.bitcast_convert_type(jnp.abs(x), kind)
  first = axes[0]
  if x.shape[first] and x.shape[first] % 8 == 0:
    near = bits.reshape(*x.shape[:first], -1, 8, *x.shape[first + 1:])
    bits = functools.reduce(
        jnp.maximum, [jax.lax.index_in_dim(near, n, first + 1, keepdims=False) for n in range(8)])
  most = bits.max(axes, keepdims=True, initial=kind.type(0))
  return jax.lax.bitcast_convert_type(most, x.dtype)


def of_range(low, high, grid):
  """The scale, and zero point, of ranges `[low, high]` that hold 0; 1 where a range is empty."""
  if not grid.zero_point:
    return Scale(_of_peak(jnp.maximum(-low, high), grid.limit))
  # Halves are exact, so that this overflows nowhere and no fusion rounds it another way.
  scale = (high * 0.5 - low * 0.5) * np.float32(2.0 / (grid.high - grid.low))
  scale = jnp.where(scale >= _TINY, scale, 1.0)
  return Scale(scale, jnp.clip(jnp.round(-low / scale), grid.low, grid.high))


def _peaks(x, axes):
  return x.min(axes, keepdims=True, initial=0), x.max(axes, keepdims=True, initial=0)


def _ordered_peaks(x, axes):
  """`_peaks` that NaN is among: of integers in the order of the floats, below or above them all."""
  kind = np.dtype(f'i{x.dtype.itemsize}')
  # Of a negative number all bits but the sign are flipped; doing so again takes it back.
  flipped = lambda bits: bits ^ ((bits >> (8 * kind.itemsize - 1)) & jnp.iinfo(kind).max)
  ends = _peaks(flipped(jax.lax.bitcast_convert_type(x, kind)), axes)
  return tuple(jax.lax.bitcast_convert_type(flipped(end), x.dtype) for end in ends)


def _absmax(x, valid, axes, grid, q, importance):
  peak = jnp.abs(x).max(axes, keepdims=True, initial=0.0)
  return of_range(-peak, peak, grid)


def _minmax(x, valid, axes, grid, q, importance):
  return of_range(*_peaks(x, axes), grid)


def _absmean(x, valid, axes, grid, q, importance):
  if valid is None:
    mean = jnp.abs(x).mean(axes, keepdims=True)
  else:
    mean = jnp.abs(x).sum(axes, keepdims=True) / valid.sum(axes, keepdims=True)
  mean = jnp.where(mean >= _TINY, mean, 0.0)
  if not grid.zero_point:
    return Scale(mean * np.float32(1.0 / max(grid.limit, 1.0)))
  return of_range(-mean, mean, grid)


def _percentile(x, valid, axes, grid, q, importance):
  size = math.prod(x.shape[a] for a in axes)
  count = jnp.full([1] * x.ndim, size) if valid is None else valid.sum(axes, keepdims=True)
  # The nearest rank, from above; numpy's method 'inverted_cdf'.
  rank = count - jnp.ceil(count * np.float32(q / 100)).astype(jnp.int32) + 1
  rank = jnp.clip(rank, 1, count)
  at = lambda values: select.kth_largest(
      values if valid is None else jnp.where(valid, values, -jnp.inf), rank, axes=axes)
  if grid.zero_point:
    return of_range(jnp.minimum(-at(-x), 0), jnp.maximum(at(x), 0), grid)
  peak = at(jnp.abs(x))
  return of_range(-peak, peak, grid)


def _mse(x, valid, axes, grid, q, importance):
  low, high = _peaks(x, axes)
  peak = jnp.maximum(-low, high)
  low, high = (low, high) if grid.zero_point else (-peak, peak)

  def error(shrink):
    scale = of_range(low * shrink, high * shrink, grid)
    off = jnp.square(grid.decode(grid.encode(x / scale.scale, scale.zero), scale.zero)
                     * scale.scale - x)
    return (off if importance is None else off * importance).sum(axes, keepdims=True)

  def body(n, carry):
    best, chosen = carry
    shrink = 1.0 - n.astype(jnp.float32) * np.float32(0.01)
    found = error(shrink)
    better = found < best
    return jnp.where(better, found, best), jnp.where(better, shrink, chosen)

  start = jnp.full(peak.shape, jnp.inf), jnp.ones(peak.shape)
  _, shrink = jax.lax.fori_loop(0, _SHRINKS, body, start)
  return of_range(low * shrink, high * shrink, grid)


def _kl(x, valid, axes, grid, q, importance):
  if not grid.is_integer or grid.zero_point:
    raise ValueError(f'kl is for integers without zero points, not {grid.name}.')
  peak = jnp.abs(x).max(axes, keepdims=True, initial=0.0)
  apart = lambda a: jnp.moveaxis(a, axes, tuple(range(-len(axes), 0))).reshape(
      -1, math.prod(a.shape[n] for n in axes))
  top = jnp.where((peak >= _TINY) & jnp.isfinite(peak), peak, 1.0)
  counts = entropy.histogram(jnp.abs(apart(x)), apart(top)[:, 0])
  kept = entropy.threshold(counts, int(grid.high) + 1).reshape(peak.shape)
  peak = peak * (kept.astype(jnp.float32) * np.float32(1 / entropy.BINS))
  return of_range(-peak, peak, grid)


def _hqq(x, valid, axes, grid, q, importance):
  start = (_minmax if grid.zero_point else _absmax)(x, valid, axes, grid, q, importance)
  count = None if valid is None else valid.sum(axes, keepdims=True)
  mean = lambda a: (a.mean(axes, keepdims=True) if valid is None else
                    jnp.where(valid, a, 0).sum(axes, keepdims=True) / count)

  def off(scale):
    codes = grid.encode(x / scale.scale, scale.zero)
    return codes, x - grid.decode(codes, scale.zero) * scale.scale

  def body(n, carry):
    scale, best, least = carry
    codes, left = off(scale)
    # Badri and Shaji, equation 5: the proximal step of the l_p norm, in units of the first scale.
    unit = jnp.abs(left) / start.scale
    beta = 10.0 * 1.01 ** n.astype(jnp.float32)
    shrunk = jnp.maximum(unit - jnp.power(jnp.maximum(unit, 1e-6), -0.3) / beta, 0)
    kept = x - jnp.sign(left) * shrunk * start.scale
    if grid.zero_point:
      new = Scale(scale.scale, mean(codes.astype(jnp.float32) - kept / scale.scale))
    else:
      values = grid.decode(codes)
      fitted = mean(values * kept) / jnp.maximum(mean(values * values), _TINY)
      new = Scale(jnp.where(fitted >= _TINY, fitted, scale.scale))
    loss = mean(jnp.power(jnp.abs(off(new)[1]) / start.scale + 1e-12, 0.7))
    better = loss < least
    best = Scale(*(None if a is None else jnp.where(better, a, b) for a, b in zip(new, best)))
    return new, best, jnp.where(better, loss, least)

  loss = mean(jnp.power(jnp.abs(off(start)[1]) / start.scale + 1e-12, 0.7))
  return jax.lax.fori_loop(0, 20, body, (start, start, loss))[1]


def _power_of_two(x, valid, axes, grid, q, importance):
  if grid.zero_point:
    raise ValueError(f'power_of_two is for grids without zero points, not {grid.name}.')
  peak = jnp.abs(x).max(axes, keepdims=True, initial=0.0)
  exponent = jnp.frexp(peak)[1] - 1 - (math.frexp(grid.limit)[1] - 1)
  # The range of E8M0, without its one denormal float32.
  scale = jnp.ldexp(jnp.ones_like(peak), jnp.clip(exponent, -126, 127))
  return Scale(jnp.where(peak >= _TINY, scale, 1.0).astype(jnp.float8_e8m0fnu))


def _two_level(x, valid, axes, grid, q, importance):
  if grid.zero_point:
    raise ValueError(f'two_level is for grids without zero points, not {grid.name}.')
  return Scale(jnp.abs(x).max(axes, keepdims=True, initial=0.0) * np.float32(1.0 / grid.limit))


def _two_levels(scale):
  """Scales in float8_e4m3 of one float32 factor a matrix, so that the largest is 448."""
  factor = _of_peak(scale.scale.max((-2, -1), keepdims=True, initial=0.0), 448.0)
  # The smallest float8, not zero, where a cell is small beside the largest.
  inside = jnp.clip(scale.scale / factor, 2.0**-9, 448.0)
  return Scale(inside.astype(jnp.float8_e4m3fn), None, factor)


_RULES = {'absmax': _absmax, 'absmean': _absmean, 'minmax': _minmax, 'percentile': _percentile,
          'mse': _mse, 'kl': _kl, 'hqq': _hqq, 'power_of_two': _power_of_two,
          'two_level': _two_level}
