"""AWQ and SmoothQuant against numpy, and bias correction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def layer(seed=0, rows=32, outputs=8):
  """A weight, and inputs of which a few are much larger than the others."""
  rng = np.random.default_rng(seed)
  size = np.where(rng.random(rows) < 0.1, 60.0, 1.0)
  x = rng.normal(size=(256, rows)) * size
  return rng.normal(size=(rows, outputs)).astype(np.float32), x.astype(np.float32)


def rounded(w, high, group):
  out = np.zeros_like(w)
  for start in range(0, len(w), group):
    cell = w[start:start + group]
    step = np.abs(cell).max(0) / high
    out[start:start + group] = np.clip(np.rint(cell / step), -high, high) * step
  return out


def awq_oracle(w, x, high, group):
  """The least error of the 20 powers, in float64."""
  w, x = w.astype(np.float64), x.astype(np.float64)
  size = np.sqrt(np.square(x).mean(0))
  size = np.maximum(size / size.max(), 1e-4)
  best = np.inf
  for power in np.arange(20) / 20:
    s = size**power
    s = (s / np.sqrt(s.min() * s.max()))[:, None]
    out = rounded(s * w, high, group) / s
    best = min(best, np.square(x @ (out - w)).sum())
  return best


class AwqTest(parameterized.TestCase):

  @parameterized.parameters((4, 8, 7), (3, 32, 3), (4, 7, 7))
  def test_finds_the_least_of_the_oracle(self, bits, group, high):
    transform = jsp.awq(f'int{bits}', group=group)
    for seed in range(3):
      w, x = layer(seed)
      params, state = transform.init({'kernel': w}, stats={'kernel': jnp.asarray(x.T @ x)})
      out = transform.apply(params, state)['kernel']
      found = np.square(x @ (np.asarray(out, np.float64) - w)).sum()
      np.testing.assert_allclose(found, awq_oracle(w, x, high, group), rtol=2e-2)
      self.assertLess(found, np.square(x @ (rounded(w, high, group) - w)).sum())
      stored = transform.pack(params, state)['kernel']
      np.testing.assert_array_equal(stored.todense(), out)
      y = jax.jit(jsp.dispatch(lambda p, x: x @ p['kernel']))({'kernel': stored}, x)
      np.testing.assert_allclose(y, x @ np.asarray(out), rtol=1e-3, atol=1e-2)

  def test_norms_serve_and_stacks_choose_by_themselves(self):
    ws, xs = (np.stack(part) for part in zip(*(layer(seed) for seed in range(2))))
    norms = np.sqrt(np.square(xs).sum(1))
    transform = jsp.awq('int4', group=8)
    both = transform.apply(*transform.init({'k': ws}, stats={'k': jnp.asarray(norms)}))['k']
    one = transform.apply(*transform.init({'k': ws[1]}, stats={'k': jnp.asarray(norms[1])}))['k']
    np.testing.assert_allclose(both[1], one, rtol=1e-5)
    with self.assertRaisesRegex(ValueError, 'k: no statistics'):
      transform.init({'k': ws})


class SmoothQuantTest(parameterized.TestCase):

  @parameterized.parameters(0.5, 0.8)
  def test_scales_and_product_like_numpy(self, alpha):
    w, x = layer()
    fn = lambda p, x: jnp.einsum('...i,io->...o', x, p['kernel'])
    params, state = jsp.one_shot(jsp.smoothquant(alpha=alpha), fn, {'kernel': w}, [x],
                                 observer=jsp.input_max)
    view = jsp.smoothquant(alpha=alpha).apply(params, state)
    s = np.abs(x).max(0) ** alpha / np.abs(w).max(1) ** (1 - alpha)
    found = np.asarray(view['kernel'].input_scale[:, 0])
    np.testing.assert_allclose(found / found[0], s / s[0], rtol=1e-4)
    divided = x / found
    step = np.abs(divided).max() / 127
    inputs = np.rint(divided / step) * step
    weight = rounded(found[:, None] * w, 127, 32)
    run = jsp.quantize_activations(fn, 'int8')
    y = jax.jit(run)(view, x[None])[0]
    np.testing.assert_allclose(y, inputs @ weight, rtol=1e-3, atol=0.05 * np.abs(x @ w).mean())
    plain = jsp.quantize('int8')
    rough = run(plain.apply(*plain.init({'kernel': w})), x)
    error = lambda y: np.square(np.asarray(y) - x @ w).sum()
    self.assertLess(error(y), 0.5 * error(rough))

  @pytest.mark.slow
  def test_attention_and_stacks(self):
    rng = np.random.default_rng(0)
    params = {'out': {'kernel': jnp.asarray(rng.normal(size=(4, 3, 8)), jnp.float32)},
              'experts': {'kernel': jnp.asarray(rng.normal(size=(2, 8, 5)), jnp.float32)}}
    x = jnp.asarray(rng.normal(size=(6, 4, 3)) * rng.gamma(0.3, size=(4, 3)) * 9, jnp.float32)

    def fn(p, x):
      y = jnp.einsum('nhd,hdo->no', x, p['out']['kernel'])
      return jnp.einsum('no,eop->enp', y, p['experts']['kernel'])

    transform = jsp.smoothquant()
    latents, state = jsp.one_shot(transform, fn, params, [x], observer=jsp.input_max)
    y = jsp.quantize_activations(fn, 'int8')(transform.apply(latents, state), x)
    np.testing.assert_allclose(y, fn(params, x), atol=0.05 * float(jnp.abs(fn(params, x)).max()))

  def test_bad(self):
    with self.assertRaisesRegex(ValueError, r'alpha must be in \[0, 1\], got 2'):
      jsp.smoothquant(alpha=2)


class BiasTest(absltest.TestCase):

  def test_the_mean_output_is_kept(self):
    w, x = layer()
    x = x + 3
    params = {'dense': {'kernel': jnp.asarray(w), 'bias': jnp.ones(8)}, 'head': {'kernel': w.T}}
    fn = lambda p, x: (x @ p['dense']['kernel'] + p['dense']['bias'][None]) @ p['head']['kernel']
    means = jsp.calibrate(fn, params, [x[:100], x[100:]], jsp.input_mean)
    np.testing.assert_allclose(means['dense/kernel'], x.mean(0), rtol=1e-4)
    transform = jsp.at('dense/kernel', jsp.quantize('int3'))
    rough = transform.pack(*transform.init(params))
    fixed = jsp.correct_bias(params, rough, means)
    out = lambda p: x @ np.asarray(p['dense']['kernel']) + np.asarray(p['dense']['bias'])
    off = lambda p: np.abs((out(p) - out(params)).mean(0)).max()
    self.assertGreater(off(jsp.densify(rough)), 0.5)
    self.assertLess(off(jsp.densify(fixed)), 1e-2)
    with self.assertRaisesRegex(ValueError, "no weight with a mean has a 'b' beside it"):
      jsp.correct_bias(params, rough, means, bias='b')
    with self.assertRaisesRegex(ValueError, 'dense/kernel: a mean of shape'):
      jsp.correct_bias(params, rough, {'dense/kernel': jnp.ones(3)})


if __name__ == '__main__':
  absltest.main()
