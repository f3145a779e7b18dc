"""AdaRound and AutoRound against every rounding there is, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def problem(rows, columns, seed=0):
  """A weight, and the Gram of inputs that are correlated."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(4 * rows, rows)) @ (np.eye(rows) + 0.6 * rng.normal(size=(rows, rows)))
  w = rng.normal(size=(rows, columns)).astype(np.float32)
  return w, (x.T @ x).astype(np.float32)


def error(new, w, gram):
  """`|X (W' - W)|^2` of each output, in float64."""
  off = np.asarray(new, np.float64) - w
  return np.einsum('ro,rs,so->o', off, np.asarray(gram, np.float64), off)


def best(w, gram, bits):
  """The least error of any rounding up or down, narrow and symmetric, a scale an output."""
  high, found = 2 ** (bits - 1) - 1, []
  for column in w.T.astype(np.float64):
    step = np.abs(column).max() / high
    ups = np.array(list(itertools.product((0, 1), repeat=len(column))))
    tried = np.clip(np.floor(column / step) + ups, -high, high) * step - column
    found.append(np.einsum('nr,rs,ns->n', tried, np.asarray(gram, np.float64), tried).min())
  return np.array(found)


def run(transform, w, gram):
  state = transform.init({'kernel': w}, stats={'kernel': gram})
  out = transform.apply(*state)['kernel']
  np.testing.assert_array_equal(jsp.densify(transform.pack(*state))['kernel'], out)
  return np.asarray(out)


class LearnedRoundingTest(parameterized.TestCase):

  def test_adaround_is_near_the_best_of_all(self):
    w, gram = problem(10, 24)
    least, nearest = best(w, gram, 3), error(run(jsp.quantize('int3'), w, gram), w, gram)
    found = error(run(jsp.adaround('int3'), w, gram), w, gram)
    self.assertTrue((found >= least * (1 - 1e-4)).all())
    self.assertTrue((found <= nearest * (1 + 1e-4)).all())
    gained = (nearest.sum() - found.sum()) / (nearest.sum() - least.sum())
    self.assertGreater(gained, 0.65)

  @parameterized.parameters('adaround', 'autoround')
  def test_grids_groups_and_stacks(self, method):
    w, gram = problem(20, 6, seed=1)
    ws, grams = np.stack([w, 0 * w, 3 * w[::-1]]), np.stack([gram, gram, gram[::-1, ::-1]])
    for arguments in ("'int4', group=8", "'uint3', group=7", "'int2'"):
      steps = ', steps=300' if method == 'adaround' else ''
      learned = jsp.parse(f'{method}({arguments}{steps})')
      nearest = jsp.parse(f'quantize({arguments})')
      out, plain = run(learned, ws, grams), run(nearest, ws, grams)
      self.assertTrue(np.isfinite(out).all())
      np.testing.assert_array_equal(out[1], 0)
      for n in (0, 2):
        a, b = (error(v[n], ws[n], grams[n]) for v in (out, plain))
        self.assertTrue((a <= b * (1 + 1e-3) + 1e-4).all(), (arguments, a, b))
        self.assertLess(a.sum(), 0.7 * b.sum(), arguments)
      alone = run(learned, w, gram)
      np.testing.assert_allclose(error(alone, w, gram).sum(), error(out[0], w, gram).sum(),
                                 rtol=0.05)

  def test_autoround_scales_stay_within_half(self):
    w, gram = problem(16, 8)
    transform = jsp.autoround('int3')
    _, state = transform.init({'kernel': w}, stats={'kernel': gram})
    scale = np.asarray(state.weights['kernel'].scale[0]) / (np.abs(w).max(0) / 3)
    self.assertTrue(((scale >= 0.5 - 1e-5) & (scale <= 1 + 1e-5)).all())
    self.assertLess(scale.min(), 0.99)

  def test_bad(self):
    w, gram = problem(4, 3)
    for call, message in (
        (lambda: jsp.adaround('nf4'), 'learns the rounding of integers; got nf4'),
        (lambda: jsp.adaround('int4', group=(2, 2)), 'got block'),
        (lambda: jsp.adaround('int4', steps=0), 'steps must be a positive integer'),
        (lambda: jsp.autoround('int4', steps=0), 'steps must be a positive integer'),
        (lambda: jsp.autoround('int4', rate=-1.0), 'rate must be a positive number'),
        (lambda: jsp.autoround('int8', granularity='tensor'), 'each channel or group'),
        (lambda: jsp.autoround('mxint8'), 'power_of_two'),
        (lambda: jsp.adaround().init({'kernel': w}), 'kernel: no statistics'),
        (lambda: jsp.autoround().init({'kernel': w}, stats={'kernel': gram * np.inf}),
         'kernel: .* NaN or infinite')):
      with self.assertRaisesRegex(ValueError, message):
        call()
    low = jsp.adaround(steps=20)
    out = low.apply(*low.init({'kernel': jnp.asarray(w, jnp.bfloat16)}, stats={'kernel': gram}))
    self.assertEqual(out['kernel'].dtype, jnp.bfloat16)

  def test_convolution_in_groups(self):
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=2)
    x = jnp.asarray(rng.normal(size=(4, 6, 6, 4)) + 2, jnp.float32)   # correlated by their mean
    off = {}
    for text in ("quantize('int3')", "adaround('int3', steps=200)", "autoround('int3')"):
      transform = jsp.parse(text)
      state = jsp.one_shot(transform, fn, {'kernel': kernel}, [x])
      new = fn(transform.apply(*state), x)
      off[text] = float(jnp.square(new - fn({'kernel': kernel}, x)).sum())
    self.assertLess(max(list(off.values())[1:]), 0.9 * off["quantize('int3')"])


if __name__ == '__main__':
  absltest.main()
