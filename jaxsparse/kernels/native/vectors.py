"""Weights kept as 1 x 16, 1 x 32 or 1 x 64 vectors: a row of the matrix at a group of outputs.

A matrix `[R, O]` is cut into groups of `length` outputs. Of group g the vectors
`start[g]..start[g + 1]` are kept, each with the row of the matrix it is in, ascending.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.native import product

LENGTHS = (16, 32, 64)


def pack(matrix, length: int) -> dict[str, np.ndarray]:
  """The operands of `vector_sparse_matmul`: vectors of a matrix `[R, O]` that are not all zero.

  Args:
    matrix: `[R, O]`, concrete.
    length: outputs of a vector, 16, 32 or 64.

  Raises:
    ValueError: another length.
  """
  _check(length)
  matrix = np.asarray(matrix, np.float32)
  groups = -(-matrix.shape[1] // length)
  padded = np.pad(matrix, ((0, 0), (0, groups * length - matrix.shape[1])))
  cut = padded.reshape(matrix.shape[0], groups, length).transpose(1, 0, 2)
  group, index = np.nonzero((cut != 0).any(-1))
  start = np.searchsorted(group, np.arange(groups + 1))
  return {'values': cut[group, index], 'index': index.astype(np.int32),
          'start': start.astype(np.int32)}


def _check(length):
  if length not in LENGTHS:
    raise ValueError(f'Vectors are 16, 32 or 64 outputs long, got {length}.')


def dense(values, index, start, *, depth: int, outputs: int) -> jax.Array:
  """The matrix `[depth, outputs]`."""
  groups = start.shape[0] - 1
  group = owner(start, index.shape[0])
  full = jnp.zeros((depth, groups, values.shape[-1]), values.dtype)
  full = full.at[index, group].add(values, mode='drop')
  return full.reshape(depth, groups * values.shape[-1])[:, :outputs]


def owner(start: jax.Array, count: int) -> jax.Array:
  """Which of the ranges `start[g]..start[g + 1]` each of `count` entries is in; padding is last."""
  return jnp.searchsorted(start, jnp.arange(count, dtype=start.dtype), side='right') - 1


@functools.partial(jax.jit, static_argnames='outputs')
def vector_sparse_matmul(x: jax.Array, values: jax.Array, index: jax.Array, start: jax.Array, *,
                         outputs: int) -> jax.Array:
  """`x @ W` for a `W` kept as vectors.

  Args:
    x: `[..., rows, R]`, floating; multiplied in float32.
    values: float32 `[vectors, length]`; length 16, 32 or 64.
    index: int32 `[vectors]`, the row of each in the matrix, ascending within a group.
    start: int32 `[ceil(outputs / length) + 1]`, where the vectors of each group begin.
    outputs: columns of `W`.

  Returns:
    `[..., rows, outputs]` of x's dtype. Rows of `x` without a vector are not read, so their NaN
    does not spread.

  Raises:
    ValueError: another length of vectors.
    jax.errors.JaxRuntimeError: when run natively, an index lies outside the matrix.

  Example:
    >>> w = np.zeros((8, 32), np.float32)
    >>> w[3, :16] = 2.0
    >>> operands = pack(w, 16)
    >>> operands['index'].tolist(), operands['start'].tolist()
    ([3], [0, 1, 1])
    >>> vector_sparse_matmul(jnp.ones((1, 8)), **operands, outputs=32)[0, ::16].tolist()
    [2.0, 0.0]
  """
  _check(values.shape[-1])

  def same(x, values, index, start):
    return x @ dense(values, index, start, depth=x.shape[-1], outputs=outputs)

  return product.product(x, (values, index, start), outputs, target='vectors', same=same)
