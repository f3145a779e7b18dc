"""Scalar k-means against plain Lloyd iterations."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import cluster


def lloyd(x, k, iterations=25):
  """Slow and obvious, in float64."""
  x = np.asarray(x, np.float64).ravel()
  centroids = np.linspace(x.min(), x.max(), k)
  for _ in range(iterations):
    nearest = np.abs(x[:, None] - centroids).argmin(1)
    centroids = np.sort([x[nearest == i].mean() if (nearest == i).any() else c
                         for i, c in enumerate(centroids)])
  return centroids


class ClusterTest(parameterized.TestCase):

  def test_by_hand(self):
    # From 0 and 10: {0, 2, 4} and {9, 10}.
    x = jnp.asarray([[0.0, 2.0, 4.0], [9.0, 10.0, 10.0]])
    np.testing.assert_allclose(cluster.k_means(x, 2), [2.0, 29 / 3], rtol=1e-6)

  @parameterized.parameters(2, 5, 16)
  def test_like_lloyd(self, k):
    x = np.random.default_rng(k).normal(size=(20, 15)).astype(np.float32)
    found = cluster.k_means(jnp.asarray(x), k)
    np.testing.assert_allclose(found, lloyd(x, k), atol=1e-4)

  def test_an_empty_cluster_keeps_its_place(self):
    x = jnp.asarray([0.0, 0.1, 0.2, 10.0, 9.9, 9.8])
    np.testing.assert_allclose(cluster.k_means(x, 3), [0.1, 5.0, 9.9], rtol=1e-6)

  @parameterized.named_parameters(
      dict(testcase_name='fewer', x=[3.0, 1.0, 3.0], k=4, expected=[1, 3, 3, 3]),
      dict(testcase_name='as_many', x=[3.0, 1.0, -2.0], k=3, expected=[-2, 1, 3]),
      dict(testcase_name='constant', x=[7.0, 7.0], k=2, expected=[7, 7]),
      dict(testcase_name='zeros_of_both_signs', x=[0.0, -0.0], k=2, expected=[0, 0]),
      dict(testcase_name='one', x=[5.0], k=3, expected=[5, 5, 5]))
  def test_values_themselves_when_few(self, x, k, expected):
    self.assertEqual(cluster.k_means(jnp.asarray(x), k).tolist(), expected)

  @hypothesis.settings(max_examples=15)
  @hypothesis.given(st.lists(st.floats(-2.0**99, 2.0**99, width=32, allow_subnormal=False),
                             min_size=5, max_size=5))
  def test_assign_is_nearest(self, values):
    centroids = np.sort(np.asarray(values, np.float32))
    x = np.concatenate([centroids, centroids * np.float32(0.7), -centroids])
    index = np.asarray(cluster.assign(jnp.asarray(x), jnp.asarray(centroids)))
    distance = np.abs(x[:, None].astype(np.float64) - centroids)
    chosen = np.take_along_axis(distance, index[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(chosen, distance.min(1), rtol=1e-6, atol=1e-37)

  def test_neighbouring_floats_and_no_overflow(self):
    a = np.float32(1.0)
    b = np.nextafter(a, np.float32(2))
    index = cluster.assign(jnp.asarray([a, b]), jnp.asarray([a, b]))
    self.assertEqual(index.tolist(), [0, 1])
    big = jnp.asarray([2e38, 3e38])
    self.assertEqual(cluster.assign(big, big).tolist(), [0, 1])


if __name__ == '__main__':
  absltest.main()
