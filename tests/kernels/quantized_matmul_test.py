"""Products with integer codes against float64: values, gradients, rounding, what compiles."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies as st

from jaxsparse.kernels import quantized_matmul as module
from tests.kernels import aot

quantized_matmul = module.quantized_matmul


def case(rows, k, n, groups, dtype=jnp.int8, seed=0):
  """`(x, codes, scale)` and the product in float64."""
  rng = np.random.default_rng(seed)
  low = -8 if dtype == jnp.int4 else -128
  codes, scale = rng.integers(low, -low, (k, n)), rng.uniform(0.1, 1, (groups, n))
  x = rng.normal(size=(rows, k))
  wanted = x @ (codes * np.repeat(scale, k // groups, 0))
  arrays = jnp.asarray(x, jnp.float32), jnp.asarray(codes).astype(dtype), jnp.float32(scale)
  return arrays, wanted


def near(found, wanted, tolerance=1e-5):
  np.testing.assert_allclose(np.asarray(found, np.float64), wanted,
                             atol=tolerance * np.abs(wanted).max())


class QuantizedMatmulTest(parameterized.TestCase):

  @parameterized.product(dtype=(jnp.int8, jnp.int4), groups=(1, 3))
  def test_xla(self, dtype, groups):
    args, wanted = case(5, 12, 7, groups, dtype)
    near(jax.jit(quantized_matmul)(*args), wanted)

  @hypothesis.given(st.sampled_from([1, 7, 260]), st.sampled_from([(64, 2), (96, 3), (320, 5)]),
                    st.sampled_from([8, 130]), st.sampled_from([jnp.int8, jnp.int4]))
  @hypothesis.settings(max_examples=5)
  def test_pallas(self, rows, depth, outputs, dtype):
    args, wanted = case(rows, depth[0], outputs, depth[1], dtype)
    near(quantized_matmul(*args, backend='pallas_tpu', interpret=True), wanted)

  def test_pallas_sums_over_steps(self):
    args, wanted = case(3, 4096, 8, 32)
    near(quantized_matmul(*args, backend='pallas_tpu', interpret=True), wanted)

  def test_activations_are_rounded_row_by_row(self):
    (x, codes, scale), _ = case(4, 12, 5, 1)
    x = x.at[1].set(0).at[2, 3].set(jnp.nan)
    step = np.abs(x).max(-1, keepdims=True) / 127
    rounded = np.rint(np.asarray(x) / np.where(step > 0, step, 1)) * step
    out = jax.jit(functools.partial(quantized_matmul, activations='int8'))(x, codes, scale)
    wanted = rounded @ (np.asarray(codes, np.float64) * np.asarray(scale))
    near(out[jnp.array([0, 1, 3])], wanted[[0, 1, 3]])
    self.assertTrue(np.isnan(out[2]).all())

  @parameterized.product(kwargs=({}, {'activations': 'int8'},
                                 {'backend': 'pallas_tpu', 'interpret': True}))
  def test_gradients_are_those_of_the_decoded_weight(self, kwargs):
    groups = 2 if 'backend' in kwargs else 1
    (x, codes, scale), _ = case(3, 64, 5, groups)
    run = lambda x, scale: quantized_matmul(x, codes, scale, **kwargs)
    plain = lambda x, scale: x @ (codes * jnp.repeat(scale, 64 // groups, 0))
    dy = jnp.arange(15.0).reshape(3, 5)
    for got, true in zip(*(jax.jit(lambda x, s, f=f: jax.vjp(f, x, s)[1](dy))(x, scale)
                           for f in (run, plain))):
      near(got, np.asarray(true))

  def test_leading_axes_vmap_and_bfloat16(self):
    (x, codes, scale), wanted = case(6, 12, 5, 1)
    found = jax.vmap(lambda x: quantized_matmul(x, codes, scale))(x.reshape(2, 3, 12))
    near(found.reshape(6, 5), wanted)
    found = quantized_matmul(x.astype(jnp.bfloat16), codes, scale)
    self.assertEqual(found.dtype, jnp.bfloat16)
    near(found, wanted, 2e-2)
    self.assertEqual(quantized_matmul(x[:0], codes, scale).shape, (0, 5))

  def test_errors(self):
    (x, codes, scale), _ = case(3, 12, 5, 3)
    with self.assertRaisesRegex(ValueError, 'G dividing K'):
      quantized_matmul(x, codes, jnp.ones((5, 5)))
    with self.assertRaisesRegex(TypeError, 'int8 or int4'):
      quantized_matmul(x, codes.astype(jnp.int32), scale)
    with self.assertRaisesRegex(ValueError, 'one scale a column'):
      quantized_matmul(x, codes, scale, activations='int8')
    with self.assertRaisesRegex(ValueError, 'multiple of 32 rows'):
      quantized_matmul(x, codes, scale, backend='pallas_tpu')
    with self.assertRaisesRegex(ValueError, 'xla, pallas_tpu or None'):
      quantized_matmul(x, codes, scale, backend='cuda')


@pytest.mark.tpu_aot
@pytest.mark.parametrize('chip', aot.CHIPS)
def test_tpus_read_codes_and_write_nothing_else(chip):
  aot.check_codes_alone(aot.compiled()[chip]['quantized'], temporaries={})


if __name__ == '__main__':
  absltest.main()
