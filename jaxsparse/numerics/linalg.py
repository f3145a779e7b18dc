"""Factorizations of matrices `[..., R, O]`."""

import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

# Smallest side above which a thin factorization is randomized; LAPACK takes seconds from there on.
LARGE = 2048
_OVERSAMPLED = 32
_PASSES = 3
# Smallest side up to which a Gram matrix is formed, and the fewest Lanczos steps above.
_GRAM = 128
_LANCZOS = 48
# Smallest side above which singular vectors are those of the Gram matrix, which are faster.
_DIRECT = 256


@functools.partial(jax.jit, static_argnames='rank')
def truncated_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array]:
  """The best approximation `u @ v` of `rank`, the singular values shared evenly.

  Eckart and Young (1936). `u = U sqrt(S)`, `v = sqrt(S) V^T`. Directions without energy (the matrix
  is rank-deficient or zero) start as LoRA does, `u` zero and `v` not, so that they can be trained.
  Where both sides are larger than 256 and `rank` at most half of the smaller, singular vectors come
  from the Gram matrix; where both are larger than `LARGE` (2048) and `rank` at most a quarter, the
  factorization is `randomized_svd`'s.

  Args:
    w: float32 `[..., R, O]`.
    rank: at most `min(R, O)`.

  Returns:
    `u` `[..., R, rank]` and `v` `[..., rank, O]`; NaN where a matrix has a NaN.
  """
  left, values, right = thin_svd(w, rank)
  # Below this a singular value is rounding.
  floor = max(w.shape[-2:]) * jnp.finfo(w.dtype).eps * values[..., :1]
  live = ~(values <= floor)   # NaN is not hidden
  root = jnp.sqrt(values)
  resting = jnp.where(values[..., :1] > 0, root[..., :1], 1.0)
  u = left * jnp.where(live, root, 0.0)[..., None, :]
  return u, jnp.where(live, root, resting)[..., :, None] * right


def thin_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The first `rank` singular triples: `[..., R, rank]`, `[..., rank]`, `[..., rank, O]`."""
  full = min(w.shape[-2:])
  if full > LARGE and 4 * rank <= full:
    return randomized_svd(w, rank)
  if full > _DIRECT and 2 * rank <= full:
    return _gram_svd(w, rank)
  left, values, right = jnp.linalg.svd(w, full_matrices=False)
  return left[..., :rank], values[..., :rank], right[..., :rank, :]


def _gram_svd(w, rank):
  """The triples from the Gram matrix's eigenvectors, and a small SVD in their span.

  The span is that of the leading vectors to float32's rounding of the energy; within it the
  small SVD sets right what squaring blurred.
  """
  wide = w.shape[-2] < w.shape[-1]
  tall = jnp.swapaxes(w, -1, -2) if wide else w
  gram = jnp.matmul(jnp.swapaxes(tall, -1, -2), tall, precision='highest')
  basis = jnp.linalg.eigh(gram)[1][..., ::-1][..., :rank]
  left, values, right = jnp.linalg.svd(
      jnp.matmul(tall, basis, precision='highest'), full_matrices=False)
  right = jnp.matmul(right, jnp.swapaxes(basis, -1, -2), precision='highest')
  if not wide:
    return left, values, right
  return jnp.swapaxes(right, -1, -2), values, jnp.swapaxes(left, -1, -2)


def randomized_svd(w: jax.Array, rank: int, *, oversample: int = _OVERSAMPLED,
                   passes: int = _PASSES) -> tuple[jax.Array, jax.Array, jax.Array]:
  """About the first `rank` singular triples, from products with a thin random matrix.

  Halko, Martinsson and Tropp, "Finding Structure with Randomness" (arXiv:0909.4061), algorithms 4.4
  and 5.1. By their corollary 10.10 the expected spectral error is at most
  `(1 + sqrt(rank / (p - 1)) + e sqrt(rank + p) / p sqrt(n - rank))^(1 / (2 q + 1))` times the first
  discarded singular value, for `p = oversample`, `q = passes`, `n = min(R, O)`. The random matrix
  is always the same, so the result is a function of `w`.

  Args:
    w: float32 `[..., R, O]`.
    rank: number of triples.
    oversample: further columns of the random matrix.
    passes: subspace iterations; each is two products with `w`.

  Returns:
    `[..., R, rank]`, `[..., rank]` descending, `[..., rank, O]`.
  """
  columns = min(rank + oversample, *w.shape[-2:])
  orthonormal = lambda y: jnp.linalg.qr(y)[0]
  transposed = jnp.swapaxes(w, -1, -2)
  probe = jax.random.normal(jax.random.key(0), (w.shape[-1], columns), w.dtype)
  basis = orthonormal(jnp.einsum('...ro,ok->...rk', w, probe))
  for _ in range(passes):
    basis = orthonormal(w @ orthonormal(transposed @ basis))
  left, values, right = jnp.linalg.svd(jnp.swapaxes(basis, -1, -2) @ w, full_matrices=False)
  return (basis @ left)[..., :rank], values[..., :rank], right[..., :rank, :]


@jax.jit
def stable_rank(w: jax.Array) -> jax.Array:
  """`|W|_F^2 / |W|_2^2`, between 1 and the rank: how many directions carry the energy.

  The largest eigenvalue of the smaller Gram matrix stands for the squared spectral norm. Up to 128
  rows the Gram matrix is formed and the eigenvalue exact to float32's rounding; above, Lanczos
  finds it in `5 n^(1/3)` steps for n the smaller side, and at least 48, each two products with a
  vector, within 1e-5 on the spectra of random matrices, whose edge is as dense as they come.

  Args:
    w: `[..., R, O]`, any floating dtype.

  Returns:
    float32 `[...]`; 0 of a matrix of zeros, NaN of one that is not finite.

  Example:
    >>> float(stable_rank(jnp.diag(jnp.array([2.0, 2.0, 0.0]))))
    2.0
  """
  matrices = w.reshape(-1, *w.shape[-2:])
  # One after the other: a batch of products with vectors is slow on CPUs.
  found = jax.lax.map(_stable_rank, matrices) if len(matrices) > 1 else _stable_rank(w)
  return found.reshape(w.shape[:-2])


def stable_ranks(matrices: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """`stable_rank` of several; those of one shape share one loop, as compiling each its own is slow.

  Example:
    >>> found = stable_ranks({'a': jnp.eye(3), 'b': jnp.ones((3, 3))})
    >>> {key: round(float(x), 3) for key, x in found.items()}
    {'a': 3.0, 'b': 1.0}
  """
  alike: dict[tuple[int, ...], list[str]] = {}
  for key, w in matrices.items():
    alike.setdefault(w.shape[-2:], []).append(key)
  out = {}
  for shape, keys in alike.items():
    flat = [matrices[key].astype(jnp.float32).reshape(-1, *shape) for key in keys]
    found = stable_rank(jnp.concatenate(flat) if len(flat) > 1 else flat[0])
    ends = np.cumsum([len(x) for x in flat])
    for key, part in zip(keys, jnp.split(found, ends[:-1])):
      out[key] = part.reshape(matrices[key].shape[:-2])
  return {key: out[key] for key in matrices}


def _stable_rank(w):
  """Of one matrix, or of a stack of one."""
  w = w.reshape(w.shape[-2:]).astype(jnp.float32)
  largest = jnp.abs(w).max()
  w = w / jnp.where(largest > 0, largest, 1.0)   # squares neither overflow nor vanish
  w = w.T if w.shape[0] > w.shape[1] else w
  energy = jnp.square(w).sum()
  spectral = _largest_eigenvalue(w)
  return jnp.where(energy == 0, 0.0, energy / jnp.where(energy == 0, 1.0, spectral))


def _largest_eigenvalue(w):
  """Of `W W^T`, for `w` `[n, m]` with `n <= m`.

  Above `_GRAM` rows by Lanczos without reorthogonalization: what rounding brings back are copies of
  eigenvalues that are found already, which do not move the largest (Paige, 1980). Written for few
  operations, since on CPUs each is compiled by itself and costs more than it runs.
  """
  n = w.shape[0]
  product = lambda a, b: jnp.matmul(a, b, precision='highest')
  if n <= _GRAM:
    return jnp.linalg.eigvalsh(product(w, w.T))[-1]
  # The gaps at the edge of a random spectrum narrow with the cube root.
  steps = max(_LANCZOS, math.ceil(5 * n ** (1 / 3)))
  place = np.arange(steps)

  def step(i, carry):
    half, before, q, off = carry   # [steps, steps], [n], [n], ()
    image = product(product(q, w), w.T)
    on = product(image, q)
    rest = image - on * q - off * before
    energy = product(rest, rest)
    # What is left of an exhausted space is rounding, and no direction. NaN is not hidden.
    exhausted = energy <= 1e-10 * (on * on + off * off)
    after = jnp.where(exhausted, 0.0, jnp.sqrt(energy))
    row = jnp.where(place == i, on / 2, jnp.where(place == i + 1, after, 0.0))
    half = jax.lax.dynamic_update_slice_in_dim(half, row[None], i, 0)
    return half, q, jnp.where(exhausted, 0.0, rest / jnp.where(exhausted, 1.0, after)), after

  # Constants of NumPy: making them in the program would be more to compile.
  q = np.random.default_rng(0).standard_normal(n, np.float32)
  zeros = functools.partial(np.zeros, dtype=np.float32)
  start = zeros((steps, steps)), zeros(n), q / np.linalg.norm(q), zeros(())
  half, *_ = jax.lax.fori_loop(0, steps, step, start)
  return jnp.linalg.eigvalsh(half + half.T)[-1]


def accumulative_rank(w: jax.Array, fraction: float) -> jax.Array:
  """The least `k` whose first `k` singular values sum to `fraction` of all.

  Args:
    w: `[..., R, O]`, any floating dtype.
    fraction: in (0, 1].

  Returns:
    int32 `[...]`; 0 of a matrix of zeros.

  Example:
    >>> int(accumulative_rank(jnp.diag(jnp.array([6.0, 3.0, 1.0])), 0.8))
    2
  """
  values = jnp.linalg.svd(w.astype(jnp.float32), compute_uv=False)
  sums = jnp.cumsum(values, axis=-1)
  wanted = fraction * sums[..., -1:]
  count = (sums < wanted).sum(-1) + 1
  return jnp.where(sums[..., -1] > 0, jnp.minimum(count, values.shape[-1]), 0).astype(jnp.int32)


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
