"""Unstructured sparse weights in compressed columns: for each output, rows and values.

Of output n the entries `start[n]..start[n + 1]` are kept, each with its row in the matrix,
ascending: the compressed rows (CSR) of the transposed matrix.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.native import product
from jaxsparse.kernels.native import vectors


def pack(matrix) -> dict[str, np.ndarray]:
  """The operands of `csr_matmul`: the entries of a concrete matrix `[R, O]` that are not zero.

  Rows are counted in two bytes where they fit.
  """
  matrix = np.asarray(matrix, np.float32)
  column, index = np.nonzero(matrix.T)
  start = np.searchsorted(column, np.arange(matrix.shape[1] + 1))
  small = matrix.shape[0] <= 1 << 16
  return {'values': matrix[index, column], 'index': index.astype(np.uint16 if small else np.int32),
          'start': start.astype(np.int32)}


def dense(values, index, start, *, depth: int, outputs: int) -> jax.Array:
  """The matrix `[depth, outputs]`."""
  column = vectors.owner(start, index.shape[0])
  full = jnp.zeros((depth, outputs), values.dtype)
  return full.at[index.astype(jnp.int32), column].add(values, mode='drop')


@functools.partial(jax.jit, static_argnames='outputs')
def csr_matmul(x: jax.Array, values: jax.Array, index: jax.Array, start: jax.Array, *,
               outputs: int) -> jax.Array:
  """`x @ W` for a `W` in compressed columns.

  Args:
    x: `[..., rows, R]`, floating; multiplied in float32.
    values: float32 `[entries]`.
    index: uint16 or int32 `[entries]`, the row of each, ascending within a column.
    start: int32 `[outputs + 1]`, where the entries of each column begin.
    outputs: columns of `W`.

  Returns:
    `[..., rows, outputs]` of x's dtype.

  Raises:
    TypeError: `index` has another dtype.
    jax.errors.JaxRuntimeError: when run natively, an index lies outside the matrix.

  Example:
    >>> operands = pack(np.array([[0.0, 2.0], [3.0, 0.0]]))
    >>> csr_matmul(jnp.array([[1.0, 10.0]]), **operands, outputs=2).tolist()
    [[30.0, 2.0]]
  """
  targets = {'uint16': 'columns16', 'int32': 'columns32'}
  if str(index.dtype) not in targets:
    raise TypeError(f'Rows are counted in uint16 or int32, got {index.dtype}.')

  def same(x, values, index, start):
    return x @ dense(values, index, start, depth=x.shape[-1], outputs=outputs)

  return product.product(x, (values, index, start), outputs, target=targets[str(index.dtype)],
                         same=same)
