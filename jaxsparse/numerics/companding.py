"""Codes of optimizer states: square-root companding in blocks, in which nothing becomes zero.

Of a block with largest magnitude a, `x = sign(x) (|code| / K)^2 a`: levels lie densest near zero,
where Adam's second moments are, and `sqrt(v)` is linear in its code. Only an exact zero has the
code 0; what would round to it has the code 1, as a second moment of zero under a momentum that is
not is a division by epsilon: what makes other 8-bit Adams end in NaN. Blocks without negative
values spend no code on signs (K is 2^bits - 1 instead of 2^(bits-1) - 1); the sign of their stored
scale says so. NaN and infinity spread over their block. Denormal numbers are zeros, as to XLA, and
values of blocks whose largest is below 2e-34 may become so.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import scales


def geometry(shape: tuple[int, ...], block: int) -> tuple[int, ...]:
  """How far a block reaches along each axis: the last axis first where it is long enough.

  Example:
    >>> geometry((64, 256), 128), geometry((256, 10), 128), geometry((3, 3, 32, 32), 128)
    ((1, 128), (128, 1), (1, 1, 4, 32))
  """
  extent, left = [1] * len(shape), block
  order = sorted(range(len(shape)), key=lambda a: (-shape[a], -a))
  if shape and shape[-1] >= block:
    order = [len(shape) - 1]
  for a in order:
    extent[a] = min(shape[a], left)
    left //= max(extent[a], 1)
    if left <= 1:
      break
  return tuple(extent)


def encode(x: jax.Array, *, bits: int, block: int) -> tuple[jax.Array, jax.Array]:
  """Codes and scales of `x`, of any shape with no axis of size 0.

  Args:
    x: floating.
    bits: 8 or 4.
    block: values that share a scale, at most.

  Returns:
    uint8 codes, of the shape of `x` for 8 bits, two to a byte along its first axis for 4; and
    float32 scales `[ceil(n / extent), ...]`, one axis for each of `x`.
  """
  return encode_alike([x], bits=bits, block=block)[0]


@functools.partial(jax.jit, static_argnames=('bits', 'block'))
def encode_alike(arrays: Sequence[jax.Array], *, bits: int,
                 block: int) -> list[tuple[jax.Array, jax.Array]]:
  """`encode` of each of several arrays of one shape, whose ranges are found in one pass."""
  shape = arrays[0].shape
  extent = geometry(shape, block)
  arrays = [x.astype(jnp.float32) for x in arrays]
  out = []
  for x, (low, high) in zip(arrays, _ranges(arrays, extent)):
    codes, scale = _coded(x, low, high, extent, bits)
    out.append((_packed(codes) if bits == 4 else codes, scale))
  return out


def _ranges(arrays, extent):
  """The least and the greatest of each block, and zero, for each of several arrays alike."""
  shape = arrays[0].shape
  extent = [min(n, b) for n, b in zip(shape, extent)]
  for a, (n, b) in enumerate(zip(shape, extent)):
    if n % b:
      # The shorter last blocks apart: XLA:CPU vectorizes slices, and padding not.
      parts = [_ranges([jax.lax.slice_in_dim(x, *ends, axis=a) for x in arrays], extent)
               for ends in ((0, n - n % b), (n - n % b, n))]
      return [tuple(jnp.concatenate(ends, a) for ends in zip(*pairs)) for pairs in zip(*parts)]
  split = [m for n, b in zip(shape, extent) for m in (n // b, b)]
  found = scales.extremes_of([x.reshape(split) for x in arrays], tuple(range(1, len(split), 2)))
  return [tuple(end.reshape(split[::2]) for end in pair) for pair in found]


def _coded(x, low, high, extent, bits):
  peak = jnp.maximum(high, -low)
  signs = low < 0
  half, full = 2.0 ** (bits - 1) - 1, 2.0**bits - 1
  levels = jnp.where(signs, half, full)
  # Of a block, so that an entry costs a product and a root; bounded, so that it is finite.
  inverse = levels * levels / jnp.maximum(peak, 2e-34)
  # The last bits of a float32 beyond 2^23 are a whole number, rounded half to even. A cast, which
  # must clip, is not vectorized. What the division gives is exact: 2^23, and where there are signs
  # the code of zero more.
  zero = 2.0**23 + half + 1
  zero = zero / jnp.where(signs, 1.0, zero * 2.0**-23)
  # Magnitudes first: XLA writes `x` out for a product with what was made of it.
  square = jnp.maximum(jnp.abs(x) * _spread(inverse, x.shape, extent), 1.0)
  root = jnp.sqrt(jnp.where(x == 0, 0.0, square))
  # The sign is a bit that moves: a choice of the root or its negative takes longer.
  bits_of = lambda a: jax.lax.bitcast_convert_type(a, jnp.uint32)
  signed = jax.lax.bitcast_convert_type(
      bits_of(root) | (bits_of(x) & np.uint32(1 << 31)), jnp.float32)
  codes = bits_of(signed + _spread(zero, x.shape, extent))
  return codes.astype(jnp.uint8), jnp.where(signs, peak, -peak)


@functools.partial(jax.jit, static_argnames=('shape', 'bits', 'block'))
def decode(codes: jax.Array, scale: jax.Array, shape: tuple[int, ...], *, bits: int,
           block: int) -> jax.Array:
  """The float32 array of `shape` that was encoded."""
  codes = _unpacked(codes, shape[0]) if bits == 4 else codes
  half, full = 2.0 ** (bits - 1) - 1, 2.0**bits - 1
  signs = scale > 0   # a block of zeros has the scale zero, and no sign
  # Divisions, as XLA computes them once a block: a choice it would repeat for every few values.
  step = jnp.sqrt(jnp.abs(scale)) / jnp.where(signs, half, full)
  # `(half + 1) * step`, exactly, where there are signs: zero stays zero.
  zero = step / jnp.where(signs, 1 / (half + 1), jnp.inf)
  extent = geometry(shape, block)
  signed = codes.astype(jnp.float32) * _spread(step, shape, extent) - _spread(zero, shape, extent)
  return signed * jnp.abs(signed)


def _spread(blocks, shape, extent):
  """What blocks have, for each of their values."""
  for a, (n, b) in enumerate(zip(shape, extent)):
    if b > 1:
      blocks = jax.lax.slice_in_dim(jnp.repeat(blocks, b, axis=a), 0, n, axis=a)
  return blocks


def _packed(codes):
  # Neighbouring rows share a byte, and the sum is a reduction: XLA:CPU vectorizes neither
  # neighbouring columns nor the sum of two slices.
  places = np.resize(np.array([1, 16], np.uint8), codes.shape[0] + codes.shape[0] % 2)
  if codes.shape[0] % 2:
    # A last row twice, for nothing: padding is not vectorized.
    codes, places[-1] = codes[np.minimum(np.arange(len(places)), codes.shape[0] - 1)], 0
  pairs = lambda a: a.reshape(-1, 2, *a.shape[1:])
  return (pairs(codes) * pairs(places.reshape(-1, *[1] * (codes.ndim - 1)))).sum(1, dtype=jnp.uint8)


def _unpacked(codes, size):
  shifts = np.array([0, 4], np.uint8).reshape(1, 2, *[1] * (codes.ndim - 1))
  pairs = (jnp.expand_dims(codes, 1) >> shifts) & np.uint8(15)
  return pairs.reshape(-1, *codes.shape[1:])[:size]
