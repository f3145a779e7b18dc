"""k-means on scalars, for codebooks of weights.

Lloyd iterations from a linear initialization (Han et al., "Deep Compression", arXiv:1510.00149,
section 3.2, found it best). No sort and no reshape of the weight: assignment is a binary search
over k midpoints, and distinct values are counted by k masked minima.
"""

import functools

import jax
import jax.numpy as jnp


def _distinct(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """The `k` smallest distinct values (the last repeated when fewer), and whether those are all."""
  def body(value, _):
    above = jnp.where(x > value, x, jnp.inf).min(initial=jnp.inf)
    value = jnp.where(jnp.isfinite(above), above, value)
    return value, value
  first = x.min(initial=jnp.inf)
  last, rest = jax.lax.scan(body, first, length=k - 1)
  return jnp.concatenate([first[None], rest]), ~(x > last).any()


def assign(x: jax.Array, centroids: jax.Array) -> jax.Array:
  """The index of the nearest of the ascending `centroids` `[k]`, int32 of the shape of `x`."""
  # Halves are added, not the sum halved: two large centroids must not overflow.
  midpoints = centroids[1:] * 0.5 + centroids[:-1] * 0.5
  below = jnp.searchsorted(midpoints, x)
  # A midpoint of two neighbouring floats rounds onto one of them, so the search can miss by one.
  above = jnp.minimum(below + 1, centroids.shape[0] - 1)
  nearer = jnp.abs(x - centroids[above]) < jnp.abs(x - centroids[below])
  return jnp.where(nearer, above, below)


@functools.partial(jax.jit, static_argnames=('k', 'iterations'))
def k_means(x: jax.Array, k: int, *, iterations: int = 25) -> jax.Array:
  """Ascending centroids `[k]` of the values of `x`; the values themselves when k or fewer differ.

  Args:
    x: float32, any shape.
    k: number of centroids.
    iterations: Lloyd steps.

  Returns:
    float32 `[k]`; an empty cluster keeps its place.
  """
  values, all_found = _distinct(x, k)
  low, high = x.min(initial=jnp.inf), x.max(initial=-jnp.inf)
  fraction = jnp.linspace(0.0, 1.0, k)
  # A power of two, so that sums of very large values do not overflow and others are as they were.
  unit = jnp.where(jnp.maximum(-low, high) > 2.0**96, jnp.float32(2.0**-32), 1.0)

  def lloyd(_, centroids):
    index = assign(x, centroids)
    total = jnp.zeros(k, x.dtype).at[index].add(x * unit)
    members = jnp.zeros(k, jnp.int32).at[index].add(1)
    return jnp.sort(jnp.where(members > 0, total / jnp.maximum(members, 1) / unit, centroids))

  start = low * (1.0 - fraction) + high * fraction
  fitted = jax.lax.fori_loop(0, iterations, lloyd, start)
  return jnp.where(all_found, values, fitted)


@functools.partial(jax.jit, static_argnames='k')
def codebook(matrix: jax.Array, k: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`k` values for a matrix, which of them each entry takes, and which stands for pruned entries.

  Args:
    matrix: `[*batch, R, O]`.
    k: 2 to 256.

  Returns:
    Centroids `[*batch, k]` of the dtype of `matrix`, uint8 indices of its shape, and bool
    `[*batch, k]`: where some entries are zero and some are not, one centroid is exactly zero.
  """
  if matrix.ndim > 2:
    return jax.vmap(lambda m: codebook(m, k))(matrix)
  x = matrix.astype(jnp.float32)
  pruned = (x == 0).any() & (x != 0).any()
  centroids = k_means(x, k)
  zero = jnp.abs(centroids).argmin()
  centroids = jnp.where(pruned, centroids.at[zero].set(0.0), centroids)
  index = assign(x, centroids).astype(jnp.uint8)
  return centroids.astype(matrix.dtype), index, pruned & (jnp.arange(k) == zero)
