"""Gradual bit-width, stochastic rounding and frozen oscillations, step by step."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def weight(shape=(12, 8), seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class StochasticTest(absltest.TestCase):

  def test_mean_is_the_weight_and_packed_is_seen(self):
    w = weight()
    transform = jsp.fake_quantize('int4', rounding='stochastic', seed=3)
    params, state = transform.init({'kernel': w})

    @jax.jit
    def run(state):
      def step(state, _):
        return transform.update(params, state), transform.apply(params, state)['kernel']
      return jax.lax.scan(step, state, length=4000)

    state, seen = run(state)
    seen = np.asarray(seen, np.float64)
    step = np.asarray(jnp.abs(w).max(0) / 7, np.float64)
    self.assertTrue((np.abs(seen - np.asarray(w)) <= step * 1.0001).all())
    part = np.asarray(w) / step % 1
    sigma = np.sqrt(np.maximum(part * (1 - part), 1e-6) / len(seen)) * step
    self.assertLess((np.abs(seen.mean(0) - np.asarray(w)) / sigma).max(), 5)
    np.testing.assert_array_equal(jsp.densify(transform.pack(params, state))['kernel'],
                                  transform.apply(params, state)['kernel'])
    grads = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)
    np.testing.assert_array_equal(grads['kernel'], jnp.ones_like(w))
    with self.assertRaisesRegex(ValueError, 'nf4 has values at uneven distances'):
      jsp.fake_quantize('nf4', rounding='stochastic')
    with self.assertRaisesRegex(ValueError, "'nearest' or 'stochastic', got 'up'"):
      jsp.fake_quantize('int4', rounding='up')


class GradualTest(absltest.TestCase):

  def test_each_precision_in_its_turn(self):
    w = weight()
    transform = jsp.gradual_quantize(('int8', 'uint4', 'ternary'), every=2)
    params, state = transform.init({'kernel': w})
    apply = jax.jit(transform.apply)
    for dtype in ('int8', 'int8', 'uint4', 'uint4', 'ternary', 'ternary', 'ternary'):
      one = jsp.fake_quantize(dtype)
      expected = one.apply(*one.init({'kernel': w}))['kernel']
      np.testing.assert_allclose(apply(params, state)['kernel'], expected, rtol=1e-6)
      packed = transform.pack(params, state)['kernel']
      np.testing.assert_array_equal(packed.todense(), transform.apply(params, state)['kernel'])
      state = transform.update(params, state)
    self.assertEqual(apply._cache_size(), 1)
    for kwargs, message in (({'dtypes': (), 'every': 1}, r'got \(\)'),
                            ({'dtypes': ('int4',), 'every': 0}, 'got 0')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.gradual_quantize(**kwargs)


class OscillationTest(parameterized.TestCase):

  @parameterized.parameters((0.05, 0.1), (0.2, 0.3))
  def test_algorithm_of_the_paper(self, threshold, momentum):
    rng = np.random.default_rng(0)
    base = rng.normal(size=(10, 6))
    base[0] = 7   # the scale is one throughout
    transform = jsp.freeze_oscillations('int4', threshold=threshold, momentum=momentum)
    to_params = lambda w: {'kernel': jnp.asarray(w, jnp.float32)}
    _, state = transform.init(to_params(base))
    codes = np.rint(base)
    direction, swings, average = np.zeros_like(base), np.zeros_like(base), codes.copy()
    frozen = np.zeros(base.shape, bool)
    update = jax.jit(transform.update)
    for _ in range(40):
      w = base + rng.normal(size=base.shape) * 0.4
      w[0] = 7
      state = update(to_params(w), state)
      new = np.clip(np.rint(w), -7, 7)
      step = np.sign(new - codes)
      swings = momentum * ((step != 0) & (step == -direction)) + (1 - momentum) * swings
      average = np.where(frozen, average, momentum * new + (1 - momentum) * average)
      frozen |= swings > threshold
      direction, codes = np.where(step != 0, step, direction), new
      out = transform.apply(to_params(w), state)['kernel']
      np.testing.assert_array_equal(out, np.where(frozen, np.rint(average), new))
    self.assertGreater(frozen.sum(), 5)
    self.assertFalse(frozen.all())
    grads = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(to_params(w))
    np.testing.assert_array_equal(grads['kernel'], np.where(frozen, 0, 1))
    packed = transform.pack(to_params(w), state)['kernel']
    np.testing.assert_array_equal(packed.todense(), out)

  def test_bad(self):
    for kwargs, message in (({'dtype': 'nf4'}, "not 'nf4'"), ({'dtype': 'uint4'}, "not 'uint4'"),
                            ({'dtype': 'int4', 'threshold': 0}, r'threshold must be in \(0, 1\)'),
                            ({'dtype': 'int4', 'momentum': 2}, 'got 2')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.freeze_oscillations(**kwargs)


if __name__ == '__main__':
  absltest.main()
