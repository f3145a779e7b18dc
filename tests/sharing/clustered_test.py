"""Shared values: by hand, with their gradient, after pruning and packed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def normal(*shape, dtype='float32'):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), dtype)


class ClusteredTest(parameterized.TestCase):

  def test_by_hand(self):
    transform = jsp.clustered(2)
    params, state = transform.init({'kernel': jnp.asarray([[1.0, 2.0, 9.0], [3.0, 11.0, 10.0]])})
    np.testing.assert_allclose(params['kernel'].centroids, [2.0, 10.0])
    self.assertEqual(state.weights['kernel'].index.tolist(), [[0, 0, 1], [0, 1, 1]])
    np.testing.assert_allclose(transform.apply(params, state)['kernel'], [[2, 2, 10], [2, 10, 10]])

  def test_gradient_is_the_sum_over_members(self):
    transform = jsp.clustered(4)
    params, state = transform.init({'kernel': normal(6, 5)})
    upstream = np.asarray(normal(5, 6)).T
    index = np.asarray(state.weights['kernel'].index)
    loss = lambda p: jnp.sum(transform.apply(p, state)['kernel'] * upstream)
    grads = jax.grad(loss)(params)['kernel'].centroids
    np.testing.assert_allclose(grads, [upstream[index == i].sum() for i in range(4)], rtol=1e-5)

  @parameterized.parameters((2, 1), (3, 2), (4, 2), (5, 3), (16, 4), (17, 5), (256, 8))
  @pytest.mark.sampled(3)
  def test_bytes(self, k, width):
    transform = jsp.clustered(k)
    params, state = transform.init({'kernel': normal(9, 7)})
    packed = transform.pack(params, state)['kernel']
    self.assertEqual(packed.nbytes, 4 * k + -(-9 * width // 8) * 7)
    np.testing.assert_array_equal(packed.todense(), transform.apply(params, state)['kernel'])

  def test_each_expert_has_its_own(self):
    w = normal(4, 3, 5)   # [in, expert, out]
    transform = jsp.clustered(2)
    params, state = transform.init({'kernel': w}, axes={'kernel': jsp.DimensionNumbers((0,), (2,))})
    self.assertEqual(params['kernel'].centroids.shape, (3, 2))
    self.assertEqual(state.weights['kernel'].index.shape, w.shape)
    out = np.asarray(transform.apply(params, state)['kernel'])
    for i in range(3):
      alone, _ = transform.init({'kernel': w[:, i]})
      np.testing.assert_allclose(np.unique(out[:, i]), alone['kernel'].centroids, rtol=1e-6)

  def test_pruned_entries_stay_zero(self):
    transform = jsp.parse('magnitude(0.5) | clustered(4)')
    params, state = transform.init({'kernel': normal(6, 6)})
    apply = lambda p: transform.apply(p, state)['kernel']
    zeros = apply(params) == 0
    self.assertGreaterEqual(int(zeros.sum()), 18)
    grads = jax.grad(lambda p: jnp.sum(apply(p)))(params)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    np.testing.assert_array_equal(apply(moved) == 0, zeros)

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_few_values_are_kept_exactly(self, dtype):
    w = jnp.asarray([[-2.5, 0.25, 7.0], [7.0, 0.25, -2.5]], dtype)
    transform = jsp.clustered(16)
    out = transform.apply(*transform.init({'kernel': w}))['kernel']
    self.assertEqual(out.dtype, w.dtype)
    np.testing.assert_array_equal(out, w)

  @parameterized.parameters(0.0, 3.0, 1e30, -1e-30)
  def test_all_equal(self, value):
    w = jnp.full((3, 2), value)
    out = jsp.clustered(4).apply(*jsp.clustered(4).init({'kernel': w}))['kernel']
    np.testing.assert_array_equal(out, w)

  @parameterized.parameters(1, 257, 4.0, True)
  def test_bad(self, k):
    with self.assertRaisesRegex(ValueError, 'k must be an integer from 2 to 256'):
      jsp.clustered(k)


if __name__ == '__main__':
  absltest.main()
