"""Entropy calibration against loops over bins, for weights and for activations."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import entropy


def divergence(counts, levels, kept):
  """Of one threshold, as TensorRT's algorithm is told."""
  p = counts[:kept].copy()
  p[-1] += counts[kept:].sum()
  q, step = np.zeros(kept), kept // levels
  for level in range(levels):
    stop = kept if level == levels - 1 else (level + 1) * step
    some = p[level * step:stop] > 0
    if some.any():
      q[level * step:stop][some] = counts[level * step:stop].sum() / some.sum()
  p, q = p / counts.sum(), q / q.sum()
  return sum(a * np.log(a / max(b, 1e-9)) for a, b in zip(p, q) if a > 0)


class EntropyTest(parameterized.TestCase):

  @parameterized.parameters(128, 8)
  def test_threshold(self, levels):
    rng = np.random.default_rng(levels)
    cells = np.abs([rng.normal(size=4000), rng.standard_t(2, size=4000), rng.laplace(size=4000),
                    rng.uniform(size=4000)])
    peaks = cells.max(1)
    counts = entropy.histogram(jnp.asarray(cells, jnp.float32), jnp.asarray(peaks, jnp.float32))
    self.assertEqual(counts.sum(1).tolist(), [4000] * 4)
    for one, kept in zip(np.asarray(counts, np.float64), entropy.threshold(counts, levels)):
      # Ties of float32 sums are not told apart.
      least = min(divergence(one, levels, k) for k in range(128, len(one) + 1, 16))
      self.assertLessEqual(divergence(one, levels, int(kept)), least * 1.001 + 1e-6)

  def test_weights(self):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.standard_t(2, size=(3000, 3)), jnp.float32)
    transform = jsp.quantize('int4', scale='kl')
    params, state = transform.init({'kernel': w})
    scale = transform.pack(params, state)['kernel'].scale_values[0]
    peaks = np.abs(w).max(0)
    counts = entropy.histogram(jnp.abs(w).T, jnp.asarray(peaks))
    expected = peaks * np.asarray(entropy.threshold(counts, 8)) / 2048 / 7
    np.testing.assert_allclose(scale, expected, rtol=1e-5)
    self.assertLess((np.asarray(scale) / (peaks / 7)).max(), 0.9)
    odd = jnp.zeros((8, 2)).at[0, 1].set(3)
    out = transform.apply(*transform.init({'kernel': odd}))['kernel']
    np.testing.assert_array_equal(out[:, 0], 0)
    np.testing.assert_allclose(out[0, 1], 3, rtol=1e-6)
    for kwargs in ({'dtype': 'int4', 'group': 32}, {'dtype': 'uint4'}, {'dtype': 'nf4'}):
      with self.assertRaisesRegex(ValueError, 'kl compares histograms of many values'):
        jsp.quantize(scale='kl', **kwargs)

  def test_activations(self):
    rng = np.random.default_rng(1)
    fn, params = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b'], {'a': jnp.eye(4), 'b': jnp.eye(4)}
    batches = [jnp.asarray(rng.laplace(size=(800, 4)) * s, jnp.float32) for s in (1, 0.1, 7)]
    stats = jsp.calibrate(fn, params, batches, jsp.histogram)
    every = np.abs(np.concatenate(batches)).ravel()
    seen = stats['a']
    top = 2.0 ** int(seen.exponent)
    expected, _ = np.histogram(np.minimum(every, top), bins=4096, range=(0, top))
    self.assertTrue(top / 2 <= every.max() < top)
    np.testing.assert_array_equal(seen.counts, expected)
    ranges = jsp.kl_ranges(stats, 'int8')
    kept = int(entropy.threshold(jnp.asarray(expected, jnp.float32)[None], 128)[0])
    peak = min(kept / 4096 * top, every.max())
    np.testing.assert_allclose(ranges['a'], (-peak, peak), rtol=1e-6)
    self.assertEqual(float(ranges['b'].low), 0)
    run = jsp.quantize_activations(fn, 'int8', ranges=ranges)
    self.assertTrue(np.isfinite(run(params, batches[0])).all())
    with self.assertRaisesRegex(ValueError, 'a: a statistic of jsp.histogram is needed, got Range'):
      jsp.kl_ranges(jsp.calibrate(fn, params, batches, jsp.range))
    with self.assertRaisesRegex(ValueError, "signed integers, got 'uint8'"):
      jsp.kl_ranges(stats, 'uint8')


if __name__ == '__main__':
  absltest.main()
