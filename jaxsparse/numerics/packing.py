"""Small unsigned integers packed several to a byte, along the rows of a matrix.

int2 arrays abort XLA:CPU and int4 arrays report one byte an element, so codes are stored as uint8.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_WIDTHS = (1, 2, 4, 8)


def width(bits: int) -> int:
  """The storage width, in bits, of codes of `bits` bits: 1, 2, 4 or 8.

  Raises:
    ValueError: `bits` is outside 1..8.
  """
  for w in _WIDTHS:
    if 1 <= bits <= w:
      return w
  raise ValueError(f'Codes of {bits} bits cannot be packed; expected 1 to 8.')


# Compiled by shape, so that packing a model outside jit costs few programs.
@functools.partial(jax.jit, static_argnames=('bits', 'axis'))
def pack(codes: jax.Array, bits: int, axis: int = -2) -> jax.Array:
  """Packs `codes` (integers in `[0, 2^bits)`) along `axis`, the first code in the lowest bits.

  Args:
    codes: `[..., N, ...]` integers.
    bits: bits of a code; stored in `width(bits)`.
    axis: the axis to pack along; its tail is padded with zeros.

  Returns:
    uint8 of shape `[..., ceil(N * width / 8), ...]`.
  """
  w = width(bits)
  codes = jnp.moveaxis(codes.astype(jnp.uint8), axis, 0)
  per = 8 // w
  if per > 1:
    padding = [(0, -codes.shape[0] % per)] + [(0, 0)] * (codes.ndim - 1)
    groups = jnp.pad(codes, padding)
    groups = groups.reshape(groups.shape[0] // per, per, *codes.shape[1:])
    codes = groups[:, 0]
    for i in range(1, per):
      codes = codes | (groups[:, i] << np.uint8(w * i))
  return jnp.moveaxis(codes, 0, axis)


@functools.partial(jax.jit, static_argnames=('bits', 'size', 'axis'))
def unpack(packed: jax.Array, bits: int, size: int, axis: int = -2) -> jax.Array:
  """The inverse of `pack`: uint8 codes with `size` entries along `axis`."""
  w = width(bits)
  per = 8 // w
  if per == 1:
    return packed
  packed = jnp.moveaxis(packed, axis, 0)
  mask = np.uint8(2**w - 1)
  parts = [(packed >> np.uint8(w * i)) & mask for i in range(per)]
  codes = jnp.stack(parts, axis=1).reshape(packed.shape[0] * per, *packed.shape[1:])
  return jnp.moveaxis(codes[:size], 0, axis)
