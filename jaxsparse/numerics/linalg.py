"""Factorizations of matrices `[..., R, O]`."""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.jit, static_argnames='rank')
def truncated_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """The best approximation `u @ v` of `rank`, the singular values shared evenly.

  Eckart and Young (1936). `u = U sqrt(S)`, `v = sqrt(S) V^T`.

  Args:
    w: float32 `[..., R, O]`.
    rank: at most `min(R, O)`.

  Returns:
    `u` `[..., R, rank]` and `v` `[..., rank, O]`.
  """
  left, values, right = jnp.linalg.svd(w, full_matrices=False)
  root = jnp.sqrt(values[..., :rank])
  return left[..., :rank] * root[..., None, :], root[..., :, None] * right[..., :rank, :]


@jax.jit
def inverse_cholesky(gram: jax.Array, damping: float) -> jax.Array:
  """The upper factor U of the damped inverse: `U^T U = (gram + damping mean(diag) I)^-1`.

  Found without forming the inverse: of the matrix with rows and columns reversed, the Cholesky
  factor L gives `U = reverse(L^-1)`. An input that was never active (a zero on the diagonal)
  counts as an average one, so that its row of U is that of the identity, scaled.

  Args:
    gram: float32 `[..., R, R]`, symmetric and positive semidefinite.
    damping: a fraction of the mean diagonal; zero only for a gram of full rank.

  Returns:
    float32 `[..., R, R]`; NaN where the damped gram is not positive definite.

  Example:
    >>> inverse_cholesky(jnp.diag(jnp.array([4.0, 16.0])), 0.0).tolist()
    [[0.5, 0.0], [0.0, 0.25]]
  """
  diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
  live = diagonal > 0
  mean = diagonal.sum(-1, keepdims=True) / jnp.maximum(live.sum(-1, keepdims=True), 1)
  mean = jnp.where(mean > 0, mean, 1.0)
  identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
  added = jnp.where(live, 0.0, mean) + damping * mean
  lower = jnp.linalg.cholesky(jnp.flip(gram + identity * added[..., None, :], (-2, -1)))
  inverse = jax.lax.linalg.triangular_solve(lower, identity, left_side=True, lower=True)
  return jnp.triu(jnp.flip(inverse, (-2, -1)))


@jax.jit
def square_roots(gram: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
  """S and its inverse, S symmetric with `S S = gram + damping mean(diag) I`.

  By eigenvalues, so that a Gram of few rows or dead inputs is no failure: where it says nothing,
  the damping stands.

  Args:
    gram: float32 `[..., R, R]`, symmetric and positive semidefinite.
    damping: a positive fraction of the mean diagonal.

  Returns:
    float32 `[..., R, R]` each.

  Example:
    >>> root, inverse = square_roots(jnp.diag(jnp.array([4.0, 0.0])), 1e-6)
    >>> root.round(2).tolist(), float(inverse[0, 0])
    ([[2.0, 0.0], [0.0, 0.0]], 0.499...)
  """
  mean = jnp.diagonal(gram, axis1=-2, axis2=-1).mean(-1, keepdims=True)
  values, vectors = jnp.linalg.eigh(gram)
  root = jnp.sqrt(jnp.maximum(values, 0) + damping * jnp.where(mean > 0, mean, 1.0))
  back = jnp.swapaxes(vectors, -1, -2)
  return (vectors * root[..., None, :]) @ back, (vectors / root[..., None, :]) @ back
