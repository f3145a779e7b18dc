"""Weights in four bits, two to a byte, with a scale for each group of rows and output.

A strip is 16 outputs; byte `[i, n, j]` of a strip holds the codes of output n in rows `8 i + j`
(low nibble) and `8 i + 4 + j` (high), each plus 8.
"""

import functools

import jax
import jax.numpy as jnp

from jaxsparse.kernels.native import activations
from jaxsparse.kernels.native import product

ROWS, OUTPUTS = 8, 16


def pack(codes: jax.Array, scale: jax.Array) -> dict[str, jax.Array]:
  """The operands of `int4_matmul`; may be traced.

  Args:
    codes: `[R, O]` integers in -8..7.
    scale: float32 `[groups, O]`.
  """
  r, o = codes.shape
  raw = jnp.pad((codes.astype(jnp.int8) + 8).astype(jnp.uint8), ((0, -r % ROWS), (0, 0)),
                constant_values=8)
  raw = jnp.pad(raw, ((0, 0), (0, -o % OUTPUTS)), constant_values=8)
  cut = raw.reshape(-(-r // ROWS), 2, 4, -(-o // OUTPUTS), OUTPUTS).transpose(3, 0, 1, 4, 2)
  packed = cut[:, :, 0] | (cut[:, :, 1] << 4)
  padded = jnp.pad(jnp.asarray(scale, jnp.float32), ((0, 0), (0, -o % OUTPUTS)))
  return {'packed': packed, 'scale': padded}


def _codes(packed, depth, outputs):
  strips, tall = packed.shape[:2]
  both = jnp.stack([packed & 15, packed >> 4], axis=2).astype(jnp.int8) - 8
  return both.transpose(1, 2, 4, 0, 3).reshape(tall * ROWS, strips * OUTPUTS)[:depth, :outputs]


def dense(packed, scale, *, group: int, depth: int, outputs: int) -> jax.Array:
  """The matrix `[depth, outputs]`, float32."""
  scales = jnp.repeat(scale, group, axis=0)[:depth, :outputs]
  return _codes(packed, depth, outputs).astype(jnp.float32) * scales


@functools.partial(jax.jit, static_argnames=('group', 'outputs'))
def int4_matmul(x: jax.Array, packed: jax.Array, scale: jax.Array, *, group: int,
                outputs: int) -> jax.Array:
  """`x @ (codes * scale)` with `x` rounded to eight bits, row by row, and codes of four.

  Args:
    x: `[..., rows, R]`, floating; see `activations.rounded`. Gradients are those of the product
      without that rounding.
    packed: uint8 `[ceil(outputs / 16), ceil(R / 8), 16, 4]`, from `pack`.
    scale: float32 `[ceil(R / group), 16 * strips]`.
    group: rows that share a scale, a multiple of 8; one group may hold all rows.
    outputs: columns of the matrix.

  Returns:
    `[..., rows, outputs]` of x's dtype. A row of `x` that holds a NaN or an infinity gives NaN.

  Raises:
    ValueError: a group that is no multiple of 8, or more than 65,536 rows of weights.

  Example:
    >>> codes = jnp.full((8, 2), -3)
    >>> operands = pack(codes, jnp.array([[1.0, 2.0]]))
    >>> int4_matmul(jnp.full((1, 8), 127.0), **operands, group=8, outputs=2).tolist()
    [[-3048.0, -6096.0]]
  """
  activations.check_depth(x.shape[-1])
  if group < ROWS or group % ROWS:
    raise ValueError(f'A group must be a multiple of {ROWS} rows, got {group}.')

  def same(x, packed, scale):
    left, x_scale = activations.rounded(x)
    codes, depth = _codes(packed, x.shape[-1], outputs), x.shape[-1]
    groups = -(-depth // group)
    edge = groups * group - depth
    left = jnp.pad(left, ((0, 0), (0, edge))).reshape(x.shape[0], groups, group)
    codes = jnp.pad(codes, ((0, edge), (0, 0))).reshape(groups, group, outputs)
    total = jax.lax.dot_general(left, codes, (((2,), (1,)), ((1,), (0,))),
                                preferred_element_type=jnp.int32)
    return (total.astype(jnp.float32) * scale[:, None, :outputs]).sum(0) * x_scale

  def smooth(x, packed, scale):
    return x @ dense(packed, scale, group=group, depth=x.shape[-1], outputs=outputs)

  return product.product(x, (packed, scale), outputs, target='nibbles', same=same, smooth=smooth,
                         group=group)
