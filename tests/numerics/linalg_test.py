"""Factorizations and ranks against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import linalg


class InverseCholeskyTest(parameterized.TestCase):

  @parameterized.parameters((5,), (3, 7), (2, 3, 4))
  def test_equals_numpy(self, *shape):
    x = np.random.default_rng(0).normal(size=(*shape[:-1], 20, shape[-1]))
    gram = np.swapaxes(x, -1, -2) @ x
    mean = np.diagonal(gram, axis1=-2, axis2=-1).mean(-1)[..., None, None]
    inverse = np.linalg.inv(gram + 0.1 * mean * np.eye(shape[-1]))
    upper = linalg.inverse_cholesky(jnp.asarray(gram, jnp.float32), 0.1)
    expected = np.swapaxes(np.linalg.cholesky(inverse), -1, -2)
    np.testing.assert_allclose(upper, expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(upper, np.triu(upper))

  def test_a_dead_input_stands_alone_and_counts_as_an_average_one(self):
    gram = jnp.asarray([[4.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
    upper = np.asarray(linalg.inverse_cholesky(gram, 0.0))
    live = np.linalg.cholesky(np.linalg.inv([[4.0, 1.0], [1.0, 2.0]])).T
    np.testing.assert_allclose(upper[np.ix_([0, 2], [0, 2])], live, rtol=1e-5)
    np.testing.assert_allclose(upper[1], [0, 3**-0.5, 0], rtol=1e-5)
    np.testing.assert_allclose(linalg.inverse_cholesky(jnp.zeros((2, 2)), 0.0), np.eye(2))

  def test_an_ill_conditioned_gram_of_many_rows(self):
    x = np.random.default_rng(0).normal(size=(16, 256)).astype(np.float32)
    gram = jnp.asarray(x.T @ x)   # rank 16
    upper = np.asarray(linalg.inverse_cholesky(gram, 0.01), np.float64)
    damped = np.asarray(gram, np.float64) + 0.01 * float(jnp.diagonal(gram).mean()) * np.eye(256)
    np.testing.assert_allclose(upper @ damped @ upper.T, np.eye(256), atol=1e-2)

  def test_a_singular_gram_without_damping_is_not_finite(self):
    self.assertFalse(jnp.isfinite(linalg.inverse_cholesky(jnp.ones((3, 3)), 0.0)).all())

  def test_scale_does_not_matter(self):
    gram = jax.random.normal(jax.random.key(0), (9, 4))
    gram = gram.T @ gram
    np.testing.assert_allclose(1e3 * linalg.inverse_cholesky(1e6 * gram, 0.01),
                               linalg.inverse_cholesky(gram, 0.01), rtol=1e-4, atol=1e-6)


def spectrum(values, rows, columns, seed=0):
  """A matrix of these singular values, float64."""
  rng = np.random.default_rng(seed)
  orthonormal = lambda n: np.linalg.qr(rng.normal(size=(n, len(values))))[0]
  return (orthonormal(rows) * values) @ orthonormal(columns).T


class RanksTest(parameterized.TestCase):

  @parameterized.parameters((5, 5), (9, 4), (4, 9), (3, 6, 7), (1, 8))
  def test_stable_rank(self, *shape):
    w = np.random.default_rng(1).normal(size=shape)
    for scale in (1.0, 1e-25, 1e25):   # whose squares are no float32
      values = np.linalg.svd(w, compute_uv=False)
      expected = (values**2).sum(-1) / values[..., 0] ** 2
      found = linalg.stable_rank(jnp.asarray(w * scale, jnp.float32))
      np.testing.assert_allclose(found, expected, rtol=1e-5)

  def test_stable_rank_of_what_is_no_weight(self):
    w = jnp.zeros((3, 4, 4)).at[1].set(jnp.eye(4)).at[2, 0, 0].set(jnp.nan)
    found = np.asarray(linalg.stable_rank(w))
    np.testing.assert_allclose(found[:2], [0, 4])
    self.assertTrue(np.isnan(found[2]))
    np.testing.assert_allclose(linalg.stable_rank(jnp.eye(6, dtype=jnp.bfloat16)), 6)

  def test_stable_rank_of_large_matrices(self):
    """Lanczos, on spectra that are dense at their edge, steep, of low rank, flat or no numbers."""
    w = np.random.default_rng(1).normal(size=(140, 300))
    thin = w[:, :3] @ w[:3]
    stack = np.stack([w, w * np.r_[30.0, np.ones(139)][:, None], w * np.exp(-np.arange(300) / 3),
                      thin, np.eye(140, 300), 0 * w, w * 1e-25, np.nan * w])
    values = np.linalg.svd(stack[:-1], compute_uv=False)
    top = values[:, 0] ** 2
    expected = np.where(top > 0, (values**2).sum(-1) / np.where(top > 0, top, 1), 0)
    found = np.asarray(linalg.stable_rank(jnp.asarray(stack, jnp.float32)))
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-5)
    self.assertTrue(np.isnan(found[-1]))
    as32 = lambda x: jnp.asarray(x, jnp.float32)
    # Larger ones have denser edges, and an exhausted space has nothing but rounding left.
    larger = np.random.default_rng(2).normal(size=(520, 1500))
    for x in (larger, np.ones((300, 200))):
      values = np.linalg.svd(x, compute_uv=False)
      np.testing.assert_allclose(linalg.stable_rank(as32(x)), (values**2).sum() / values[0] ** 2,
                                 rtol=1e-5)
    mixed = {'a': as32(stack[:2]), 'b': jnp.eye(5), 'c': as32(w)}
    found = jax.jit(linalg.stable_ranks)(mixed)
    np.testing.assert_allclose([*found['a'], found['c']], expected[[0, 1, 0]], rtol=1e-5)
    self.assertEqual(([*found], found['b'].shape, float(found['b'])), (['a', 'b', 'c'], (), 5.0))

  @parameterized.parameters(0.1, 0.5, 0.8, 1.0)
  def test_accumulative_rank(self, fraction):
    w = np.random.default_rng(2).normal(size=(3, 12, 9))
    values = np.linalg.svd(w, compute_uv=False)
    expected = [next(k for k in range(1, 10) if v[:k].sum() >= fraction * v.sum() * (1 - 1e-6))
                for v in values]
    found = linalg.accumulative_rank(jnp.asarray(w, jnp.float32), fraction)
    np.testing.assert_array_equal(found, expected)
    self.assertEqual(int(linalg.accumulative_rank(jnp.zeros((4, 4)), fraction)), 0)


class RandomizedTest(parameterized.TestCase):

  @parameterized.parameters('flat', 'decaying', 'stack')
  def test_error_within_the_bound(self, kind):
    n, rank = 120, 12
    values = np.ones(n) if kind == 'flat' else 1.0 / np.arange(1, n + 1)
    w = spectrum(values, 150, n)
    w = np.stack([w, spectrum(values[::-1] ** 2, 150, n, seed=1)]) if kind == 'stack' else w
    p, q = 8, 2
    left, found, right = jax.jit(
        lambda w: linalg.randomized_svd(w, rank, oversample=p, passes=q))(jnp.asarray(w, 'float32'))
    lost = w - (np.asarray(left) * np.asarray(found)[..., None, :]) @ np.asarray(right)
    first = np.linalg.svd(w, compute_uv=False)[..., rank]
    growth = (1 + (rank / (p - 1))**0.5 + np.e * (rank + p)**0.5 / p * (n - rank)**0.5)
    spectral = np.linalg.svd(lost, compute_uv=False)[..., 0]
    self.assertTrue((spectral <= first * growth ** (1 / (2 * q + 1)) * (1 + 1e-4)).all())
    self.assertTrue((np.diff(found, axis=-1) <= 1e-5).all())

  def test_large_matrices_take_it(self):
    n, rank = linalg.LARGE + 1, 6
    rng = np.random.default_rng(0)   # rank 5 plus a little noise
    w = rng.normal(size=(n, 5)) @ rng.normal(size=(5, n)) + 1e-3 * rng.normal(size=(n, n))
    w = jnp.asarray(w, jnp.float32)
    u, v = linalg.truncated_svd(w, rank)
    self.assertLess(float(jnp.linalg.norm(u @ v - w)), 1.001 * 1e-3 * n)


if __name__ == '__main__':
  absltest.main()
