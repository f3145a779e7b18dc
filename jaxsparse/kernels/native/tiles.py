"""Weights in eight bits, as tiles of 4 rows by 16 outputs, all of them or those kept.

A strip is 16 outputs; tile i of a strip holds `[16, 4]` int8 codes, the four rows that are
multiplied at once side by side. `sums` are those of each output's codes, which the instruction
for eight bits needs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.native import activations
from jaxsparse.kernels.native import product
from jaxsparse.kernels.native import vectors

ROWS, OUTPUTS = 4, 16


def pack(codes: jax.Array, scale: jax.Array) -> dict[str, jax.Array]:
  """The operands of `int8_matmul`, of codes `[R, O]` int8 and scales `[O]`; may be traced."""
  tiles = _cut(codes)
  sums = tiles.sum((1, 3), dtype=jnp.int32).reshape(-1)
  return {'tiles': tiles, 'sums': sums, 'scale': _padded(scale)}


def pack_sparse(codes, scale) -> dict[str, np.ndarray]:
  """The operands of `int8_tile_matmul`: the tiles of concrete codes that are not all zero."""
  tiles = np.asarray(_cut(codes))
  strip, index = np.nonzero(tiles.any((2, 3)))
  start = np.searchsorted(strip, np.arange(len(tiles) + 1))
  sums = tiles.sum((1, 3), dtype=np.int32).reshape(-1)
  return {'tiles': tiles[strip, index], 'index': index.astype(np.int32),
          'start': start.astype(np.int32), 'sums': sums, 'scale': np.asarray(_padded(scale))}


def _cut(codes):
  r, o = codes.shape
  padded = jnp.pad(codes.astype(jnp.int8), ((0, -r % ROWS), (0, -o % OUTPUTS)))
  cut = padded.reshape(-(-r // ROWS), ROWS, -(-o // OUTPUTS), OUTPUTS)
  return cut.transpose(2, 0, 3, 1)


def _padded(scale):
  return jnp.pad(jnp.asarray(scale, jnp.float32), (0, -scale.shape[-1] % OUTPUTS))


def _codes(tiles, depth, outputs):
  strips, tall = tiles.shape[:2]
  return tiles.transpose(1, 3, 0, 2).reshape(tall * ROWS, strips * OUTPUTS)[:depth, :outputs]


def _scattered(tiles, index, start, depth):
  full = jnp.zeros((start.shape[0] - 1, -(-depth // ROWS), OUTPUTS, ROWS), tiles.dtype)
  return full.at[vectors.owner(start, index.shape[0]), index].add(tiles, mode='drop')


def dense(tiles, sums, scale, *, depth: int, outputs: int) -> jax.Array:
  """The matrix `[depth, outputs]`, float32."""
  return _codes(tiles, depth, outputs).astype(jnp.float32) * scale[None, :outputs]


def dense_sparse(tiles, index, start, sums, scale, *, depth: int, outputs: int) -> jax.Array:
  """The matrix `[depth, outputs]`, float32."""
  return dense(_scattered(tiles, index, start, depth), sums, scale, depth=depth, outputs=outputs)


def _rounded_product(x, codes, scale):
  left, x_scale = activations.rounded(x)
  total = jax.lax.dot(left, codes, preferred_element_type=jnp.int32)
  return total.astype(jnp.float32) * scale[None] * x_scale


@functools.partial(jax.jit, static_argnames='outputs')
def int8_matmul(x: jax.Array, tiles: jax.Array, sums: jax.Array, scale: jax.Array, *,
                outputs: int) -> jax.Array:
  """`x @ (codes * scale)` with `x` rounded to eight bits too, row by row.

  Args:
    x: `[..., rows, R]`, floating; see `activations.rounded`. Gradients are those of the product
      without that rounding.
    tiles: int8 `[ceil(outputs / 16), ceil(R / 4), 16, 4]`, from `pack`.
    sums: int32 `[16 * strips]`.
    scale: float32 `[16 * strips]`.
    outputs: columns of the matrix.

  Returns:
    `[..., rows, outputs]` of x's dtype, exact but for the rounding of `x`. A row of `x` that holds
    a NaN or an infinity gives NaN.

  Raises:
    ValueError: more than 65,536 rows of weights.

  Example:
    >>> operands = pack(np.array([[1, 2], [3, 4]]), np.array([1.0, 0.5]))
    >>> int8_matmul(jnp.array([[127.0, 0.0]]), **operands, outputs=2).tolist()
    [[127.0, 127.0]]
  """
  activations.check_depth(x.shape[-1])

  def same(x, tiles, sums, scale):
    return _rounded_product(x, _codes(tiles, x.shape[-1], outputs), scale[:outputs])

  def smooth(x, tiles, sums, scale):
    return x @ dense(tiles, sums, scale, depth=x.shape[-1], outputs=outputs)

  return product.product(x, (tiles, sums, scale), outputs, target='tiles', same=same,
                         smooth=smooth)


@functools.partial(jax.jit, static_argnames='outputs')
def int8_tile_matmul(x: jax.Array, tiles: jax.Array, index: jax.Array, start: jax.Array,
                     sums: jax.Array, scale: jax.Array, *, outputs: int) -> jax.Array:
  """`int8_matmul` of the tiles that are kept; the others are zero.

  Args:
    x: `[..., rows, R]`, floating.
    tiles: int8 `[kept, 16, 4]`, from `pack_sparse`.
    index: int32 `[kept]`, which four rows each has, ascending within a strip.
    start: int32 `[strips + 1]`, where the tiles of each strip of 16 outputs begin.
    sums: int32 `[16 * strips]`.
    scale: float32 `[16 * strips]`.
    outputs: columns of the matrix.

  Returns:
    `[..., rows, outputs]` of x's dtype.

  Raises:
    ValueError: more than 65,536 rows of weights.
    jax.errors.JaxRuntimeError: when run natively, an index lies outside the matrix.

  Example:
    >>> codes = np.zeros((8, 16), np.int8)
    >>> codes[5, 3] = 7
    >>> operands = pack_sparse(codes, np.ones(16))
    >>> operands['index'].tolist(), operands['start'].tolist()
    ([1], [0, 1])
    >>> float(int8_tile_matmul(jnp.full((1, 8), 127.0), **operands, outputs=16)[0, 3])
    889.0
  """
  activations.check_depth(x.shape[-1])

  def same(x, tiles, index, start, sums, scale):
    full = _scattered(tiles, index, start, x.shape[-1])
    return _rounded_product(x, _codes(full, x.shape[-1], outputs), scale[:outputs])

  def smooth(x, *operands):
    return x @ dense_sparse(*operands, depth=x.shape[-1], outputs=outputs)

  return product.product(x, (tiles, index, start, sums, scale), outputs, target='sparse_tiles',
                         same=same, smooth=smooth)
