"""Codes of optimizer states: square-root companding in blocks, in which nothing becomes zero.

Of a block with largest magnitude a, `x = sign(x) (|code| / K)^2 a`: levels lie densest near zero,
where Adam's second moments are, and `sqrt(v)` is linear in its code. Only an exact zero has the
code 0; what would round to it has the code 1, as a second moment of zero under a momentum that is
not is a division by epsilon: what makes other 8-bit Adams end in NaN. Blocks without negative
values spend no code on signs (K is 2^bits - 1 instead of 2^(bits-1) - 1); the sign of their stored
scale says so. NaN and infinity spread over their block.
"""

import functools
import math
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
  split = [_split(x.astype(jnp.float32), geometry(shape, block)) for x in arrays]
  ranges = scales.extremes_of([blocks for blocks, _ in split], split[0][1])
  out = []
  for (blocks, _), (low, high) in zip(split, ranges):
    codes, scale = _coded(blocks, low, high, bits)
    codes = _joined(codes, shape)
    out.append((_packed(codes) if bits == 4 else codes, scale.reshape(blocks.shape[0::2])))
  return out


def _coded(blocks, low, high, bits):
  peak = jnp.maximum(high, -low)
  signs = low < 0
  half, full = 2.0 ** (bits - 1) - 1, 2.0**bits - 1
  levels = jnp.where(signs, half, full)
  # Of a block, so that an entry costs a product and a root; bounded, so that it is finite.
  inverse = levels * levels / jnp.maximum(peak, 2e-34)
  magnitude = jnp.sqrt(jnp.maximum(jnp.abs(blocks * inverse), 1.0))
  signed = jnp.where(blocks == 0, 0.0, jnp.where(blocks < 0, -magnitude, magnitude))
  return _byte(signed + jnp.where(signs, half + 1, 0.0)), jnp.where(signs, peak, -peak)


@functools.partial(jax.jit, static_argnames=('shape', 'bits', 'block'))
def decode(codes: jax.Array, scale: jax.Array, shape: tuple[int, ...], *, bits: int,
           block: int) -> jax.Array:
  """The float32 array of `shape` that was encoded."""
  codes = _unpacked(codes, shape[0]) if bits == 4 else codes
  blocks, _ = _split(codes, geometry(shape, block))
  scale = scale.reshape([n for pair in zip(scale.shape, [1] * scale.ndim) for n in pair])
  half, full = 2.0 ** (bits - 1) - 1, 2.0**bits - 1
  signs = scale > 0   # a block of zeros has the scale zero, and no sign
  signed = blocks.astype(jnp.float32) - jnp.where(signs, half + 1, 0.0)
  step = jnp.abs(scale) * jnp.where(signs, np.float32(1 / half**2), np.float32(1 / full**2))
  return _joined(signed * jnp.abs(signed) * step, shape)


def _byte(x):
  """float32 in [0, 255] rounded half to even, as uint8: the last bits of `x + 2^23`.

  XLA:CPU vectorizes it, and a cast, which must clip, not.
  """
  bits = jax.lax.bitcast_convert_type(x + np.float32(2.0**23), jnp.uint32)
  return bits.astype(jnp.uint8)


def _split(x, extent):
  """`x` with each axis as (blocks, inside), padded with zeros; and the inner axes."""
  padding = [(0, -n % b) for n, b in zip(x.shape, extent)]
  if any(p for _, p in padding):
    x = jnp.pad(x, padding)
  shape = [m for n, b in zip(x.shape, extent) for m in (n // b, b)]
  return x.reshape(shape), tuple(range(1, len(shape), 2))


def _joined(blocks, shape):
  whole = [math.prod(blocks.shape[n:n + 2]) for n in range(0, blocks.ndim, 2)]
  out = blocks.reshape(whole)
  return out if tuple(whole) == tuple(shape) else out[tuple(slice(n) for n in shape)]


def _packed(codes):
  # Neighbouring rows share a byte: XLA:CPU vectorizes that, and neighbouring columns not.
  if codes.shape[0] % 2:
    codes = jnp.pad(codes, [(0, 1)] + [(0, 0)] * (codes.ndim - 1))
  pairs = codes.reshape(-1, 2, *codes.shape[1:])
  return pairs[:, 0] | (pairs[:, 1] << np.uint8(4))


def _unpacked(codes, size):
  shifts = np.array([0, 4], np.uint8).reshape(1, 2, *[1] * (codes.ndim - 1))
  pairs = (jnp.expand_dims(codes, 1) >> shifts) & np.uint8(15)
  return pairs.reshape(-1, *codes.shape[1:])[:size]
