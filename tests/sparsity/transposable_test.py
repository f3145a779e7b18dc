"""Masks that are N:M both ways, against the best assignment there is."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import axes


def best(block, n):
  """The largest sum of `block` with n a row and column: a linear program, whose corners are 0/1."""
  m = len(block)
  rows = np.kron(np.eye(m), np.ones(m))
  columns = np.kron(np.ones(m), np.eye(m))
  found = scipy.optimize.linprog(-block.ravel(), A_eq=np.vstack([rows, columns]),
                                 b_eq=np.full(2 * m, n), bounds=(0, 1))
  return -found.fun


def blocks_of(x, m):
  *batch, r, o = x.shape
  x = x.reshape(*batch, r // m, m, o // m, m)
  return np.moveaxis(x, -2, -3).reshape(-1, m, m)


class TransposableTest(parameterized.TestCase):

  @parameterized.parameters((1, 4), (2, 4), (3, 4), (1, 2), (2, 3))
  def test_the_best_mask_up_to_four(self, n, m):
    rng = np.random.default_rng(0)
    scores = np.abs(rng.normal(size=(2, 3 * m, 2 * m))).astype('f')
    mask = np.asarray(jsp.transposable(n, m).mask(jnp.asarray(scores), n))
    for block, kept in zip(blocks_of(scores, m), blocks_of(mask, m)):
      np.testing.assert_array_equal(kept.sum(0), n)
      np.testing.assert_array_equal(kept.sum(1), n)
      self.assertAlmostEqual(block[kept].sum(), best(block.astype(float), n), places=4)

  @parameterized.parameters((4, 8), (2, 8), (1, 8), (5, 7), (8, 16))
  def test_close_to_the_best_above_four(self, n, m):
    rng = np.random.default_rng(1)
    scores = np.abs(rng.normal(size=(2 * m, 3 * m))).astype('f')
    mask = np.asarray(jsp.transposable(n, m).mask(jnp.asarray(scores), n))
    kept, most = 0.0, 0.0
    for block, chosen in zip(blocks_of(scores, m), blocks_of(mask, m)):
      np.testing.assert_array_equal(chosen.sum(0), n)
      np.testing.assert_array_equal(chosen.sum(1), n)
      kept, most = kept + block[chosen].sum(), most + best(block.astype(float), n)
    self.assertGreater(kept, 0.95 * most)

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(m=st.sampled_from([2, 4, 6]), fill=st.sampled_from(['ties', 'zeros', 'huge']),
                    dtype=st.sampled_from(['float32', 'bfloat16']), data=st.data())
  def test_always_n_a_row_and_column(self, m, fill, dtype, data):
    n = data.draw(st.integers(1, m))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    scores = {'ties': rng.integers(0, 3, (2 * m, m)), 'zeros': np.zeros((2 * m, m)),
              'huge': rng.normal(size=(2 * m, m)) * 1e30}[fill]
    mask = np.asarray(jsp.transposable(n, m).mask(jnp.asarray(scores, dtype), n))
    for chosen in blocks_of(mask, m):
      np.testing.assert_array_equal(chosen.sum(0), n)
      np.testing.assert_array_equal(chosen.sum(1), n)

  @parameterized.parameters(4, 8)
  def test_on_a_schedule_pruned_weights_stay_pruned(self, m):
    transform = jsp.parse(f'magnitude(linear(0.5, end=2, every=1), pattern=transposable({m // 2}, '
                          f'{m}))')
    rng = np.random.default_rng(0)
    params, state = transform.init({'kernel': jnp.asarray(rng.normal(size=(16, 16)), 'float32')})
    counts = []
    for _ in range(3):
      before = np.asarray(jsp.masks(state)['kernel'])
      counts.append(before.mean())
      params = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), w.dtype), params)
      state = transform.update(params, state)
      after = np.asarray(jsp.masks(state)['kernel'])
      if m == 4:   # the best mask of those inside the old one; a local search may leave it
        self.assertFalse((after & ~before).any())
    self.assertEqual(after.mean(), 0.5)
    self.assertGreater(counts[0], 0.5)

  def test_packs_as_n_m_both_ways(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 12)), 'bfloat16')
    pattern = jsp.transposable(2, 4)
    mask = pattern.mask(jnp.abs(w), 2)
    layout = axes.Layout(w.shape, w.dtype, axes.default_axes(2))
    stored = pattern.pack(w, mask, layout)
    self.assertIsInstance(stored, jsp.formats.NMArray)
    self.assertEqual((stored.n, stored.m), (2, 4))
    np.testing.assert_array_equal(jsp.densify(stored), jnp.where(mask, w, 0))
    turned = axes.Layout(w.T.shape, w.dtype, axes.default_axes(2))
    np.testing.assert_array_equal(jsp.densify(pattern.pack(w.T, mask.T, turned)),
                                  jnp.where(mask, w, 0).T)

  def test_bad(self):
    with self.assertRaisesRegex(ValueError, 'n=5, m=4'):
      jsp.transposable(5, 4)
    with self.assertRaisesRegex(ValueError, 'kernel: the output axis of size 6 .*m=4'):
      jsp.magnitude(0.5, pattern=jsp.transposable(2, 4)).init({'kernel': jnp.ones((8, 6))})
    with self.assertRaisesRegex(ValueError, 'sparsegpt prunes single entries'):
      jsp.sparsegpt(pattern=jsp.transposable(2, 4))
    with self.assertRaisesRegex(ValueError, 'conflicting targets'):
      jsp.magnitude(0.75, pattern=jsp.transposable(2, 4))


if __name__ == '__main__':
  absltest.main()
