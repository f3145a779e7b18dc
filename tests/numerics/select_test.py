"""Selection against a stable sort."""

import os
import subprocess
import sys

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import select


def top_k(scores, k):
  """A stable descending sort: ties keep the lower index; NaN comes last."""
  flat = np.asarray(scores, np.float64).ravel()
  order = np.argsort(-np.where(np.isnan(flat), -np.inf, flat), kind='stable')
  mask = np.zeros(flat.size, bool)
  mask[order[:k]] = True
  return mask.reshape(np.shape(scores))


def n_of_m(scores, n, m):
  mask = np.zeros(scores.shape, bool)
  for column in range(scores.shape[1]):
    for row in range(0, scores.shape[0], m):
      mask[row:row + m, column] = top_k(scores[row:row + m, column], n)
  return mask


HARD = {
    'ties': [2, 2, 2, 2, 2, 2],
    'zeros of both signs': [0.0, -0.0, 0.0, -0.0, -1.0, 1.0],
    'huge': [1e30, 3e38, -3e38, np.inf, -np.inf, 0.0],
    'not a number': [np.nan, 1.0, -5.0, np.nan, 0.0, 2.0],
    'negative': [-3.0, -1.0, -2.0, -1.0, -7.0, -1.0],
    'neighbours': [1.0, np.nextafter(np.float32(1), np.float32(2)), 1.0, 1.0, 0.5, 1.0],
}


class TopKTest(parameterized.TestCase):

  @parameterized.named_parameters(HARD.items())
  def test_every_k(self, scores):
    scores = np.asarray(scores, np.float32).reshape(2, 3)
    for k in (0, 1, 2, 3, 5, 6):
      mask = select.top_k_mask(jnp.asarray(scores), k)
      np.testing.assert_array_equal(mask, top_k(scores, k), err_msg=f'k={k}')

  @hypothesis.settings(max_examples=40)
  @hypothesis.given(scores=st.lists(st.integers(-3, 3), min_size=12, max_size=12),
                    k=st.integers(0, 12), dtype=st.sampled_from(['float32', 'bfloat16', 'float16']))
  def test_like_a_stable_sort(self, scores, k, dtype):
    scores = jnp.asarray(scores, dtype).reshape(3, 4) / 2
    np.testing.assert_array_equal(select.top_k_mask(scores, k), top_k(scores, k))

  def test_k_beyond_the_size_keeps_all(self):
    self.assertTrue(select.top_k_mask(jnp.ones((2, 3)), 7).all())

  @parameterized.parameters((1, 1), (1, 6), (6, 1))
  def test_thin(self, *shape):
    scores = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(select.top_k_mask(jnp.asarray(scores), 1), top_k(scores, 1))

  def test_slices(self):
    scores = np.random.default_rng(0).integers(0, 4, (3, 2, 5)).astype(np.float32)
    found = select.top_k_mask(jnp.asarray(scores), 4, axes=(-2, -1))
    np.testing.assert_array_equal(found, [top_k(s, 4) for s in scores])
    # An outer axis with another k a slice.
    k = jnp.asarray([1, 0, 3, 6, 2]).reshape(1, 1, 5)
    found = select.top_k_mask(jnp.asarray(scores), k, axes=(0, 1))
    for i, kept in enumerate(k.ravel()):
      np.testing.assert_array_equal(found[..., i], top_k(scores[..., i], int(kept)))

  def test_k_is_data(self):
    run = jax.jit(select.top_k_mask)
    scores = jnp.asarray([3.0, 1.0, 2.0])
    self.assertEqual([run(scores, k).tolist() for k in (1, 2)],
                     [[True, False, False], [True, False, True]])
    self.assertEqual(run._cache_size(), 1)

  def test_empty(self):
    chex.assert_shape(select.top_k_mask(jnp.zeros((0, 3)), 0), (0, 3))

  def test_too_many(self):
    big = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
    with self.assertRaisesRegex(ValueError, '2147483648 entries'):
      jax.eval_shape(lambda s: select.top_k_mask(s, 1), big)


class TopKMasksTest(parameterized.TestCase):

  def test_pools_without_concatenating(self):
    rng = np.random.default_rng(0)
    shapes = [(2, 3), (4,), (1, 2, 2)]
    arrays = [rng.integers(0, 4, s).astype(np.float32) for s in shapes]
    expected = np.concatenate([a.ravel() for a in arrays])
    for k in (0, 1, 5, 9, 14):
      found = select.top_k_masks([jnp.asarray(a) for a in arrays], k)
      self.assertEqual([m.shape for m in found], shapes)
      np.testing.assert_array_equal(np.concatenate([m.ravel() for m in found]), top_k(expected, k))


class NOfMTest(parameterized.TestCase):

  def test_by_eye(self):
    scores = jnp.asarray([[4.0, 1.0], [3.0, 1.0], [2.0, 1.0], [1.0, 9.0]])
    self.assertEqual(select.n_of_m_mask(scores, 2, 4).astype(int).tolist(),
                     [[1, 1], [1, 0], [0, 0], [0, 1]])

  @parameterized.parameters((1, 2), (2, 4), (3, 4), (4, 4), (2, 3), (5, 12), (1, 1), (3, 6))
  def test_like_a_stable_sort(self, n, m):
    scores = np.random.default_rng(0).integers(-2, 3, (12, 3)).astype(np.float32)
    scores[3, 1] = np.nan
    for dtype in ('float32', 'bfloat16'):
      found = select.n_of_m_mask(jnp.asarray(scores, dtype), n, m)
      np.testing.assert_array_equal(found, n_of_m(scores, n, m))
      self.assertTrue((np.asarray(found).reshape(-1, m, 3).sum(1) == n).all())

  def test_stack(self):
    scores = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = np.asarray(select.n_of_m_mask(jnp.asarray(scores), 2, 4))
    np.testing.assert_array_equal(found[1, 2], n_of_m(scores[1, 2], 2, 4))

  def test_one_device_where_integers_have_64_bits(self):
    # Counts take another way on one device; tests have eight.
    code = ('import jax.numpy as jnp\n'
            'from jaxsparse.numerics import select\n'
            'scores = jnp.arange(24.0).reshape(6, 4)\n'
            'assert int(select.top_k_mask(scores, 5).sum()) == 5\n'
            'assert select.top_k_mask(scores, 2, axes=(0,)).sum(0).tolist() == [2, 2, 2, 2]\n')
    subprocess.run([sys.executable, '-c', code], check=True,
                   env={**os.environ, 'JAX_ENABLE_X64': '1', 'XLA_FLAGS': ''})


if __name__ == '__main__':
  absltest.main()
