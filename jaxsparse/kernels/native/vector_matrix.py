"""One row times a dense float32 matrix, which XLA:CPU runs on one thread by a plain loop."""

import jax

from jaxsparse.kernels.native import product


@jax.jit
def vector_matrix(x: jax.Array, w: jax.Array) -> jax.Array:
  """`x @ w` for one row, reading `w` once and in order, on all threads.

  Args:
    x: `[1, R]`, floating; multiplied in float32.
    w: float32 `[R, O]`, as it is.

  Returns:
    `[1, O]` of x's dtype.

  Raises:
    ValueError: more than one row, or shapes that do not match.

  Example:
    >>> import jax.numpy as jnp
    >>> vector_matrix(jnp.ones((1, 3)), jnp.ones((3, 2))).tolist()
    [[3.0, 3.0]]
  """
  if x.ndim != 2 or w.ndim != 2 or x.shape != (1, w.shape[0]):
    raise ValueError(f'Expected x [1, R] and w [R, O], got {x.shape} and {w.shape}.')
  return product.product(x, (w,), w.shape[1], target='vector_matrix', same=lambda x, w: x @ w)
