"""Gradual bit-width, stochastic rounding, frozen oscillations and PARQ, step by step."""

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


class ParqTest(parameterized.TestCase):

  @parameterized.parameters(('int4', {}), ('int2', {}), ('binary', {}), ('nf4', {'group': 5}),
                            ('uint3', {'group': 5}))
  def test_between_float_and_the_grid(self, dtype, kwargs):
    w = weight()
    transform = jsp.parq(dtype, start=2, end=6, steepness=5, **kwargs)
    params, state = transform.init({'kernel': w})
    hard = jsp.fake_quantize(dtype, **kwargs)
    nearest = hard.apply(*hard.init({'kernel': w}))['kernel']
    # Every value of the grid in each column, from many weights that share its scales.
    packed = hard.pack(*hard.init({'kernel': w}))['kernel']
    scale = np.repeat(np.asarray(packed.scale_values), kwargs.get('group', 12), 0)[:12]
    codes = {'int4': range(-7, 8), 'int2': range(-2, 2), 'binary': (-1, 1), 'uint3': range(8),
             'nf4': np.asarray(packed.grid.table or ())}[dtype]
    zero = 0 if packed.zero is None else np.repeat(np.asarray(packed.zero, float), 5, 0)[:12]
    values = np.sort((np.asarray([*codes]).reshape(-1, 1, 1) - zero) * scale, 0)
    apply = jax.jit(transform.apply)
    for count in range(8):
      out = apply(params, state)['kernel']
      way = np.clip((count - 2) / 4, 0, 1)
      at = lambda x: 1 / (1 + np.exp(-5 * (0.5 - x)))
      r = (at(way) - at(1)) / (at(0) - at(1))
      for place in np.ndindex(*w.shape):
        u, grid = float(w[place]), values[(slice(None), *place)]
        if count <= 2:
          expected = u
        elif count >= 6:
          expected = float(nearest[place])
        elif not grid[0] <= u <= grid[-1]:
          edge = grid[0] if u < grid[0] else grid[-1]
          expected = edge + r * (u - edge)
        else:
          n = min(max(np.searchsorted(grid, u, side='right') - 1, 0), len(grid) - 2)
          middle = (grid[n] + grid[n + 1]) / 2
          expected = min(max(middle + (u - middle) / r, grid[n]), grid[n + 1])
        self.assertAlmostEqual(float(out[place]), expected, places=4)
      if count in (4, 7):
        kept = transform.pack(params, state)['kernel']
        self.assertEqual(jsp.is_format(kept), count == 7)
        np.testing.assert_array_equal(jsp.densify(kept), out)
      state = transform.update(params, state)
    self.assertEqual(apply._cache_size(), 1)
    grads = jax.jit(jax.grad(lambda p: transform.apply(p, state)['kernel'].sum()))(params)
    np.testing.assert_array_equal(grads['kernel'], jnp.ones_like(w))

  @parameterized.parameters((10, 1e-8, 5, 0.5), (10, 99, 9, 0.0), (10**9, 10, 10**9 - 1, 0.0))
  def test_ends_of_the_schedule(self, end, steepness, count, r):
    transform = jsp.parq('int4', end=end, steepness=steepness)
    params, state = transform.init({'kernel': jnp.array([[7.0], [1.5], [-0.5], [2.25]])})
    state = jax.tree.map(
        lambda x: jnp.asarray(count, x.dtype) if jnp.shape(x) == () else x, state)
    out = transform.apply(params, state)['kernel'].ravel()
    last = min(max(2.5 + (2.25 - 2.5) / r, 2), 3) if r else 2
    np.testing.assert_allclose(out, [7, 1.5, -0.5, last], rtol=1e-6)

  def test_bad(self):
    for kwargs, message in (({'dtype': 'mxfp4', 'end': 3}, "got 'mxfp4'"),
                            ({'dtype': 'int4', 'end': 0}, 'got 0, 0'),
                            ({'dtype': 'int4', 'end': 2, 'start': 2}, 'got 2, 2'),
                            ({'dtype': 'int4', 'end': 2, 'steepness': -1}, 'got -1')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.parq(**kwargs)


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
