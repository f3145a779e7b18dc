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
