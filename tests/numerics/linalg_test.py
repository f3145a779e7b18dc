"""The damped inverse Cholesky factor against NumPy's inverse."""

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


if __name__ == '__main__':
  absltest.main()
