"""Small unsigned integers packed several to a byte, along the rows of a matrix.

Codes follow each other from the lowest bit of the first byte on; those of 3, 5 and 6 bits cross the
edges of bytes, so that eight of them take as many bytes as one takes bits.

int2 arrays abort XLA:CPU and int4 arrays report one byte an element, so codes are stored as uint8.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Seven bits are stored in eight: a code is then a byte, and rows are read one by one.
_WIDTHS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 8: 8}


def width(bits: int) -> int:
  """The storage width, in bits, of codes of `bits` bits: as many, but 8 for 7.

  Raises:
    ValueError: `bits` is outside 1..8.
  """
  if bits not in _WIDTHS:
    raise ValueError(f'Codes of {bits} bits cannot be packed; expected 1 to 8.')
  return _WIDTHS[bits]


# Compiled by shape, so that packing a model outside jit costs few programs.
@functools.partial(jax.jit, static_argnames=('bits', 'axis'))
def pack(codes: jax.Array, bits: int, axis: int = -2) -> jax.Array:
  """Packs `codes` (integers in `[0, 2^bits)`) along `axis`, the first code in the lowest bits.

  Args:
    codes: `[..., N, ...]` integers.
    bits: bits of a code; stored in `width(bits)`.
    axis: the axis to pack along; the last byte is filled up with zeros.

  Returns:
    uint8 of shape `[..., ceil(N * width / 8), ...]`.
  """
  w = width(bits)
  codes = jnp.moveaxis(codes.astype(jnp.uint8), axis, 0)
  size = codes.shape[0]
  if w < 8:
    codes = _grouped(codes, 8 // w if 8 % w == 0 else 8)
    parts = [0] * (codes.shape[1] * w // 8)
    for i in range(codes.shape[1]):
      byte, shift = divmod(i * w, 8)
      parts[byte] = parts[byte] | (codes[:, i] << np.uint8(shift))
      if shift + w > 8:   # a code over the edge of a byte
        parts[byte + 1] = codes[:, i] >> np.uint8(8 - shift)
    whole = jnp.stack(parts, axis=1)
    codes = _joined(whole)[:-(-size * w // 8)]
  return jnp.moveaxis(codes, 0, axis)


def _grouped(rows, size):
  """`rows` in groups of `size`, the last filled up with zeros."""
  padding = [(0, -rows.shape[0] % size)] + [(0, 0)] * (rows.ndim - 1)
  padded = jnp.pad(rows, padding)
  return padded.reshape(padded.shape[0] // size, size, *rows.shape[1:])


def _joined(groups):
  """The rows of all groups; sizes are said, as -1 stands for nothing where there are no columns."""
  return groups.reshape(groups.shape[0] * groups.shape[1], *groups.shape[2:])


@functools.partial(jax.jit, static_argnames=('bits', 'size', 'axis'))
def unpack(packed: jax.Array, bits: int, size: int, axis: int = -2) -> jax.Array:
  """The inverse of `pack`: uint8 codes with `size` entries along `axis`."""
  w = width(bits)
  if w == 8:
    return packed
  per, unit = (8 // w, 1) if 8 % w == 0 else (8, w)   # codes in so many bytes
  stored = _grouped(jnp.moveaxis(packed, axis, 0), unit)
  mask, parts = np.uint8(2**w - 1), []
  for i in range(per):
    byte, shift = divmod(i * w, 8)
    code = stored[:, byte] >> np.uint8(shift)
    if shift + w > 8:
      code = code | (stored[:, byte + 1] << np.uint8(8 - shift))
    parts.append(code & mask)
  return jnp.moveaxis(_joined(jnp.stack(parts, axis=1))[:size], 0, axis)
