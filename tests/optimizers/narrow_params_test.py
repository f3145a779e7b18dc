"""bfloat16 params: rounding by chance, and Kahan's compensation."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def neighbours(x):
  """The bfloat16 values on both sides of float32 `x`, in float64."""
  down = (np.asarray(x, np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
  up = (down.view(np.uint32) + 0x10000).view(np.float32)
  return down.astype(np.float64), up.astype(np.float64)


class StochasticRoundTest(parameterized.TestCase):

  def test_unbiased_within_five_sigma_whatever_the_fraction(self):
    rng = np.random.default_rng(0)
    values = rng.normal(size=40).astype(np.float32) * 10.0 ** rng.integers(-20, 20, size=40)
    count = 1 << 16
    run = jax.jit(lambda v, seed: jsp.stochastic_round(jnp.full(count, v), seed).astype(
        jnp.float32))
    worst = 0
    for n, value in enumerate(values.astype(np.float32)):
      out = np.asarray(run(value, n), np.float64)
      down, up = neighbours(value)
      self.assertTrue(np.isin(out, [down, up]).all())
      chance = (value.astype(np.float64) - down) / (up - down)
      sigma = np.sqrt(max(chance * (1 - chance), 1e-12) / count) * abs(up - down)
      worst = max(worst, abs(out.mean() - value) / sigma)
    self.assertLess(worst, 5)

  def test_neighbours_seeds_and_rows_are_independent(self):
    x = jnp.full((256, 256), 1 + 1 / 256)   # half way
    bits = [np.asarray(jsp.stochastic_round(x, seed) > 1, float) - 0.5 for seed in range(3)]
    for a, b in ((bits[0], bits[1]), (bits[1], bits[2]), (bits[0], bits[0].T),
                 (bits[0][:, 1:], bits[0][:, :-1]), (bits[0][1:], bits[0][:-1])):
      self.assertLess(abs((a * b).mean()), 5 * 0.25 / 256)

  def test_special_values(self):
    x = jnp.asarray([np.nan, np.inf, -np.inf, 0.0, 1.0, -2.0, 1e-40])
    out = np.asarray(jsp.stochastic_round(x, 3).astype(jnp.float32))
    np.testing.assert_array_equal(out[:6], np.asarray(x[:6]))
    self.assertLess(abs(out[6]), 2e-40)

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(
      values=st.lists(st.floats(-2.0**127, 2.0**127, width=32), min_size=8, max_size=8),
      seed=st.integers(0, 2**32))
  def test_one_of_both_neighbours(self, values, seed):
    x = np.asarray(values, np.float32)
    out = np.asarray(jsp.stochastic_round(jnp.asarray(x), seed).astype(jnp.float32), np.float64)
    down, up = neighbours(x)
    self.assertTrue(((out == down) | ((out == up) & (x != down))).all())


class TransformationsTest(parameterized.TestCase):

  def test_small_updates_are_not_lost(self):
    params = {'w': jnp.ones(4096, jnp.bfloat16), 'b': jnp.ones(4)}
    grads = {'w': jnp.ones(4096, jnp.bfloat16), 'b': jnp.ones(4)}
    ends = {}
    for name, tx in (('plain', optax.sgd(1e-4)), ('chance', jsp.stochastic_rounding(
        optax.sgd(1e-4))), ('kahan', jsp.kahan(optax.sgd(1e-4)))):
      @jax.jit
      def step(p, s, tx=tx):
        updates, s = tx.update(grads, s, p)
        return optax.apply_updates(p, updates), s
      p, s = params, tx.init(params)
      for _ in range(500):
        p, s = step(p, s)
      self.assertEqual((p['w'].dtype, p['b'].dtype), (jnp.bfloat16, jnp.float32))
      ends[name] = np.asarray(p['w'], np.float64).mean()
      np.testing.assert_allclose(p['b'], 0.95, rtol=1e-4)
    self.assertEqual(ends['plain'], 1.0)
    self.assertLess(abs(ends['chance'] - 0.95), 1e-3)
    self.assertLess(abs(ends['kahan'] - 0.95), 2e-3)   # half a bfloat16

  @parameterized.parameters('stochastic_rounding', 'kahan')
  def test_the_chosen_number_is_what_apply_updates_gives(self, word):
    rng = np.random.default_rng(0)
    params = {'w': jnp.asarray(rng.normal(size=999) * 10.0 ** rng.integers(-6, 3, 999),
                               jnp.bfloat16)}
    tx = getattr(jsp, word)(optax.adam(1e-2))
    state = tx.init(params)
    self.assertEqual(state.inner[0].mu['w'].dtype, jnp.float32)
    updates, _ = tx.update({'w': params['w'] * 3}, state, params)
    whole, _ = optax.adam(1e-2).update({'w': params['w'].astype(jnp.float32) * 3},
                                       state.inner)
    target = np.asarray(params['w'], np.float32) + np.asarray(whole['w'])
    moved = np.asarray(optax.apply_updates(params, updates)['w'], np.float64)
    down, up = neighbours(target)
    near = np.asarray(target).astype(ml_dtypes.bfloat16).astype(np.float64)
    # float32 itself rounds where weight and update cancel.
    slack = 2.0**-22 * np.abs(np.asarray(params['w'], np.float64))
    gap = np.minimum(abs(moved - down), abs(moved - up)) if word != 'kahan' else abs(moved - near)
    self.assertTrue((gap <= slack).all())

  def test_with_eight_bit_state_and_in_a_scan(self):
    params = {'w': jnp.ones((64, 64), jnp.bfloat16)}
    tx = jsp.stochastic_rounding(jsp.quantized_state(optax.adam(1e-2)), seed=7)

    def step(carry, _):
      p, s = carry
      updates, s = tx.update(jax.tree.map(lambda x: x - 0.5, p), s, p)
      return (optax.apply_updates(p, updates), s), None

    (p, s), _ = jax.jit(lambda c: jax.lax.scan(step, c, length=100))((params, tx.init(params)))
    self.assertLess(float(jnp.abs(p['w'].astype(jnp.float32) - 0.5).mean()), 0.05)
    self.assertEqual(int(s.count), 100)

  def test_bad(self):
    with self.assertRaisesRegex(ValueError, 'seed must be an integer'):
      jsp.stochastic_rounding(optax.sgd(0.1), seed=0.5)
    for tx in (jsp.stochastic_rounding(optax.sgd(0.1)), jsp.kahan(optax.sgd(0.1))):
      params = {'w': jnp.ones(2, jnp.bfloat16)}
      with self.assertRaisesRegex(ValueError, 'needs params'):
        tx.update(params, tx.init(params))


if __name__ == '__main__':
  absltest.main()
