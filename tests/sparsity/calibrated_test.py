"""Edge cases of what prunes by calibration: statistics, dtypes, roles of axes, stacks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from tests.trace import models

METHODS = ('wanda(0.5)', 'sparsegpt(0.5, block=4)', 'optimal_brain(0.5)')
PATTERNS = ('wanda(pattern=n_m(2, 4))', 'sparsegpt(pattern=n_m(2, 4))',
            'optimal_brain(pattern=n_m(2, 4))')
each = parameterized.parameters(*METHODS, *PATTERNS)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def gram(rows, seed=1, samples=30):
  x = normal(samples, rows, seed=seed)
  return x.T @ x


def run(text, w, statistic, **extra):
  """Effective weight and mask."""
  transform = jsp.parse(text)
  params, state = transform.init({'kernel': w}, stats={'kernel': statistic}, **extra)
  return transform.apply(params, state)['kernel'], jsp.masks(state)['kernel']


class CalibratedTest(parameterized.TestCase):

  @each
  def test_missing_statistics(self, text):
    transform = jsp.at('.*', jsp.parse(text))
    for extra in ({}, {'stats': {}}, {'stats': {'other': gram(8)}}):
      with self.assertRaisesRegex(
          ValueError, r'^dense/kernel: no statistics.*pass init\(params, stats=calibrate\('):
        transform.init({'dense': {'kernel': normal(8, 4)}}, **extra)

  @each
  def test_statistics_that_do_not_fit_or_are_not_finite(self, text):
    w, bad = normal(8, 4), gram(8).at[2, 2].set(jnp.nan)
    with self.assertRaisesRegex(ValueError, '^kernel: 1 of 64 values .* NaN or infinite'):
      run(text, w, bad)
    for statistic in (gram(4), jnp.ones((2, 2, 8, 8)), jnp.ones(7), jnp.ones((3, 8))):
      with self.assertRaisesRegex(ValueError, r'^kernel: a statistic of shape .* does not fit'):
        run(text, w, statistic)
    with self.assertRaisesRegex(ValueError, '^kernel: expected the statistic of'):
      run(text, w, (1.0, 2.0))

  @each
  def test_dead_inputs_go_first_and_do_no_harm(self, text):
    w = normal(8, 6)
    dead = jnp.asarray([1, 0, 1, 1, 0, 1, 1, 1])
    alive = gram(8) * dead[:, None] * dead[None]
    out, mask = run(text, w, alive)
    self.assertTrue(jnp.isfinite(out).all())
    self.assertFalse(mask[jnp.asarray([1, 4])].any())
    self.assertEqual(int(mask.sum()), 24)
    out, mask = run(text, w, jnp.zeros((8, 8)))   # nothing was ever active
    self.assertEqual(int(mask.sum()), 24)
    np.testing.assert_array_equal(out, jnp.where(mask, w, 0))

  @each
  def test_fewer_samples_than_inputs(self, text):
    out, mask = run(text, normal(16, 6), gram(16, samples=3))
    self.assertTrue(jnp.isfinite(out).all())
    self.assertEqual(int(mask.sum()), 48)

  @parameterized.parameters('sparsegpt(0.5, damping=0.0)', 'optimal_brain(0.5, damping=0.0)')
  def test_no_damping_of_a_singular_gram(self, text):
    with self.assertRaisesRegex(ValueError, '^kernel: .*larger damping'):
      run(text, normal(4, 2), jnp.ones((4, 4)))

  @each
  def test_ties_keep_the_lower_row(self, text):
    _, mask = run(text, jnp.ones((4, 2)), jnp.eye(4))
    self.assertEqual(mask.astype(int).tolist(), [[1, 1], [1, 1], [0, 0], [0, 0]])

  @each
  def test_low_precision_weights(self, text):
    w = normal(8, 6).astype(jnp.bfloat16)
    transform = jsp.parse(text)
    params, state = transform.init({'kernel': w}, stats={'kernel': gram(8)})
    out = transform.apply(params, state)['kernel']
    self.assertEqual((params['kernel'].dtype, out.dtype), (jnp.bfloat16, jnp.bfloat16))
    expected, mask = run(text, w.astype(jnp.float32), gram(8))
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], mask)
    np.testing.assert_array_equal(out, expected.astype(jnp.bfloat16))

  @each
  @pytest.mark.sampled(2)
  def test_every_layer_of_a_stack_by_itself(self, text):
    w = normal(2, 3, 8, 4)
    grams = jnp.stack([jnp.stack([gram(8, seed=10 * i + j) for j in range(3)]) for i in range(2)])
    axes = {'kernel': jsp.DimensionNumbers((2,), (3,))}
    out, mask = run(text, w, grams, axes=axes)
    for i in range(2):
      for j in range(3):
        alone, alone_mask = run(text, w[i, j], grams[i, j])
        np.testing.assert_array_equal(mask[i, j], alone_mask)
        np.testing.assert_allclose(out[i, j], alone, rtol=1e-4, atol=1e-5)

  @parameterized.parameters(*models.ALL)
  @pytest.mark.sampled(2)
  def test_stock_models(self, model):
    fn, params, x = models.ALL[model]()
    stats = jsp.calibrate(fn, params, [x], jsp.gram)
    axes = jsp.axes_of(fn, params, x)
    pattern = '|'.join(stats)
    transform = jsp.at(pattern, jsp.sparsegpt(0.5))
    latents, state = transform.init(params, stats=stats, axes=axes)
    self.assertEqual(set(jsp.masks(state)), set(stats))
    self.assertAlmostEqual(jsp.sparsity(state), 0.5, delta=0.08)   # odd sizes round
    out = fn(transform.apply(latents, state), x)
    self.assertTrue(jnp.isfinite(out).all())

  @each
  @pytest.mark.sampled(2)
  def test_a_convolution_is_the_product_with_its_patches(self, text):
    w, x = normal(2, 2, 4, 6), normal(3, 5, 5, 4, seed=2)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['kernel'], (1, 1), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    stats = jsp.calibrate(fn, {'kernel': w}, [x], jsp.gram)
    patches = jnp.stack([x[:, i:i + 4, j:j + 4] for i in range(2) for j in range(2)], -2)
    rows = patches.reshape(-1, 16)
    out, mask = run(text, w, stats['kernel'], axes=jsp.axes_of(fn, {'kernel': w}, x))
    expected, expected_mask = run(text, w.reshape(16, 6), rows.T @ rows)
    np.testing.assert_array_equal(mask.reshape(16, 6), expected_mask)
    np.testing.assert_allclose(out.reshape(16, 6), expected, rtol=1e-3, atol=1e-4)

  @each
  @pytest.mark.sampled(2)
  def test_groups_of_a_convolution_by_themselves(self, text):
    w, x = normal(1, 4, 6), normal(40, 1, 8, seed=2)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['kernel'], (1,), 'VALID', feature_group_count=2,
        dimension_numbers=('NWC', 'WIO', 'NWC'))
    stats, axes = jsp.calibrate(fn, {'kernel': w}, [x], jsp.gram), jsp.axes_of(
        fn, {'kernel': w}, x)
    if text.startswith('sparsegpt(0.5'):
      text = 'sparsegpt(0.5)'
    out, mask = run(text, w, stats['kernel'], axes=axes)
    for group in range(2):
      rows, part = x[:, 0, 4 * group:4 * group + 4], w[0, :, 3 * group:3 * group + 3]
      expected, expected_mask = run(text, part, rows.T @ rows)
      np.testing.assert_array_equal(mask[0, :, 3 * group:3 * group + 3], expected_mask)
      np.testing.assert_allclose(out[0, :, 3 * group:3 * group + 3], expected, rtol=1e-3,
                                 atol=1e-4)

  @each
  @pytest.mark.sampled(2)
  def test_attention_reduces_over_several_axes(self, text):
    w, x = normal(2, 4, 6), normal(20, 2, 4, seed=2)
    fn = lambda p, x: jnp.einsum('nhd,hdo->no', x, p['kernel'])
    stats = jsp.calibrate(fn, {'kernel': w}, [x], jsp.gram)
    out, mask = run(text, w, stats['kernel'], axes=jsp.axes_of(fn, {'kernel': w}, x))
    rows = x.reshape(20, 8)
    expected, expected_mask = run(text, w.reshape(8, 6), rows.T @ rows)
    np.testing.assert_array_equal(mask.reshape(8, 6), expected_mask)
    np.testing.assert_allclose(out.reshape(8, 6), expected, rtol=1e-3, atol=1e-4)

  @each
  def test_under_jit(self, text):
    w, g = normal(8, 4), gram(8)
    transform = jsp.parse(text)
    init = jax.jit(lambda w, g: transform.init({'kernel': w}, stats={'kernel': g}))
    params, state = init(w, g)
    out, mask = run(text, w, g)
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], mask)
    np.testing.assert_allclose(params['kernel'] * mask, out, rtol=1e-4, atol=1e-5)

  def test_plan(self):
    params = {'kernel': jax.ShapeDtypeStruct((10, 4), jnp.float32)}
    for text, kept in (('wanda(0.75)', 8), ('sparsegpt(0.75)', 10)):
      row, = jsp.plan(jsp.parse(text), params, stats={'kernel': jnp.eye(10)})
      self.assertEqual((row.kept, row.scheme), (kept, text))


if __name__ == '__main__':
  absltest.main()
