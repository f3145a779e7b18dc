"""Fake-quantized activations."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import trace
from tests.trace import models
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def oracle(x, limit, axis):
  """Absmax rounding, in numpy."""
  x = np.asarray(x, np.float32)
  peak = np.abs(x).max(axis=axis, keepdims=True)
  scale = np.where(peak > 0, peak / np.float32(limit), 1)
  return np.round(x / scale) * scale


class QuantizeActivationsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('int8', 'int8', 127, 'tensor', None), ('int4', 'int4', 7, 'tensor', None),
      ('rows', 'int8', 127, 'row', -1), ('int3 rows', 'int3', 3, 'row', -1))
  def test_against_numpy(self, dtype, limit, granularity, axis):
    x, w = normal(5, 6), normal(6, 4, seed=1)
    run = trace.quantize_activations(lambda p, x: x @ p['w'], dtype, granularity=granularity)
    np.testing.assert_allclose(run({'w': w}, x), oracle(x, limit, axis) @ w, rtol=1e-5, atol=1e-5)
    left = trace.quantize_activations(lambda p, x: p['w'] @ x.T, dtype, granularity=granularity)
    np.testing.assert_allclose(left({'w': w.T}, x), (oracle(x, limit, axis) @ w).T, rtol=1e-5,
                               atol=1e-5)

  def test_convolution_rows_are_examples(self):
    x, w = normal(2, 5, 5, 3), normal(3, 3, 3, 4)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    run = trace.quantize_activations(fn, granularity='row')
    wanted = fn({'w': w}, jnp.asarray(oracle(x, 127, (1, 2, 3))))
    np.testing.assert_allclose(run({'w': w}, x), wanted, rtol=1e-5, atol=1e-5)

  def test_gradient_is_straight_through(self):
    x, w = normal(5, 6), normal(6, 4, seed=1)
    run = trace.quantize_activations(lambda p, x: x @ p['w'], 'int4')
    by_x = jax.grad(lambda x: run({'w': w}, x).sum())(x)
    np.testing.assert_allclose(by_x, jnp.broadcast_to(w.sum(1), x.shape), rtol=1e-5)
    by_w = jax.grad(lambda w: run({'w': w}, x).sum())(w)
    np.testing.assert_allclose(by_w, jnp.broadcast_to(oracle(x, 7, None).sum(0)[:, None], w.shape),
                               rtol=1e-5)

  def test_lookups_and_products_of_activations_are_left_alone(self):
    fn = lambda p, ids: jnp.take(p['w'], ids, axis=0) @ jnp.take(p['w'], ids, axis=0).T
    params, ids = {'w': normal(7, 4)}, jnp.array([1, 5])
    np.testing.assert_array_equal(trace.quantize_activations(fn, 'int3')(params, ids),
                                  fn(params, ids))

  @parameterized.parameters('cnn', 'equinox_net')
  def test_models(self, model):
    fn, params, x = models.ALL[model]()
    kept, rest = stored.arrays_of(params)
    run = jax.jit(lambda kept: trace.quantize_activations(fn)(stored.with_arrays(kept, rest), x))
    out, wanted = run(kept), fn(params, x)
    chex.assert_trees_all_close(out, wanted, atol=0.1 * float(jnp.abs(wanted).max()), rtol=0)
    self.assertGreater(float(jnp.abs(out - wanted).max()), 0)

  def test_formats_zeros_and_low_precision(self):
    packed = {'w': stored.int8(normal(8, 4))}
    run = trace.quantize_activations(lambda p, x: x @ p['w'])
    x = normal(3, 8)
    np.testing.assert_allclose(run(packed, x), oracle(x, 127, None) @ packed['w'].todense(),
                               rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(run(packed, jnp.zeros((2, 8))), jnp.zeros((2, 4)))
    self.assertEqual(run(packed, jnp.zeros((0, 8))).shape, (0, 4))
    low = run({'w': jnp.ones((8, 4), jnp.bfloat16)}, x.astype(jnp.bfloat16))
    self.assertEqual(low.dtype, jnp.bfloat16)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "'int99' is not a grid"):
      trace.quantize_activations(len, 'int99')
    with self.assertRaisesRegex(ValueError, 'granularity is one of'):
      trace.quantize_activations(len, granularity='channel')


if __name__ == '__main__':
  absltest.main()
