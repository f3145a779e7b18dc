"""Balanced blocks: counts exact whatever the scores, near the best score, for every criterion."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse import formats
from jaxsparse.numerics import balance


def blocks_of(mask, rows, columns):
  """Kept blocks `[nk, nn]` of a mask, each of them whole."""
  r, o = mask.shape
  split = np.asarray(mask).reshape(r // rows, rows, o // columns, columns)
  alive = split.any((1, 3))
  np.testing.assert_array_equal(alive, split.all((1, 3)))
  return alive


def assert_balanced(alive, kept):
  np.testing.assert_array_equal(alive.sum(0), kept)
  even = alive.sum(1)
  assert even.max() - even.min() <= (kept * alive.shape[1] % alive.shape[0] > 0), even


class SelectionTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(seed=st.integers(0, 99),
                    shape=st.sampled_from([(1, 3), (4, 4), (8, 4), (5, 9)]), share=st.floats(0, 1),
                    fill=st.sampled_from(['normal', 'zeros', 'ties', 'nan', 'infinite', 'huge']))
  def test_counts(self, seed, shape, share, fill):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=shape).astype(np.float32)
    if fill == 'zeros':
      scores[:] = 0
    elif fill == 'ties':
      scores = np.round(scores)
    elif fill == 'huge':
      scores *= 1e38
    elif fill != 'normal':
      scores[rng.random(scores.shape) < 0.5] = np.nan if fill == 'nan' else np.inf
      scores[0] = -np.inf if fill == 'infinite' else scores[0]
    kept = round(share * shape[0])
    assert_balanced(np.asarray(balance.balanced_mask(jnp.asarray(scores), kept)), kept)

  def test_near_the_best_of_all_balanced_choices(self):
    rng = np.random.default_rng(0)
    choices = [np.eye(5, dtype=bool)[list(p)] for p in itertools.permutations(range(5))]
    found, best = [], []
    for _ in range(20):
      scores = np.abs(rng.normal(size=(5, 5))).astype(np.float32)
      mask = np.asarray(balance.balanced_mask(jnp.asarray(scores), 1))
      best.append(max(scores[c].sum() for c in choices))
      found.append(scores[mask].sum())
    self.assertGreater(np.sum(found) / np.sum(best), 0.97)
    # Where columns agree by themselves, theirs is the choice.
    shifted = np.roll(np.eye(5, dtype=np.float32), 2, axis=1)
    np.testing.assert_array_equal(balance.balanced_mask(jnp.asarray(shifted), 1), shifted > 0)


class PatternTest(parameterized.TestCase):

  @parameterized.parameters(
      'magnitude(0.75, pattern=balanced_blocks(4, 2))',
      "prune('random', schedule=0.75, pattern=balanced_blocks(4, 2))",
      'static(0.75, pattern=balanced_blocks(4, 2))',
      'straight_through(0.75, pattern=balanced_blocks(4, 2))',
      'top_kast(0.75, every=1, pattern=balanced_blocks(4, 2))',
      'magnitude(linear(0.75, end=4, every=1), pattern=balanced_blocks(4, 2))',
      'rigl(0.75, every=1, end=9, pattern=balanced_blocks(4, 2))',
      'sparse_evolution(0.75, every=1, end=9, pattern=balanced_blocks(4, 2))',
      'snfs(0.75, every=1, end=9, pattern=balanced_blocks(4, 2))')
  def test_every_method_keeps_the_balance(self, text):
    transform, rng = jsp.parse(text), np.random.default_rng(0)
    params = {'kernel': jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)}
    params, state = transform.init(params)
    update = jax.jit(lambda p, s, g: transform.update(p, s, grads=g, refresh=True))
    seen = set()
    for _ in range(5):
      grads = {'kernel': jnp.asarray(rng.normal(size=(32, 16)), jnp.float32)}
      state = update(params, state, grads)
      alive = blocks_of(jsp.masks(state)['kernel'], 4, 2)
      assert_balanced(alive, alive.sum(0)[0])
      seen.add(alive.tobytes())
    self.assertEqual(alive.sum(0)[0], 2)
    if text.startswith(('rigl', 'sparse_evolution', 'snfs')):
      self.assertGreater(len(seen), 2)
    stored = transform.pack(params, state)['kernel']
    self.assertIsInstance(stored, formats.BlockArray)
    self.assertTrue(stored.doubly_balanced)
    self.assertIsNone(stored.columns)
    expected = jsp.densify(transform.apply(params, state))['kernel']
    np.testing.assert_array_equal(stored.todense(), expected)

  @parameterized.parameters((0.9, 1), (0.5, 4), (0.8, 2), (0.3125, 6), (0.99, 1), (0.0, 8))
  def test_blocks_kept_are_rounded(self, sparsity, kept):
    transform = jsp.magnitude(sparsity, pattern=jsp.balanced_blocks(4, 2))
    _, state = transform.init({'kernel': jnp.ones((32, 16))})
    self.assertEqual(jsp.sparsity(state), 1 - kept / 8)

  def test_stacks_and_ragged_edges(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 10, 7)), jnp.bfloat16)
    transform = jsp.magnitude(0.5, pattern=jsp.balanced_blocks(4, 3, pad=True))
    params, state = transform.init({'kernel': w})
    mask = jsp.masks(state)['kernel']
    for one in np.asarray(mask):
      blocks = np.pad(one, ((0, 2), (0, 2))).reshape(3, 4, 3, 3).any((1, 3))
      assert_balanced(blocks, 1)
    with self.assertRaisesRegex(ValueError, 'kernel: the reduction axis of size 10 .* size 4'):
      jsp.magnitude(0.5, pattern=jsp.balanced_blocks(4, 3)).init({'kernel': w})
    x = jnp.ones((3, 5, 10))
    packed = transform.pack(params, state)['kernel']
    np.testing.assert_allclose(packed.matmul(x), x @ jnp.where(mask, w, 0).astype(x.dtype),
                               rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
