"""Transforms at milestones: what is kept from stage to stage, spelling, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def blocks(sparsity):
  return jsp.packed_blocks(jsp.magnitude(sparsity, pattern=jsp.balanced_blocks(4, 4)))


class StagedTest(parameterized.TestCase):

  def test_later_blocks_are_among_the_earlier_ones(self):
    transform = jsp.staged([blocks(0.25), blocks(0.5), blocks(0.75)], at=(0.2, 0.7))
    tx = optax.sgd(0.1)
    params = {'kernel': jax.random.normal(jax.random.key(0), (16, 16)), 'bias': jnp.zeros(16)}
    latents, state = transform.init(params)
    opt_state, kept, seen = tx.init(latents), jnp.ones((16, 16), bool), []
    for count in range(10):
      turn = transform.spec.next_stage and transform.spec.next_stage(
          latents, state, jsp.Course(count=count, steps=10, epoch=1))
      if turn:
        before = jsp.densify(transform.apply(latents, state))
        latents, state, opt_state = jsp.restage(
            transform, turn.transform, latents, state, opt_state, tx)
        transform = turn.transform
        now = jsp.densify(transform.apply(latents, state))['kernel']
        mask = now != 0
        np.testing.assert_array_equal(now, jnp.where(mask, before['kernel'], 0))
        self.assertFalse(bool((mask & ~kept).any()))
        kept = mask
        seen.append((count, float(mask.mean())))
    self.assertEqual(seen, [(2, 0.5), (7, 0.25)])
    self.assertEqual(latents['kernel'].size, 64)
    self.assertIsNone(transform.spec.next_stage)

  def test_moments_of_blocks_that_stay_go_on(self):
    blocks = lambda sparsity: jsp.packed_blocks(
        jsp.magnitude(sparsity, pattern=jsp.balanced_blocks(4, 4)))
    old, new, tx = blocks(0.5), blocks(0.75), optax.adam(1e-2)
    rng = np.random.default_rng(0)
    make = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params, state = old.init({'kernel': make(16, 24), 'stack': make(2, 16, 16), 'bias': make(24)})
    opt_state = tx.init(params)
    grads = jax.tree.map(lambda x: make(*x.shape), params)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = optax.apply_updates(params, updates)
    dense = lambda transform, params, state: jsp.densify(transform.apply(params, state))
    before = dense(old, opt_state[0].mu, state)
    params, state, opt_state = jsp.restage(old, new, params, state, opt_state, tx)
    self.assertEqual(int(opt_state[0].count), 1)
    after = dense(new, opt_state[0].mu, state)
    for name, mask in jsp.masks(state).items():
      self.assertLess(params[name].size, before[name].size / 3)
      np.testing.assert_array_equal(after[name], np.where(mask, before[name], 0))
    np.testing.assert_array_equal(after['bias'], before['bias'])

  def test_spelled_and_parsed_under_at(self):
    text = "at('.*kernel', staged([magnitude(0.5), magnitude(0.75)], at=(0.5,), warmup=3))"
    transform = jsp.parse(text)
    self.assertEqual(jsp.spell(jsp.parse(jsp.spell(transform))), jsp.spell(transform))
    params = {'kernel': jnp.ones((8, 8)), 'table': jnp.ones((8, 8))}
    latents, state = transform.init(params)
    turn = transform.spec.next_stage(latents, state, jsp.Course(count=7, steps=10, epoch=1))
    self.assertEqual(turn.warmup, 3)
    self.assertEqual(jsp.spell(turn.transform), "at('.*kernel', magnitude(0.75))")
    self.assertEqual([*jsp.masks(turn.transform.init(params)[1])], ['kernel'])

  @parameterized.parameters(
      ([], (), ValueError, 'one transform at least'), ([1], (), TypeError, 'takes transforms'),
      ([0.5, 0.6], (), ValueError, '1 ascending'), ([0.5, 0.6], (1.5,), ValueError, r'1.5'),
      ([0.1, 0.2, 0.3], (0.5, 0.4), ValueError, '2 ascending'),
      ([0.1, 0.2], ('a',), ValueError, '1 ascending'))
  def test_bad_input(self, parts, at, error, message):
    parts = [jsp.magnitude(s) if isinstance(s, float) else s for s in parts]
    with self.assertRaisesRegex(error, message):
      jsp.staged(parts, at=at)

  def test_stages_of_stages_are_refused(self):
    inner = jsp.staged([jsp.nm(2, 4), jsp.nm(1, 4)], at=(0.5,))
    with self.assertRaisesRegex(ValueError, 'by itself'):
      jsp.staged([inner, jsp.nm(1, 4)], at=(0.7,))
    self.assertIs(jsp.staged([inner.spec.next_stage(None, None, jsp.Course(9, 10, 1)).transform],
                             at=()).spec.next_stage, None)


if __name__ == '__main__':
  absltest.main()
