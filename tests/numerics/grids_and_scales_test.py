"""Grids and absmax scales by hand."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import grids
from jaxsparse.numerics import scales


class GridTest(parameterized.TestCase):

  @parameterized.parameters((2, True, -1, 1), (2, False, -2, 1), (3, True, -3, 3),
                            (4, True, -7, 7), (4, False, -8, 7), (8, True, -127, 127),
                            (8, False, -128, 127))
  def test_range(self, bits, narrow, low, high):
    grid = grids.integer(bits, narrow=narrow)
    self.assertEqual((grid.low, grid.high, grid.limit, grid.zero_code), (low, high, high, 0))

  @parameterized.parameters(1, 9, 0, 2.0, True, '4')
  def test_bad_bits(self, bits):
    with self.assertRaisesRegex(ValueError, 'bits must be an integer from 2 to 8'):
      grids.integer(bits)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, "'int9' is not a grid; known: binary, .*int3, .*nf4"):
      grids.grid('int9')

  @hypothesis.settings(max_examples=30)
  @hypothesis.given(halves=st.lists(st.integers(-30, 30), min_size=8, max_size=8),
                    bits=st.integers(2, 8))
  def test_encode_is_half_to_even(self, halves, bits):
    grid = grids.integer(bits)
    x = np.asarray(halves, np.float32) / 2
    expected = np.rint(np.clip(x, grid.low, grid.high))
    codes = grid.encode(jnp.asarray(x))
    self.assertEqual(codes.dtype, jnp.int8)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(grid.decode(codes), expected)

  def test_huge_values_saturate_before_the_cast(self):
    codes = grids.grid('int8').encode(jnp.asarray([1e30, -1e30, np.inf, -np.inf]))
    self.assertEqual(codes.tolist(), [127, -127, 127, -127])


class NearestTest(parameterized.TestCase):

  @parameterized.parameters('int8', 'int3', 'int2', 'ternary', 'binary', 'nf4', 'float8_e4m3')
  def test_is_what_the_codes_say_to_the_bit(self, name):
    grid = grids.grid(name)
    x = jnp.asarray([np.nan, np.inf, -np.inf, -0.0, -0.3, 0.5, 1.5, -2.5, 1e30, -126.5, 3e-40,
                     *np.random.default_rng(0).normal(size=50) * 3], jnp.float32)
    both = jax.jit(lambda x: (grid.nearest(x), grid.decode(grid.encode(x))))
    found, expected = (np.asarray(a).view(np.uint32) for a in both(x))
    np.testing.assert_array_equal(found, expected)


class Nf4Test(parameterized.TestCase):

  def test_table_of_the_paper(self):
    # bitsandbytes, functional.py, create_normal_map, as quoted in the paper's appendix E.
    self.assertLen(grids.NF4, 16)
    self.assertEqual(list(grids.NF4), sorted(grids.NF4))
    np.testing.assert_allclose(grids.NF4[:3], [-1.0, -0.69619280, -0.52507305], atol=1e-7)
    self.assertEqual((grids.NF4[7], grids.NF4[15]), (0.0, 1.0))
    self.assertEqual(grids.grid('nf4').zero_code, 7)

  def test_quantiles(self):
    # Appendix E: averages of neighbouring quantiles, 8 below and 9 above zero, offset 0.9677083.
    from statistics import NormalDist
    quantile = np.vectorize(NormalDist().inv_cdf)
    above = quantile(np.linspace(0.9677083, 0.5, 9)[:-1])
    below = -quantile(np.linspace(0.9677083, 0.5, 8)[:-1])
    expected = np.sort(np.concatenate([above, below, [0.0]])) / above.max()
    np.testing.assert_allclose(grids.NF4, expected, atol=2e-6)

  def test_nearest(self):
    grid = grids.grid('nf4')
    x = np.linspace(-1.2, 1.2, 101, dtype=np.float32)
    table = np.asarray(grids.NF4, np.float32)
    nearest = np.abs(x[:, None] - table).argmin(1)
    np.testing.assert_array_equal(grid.encode(jnp.asarray(x)), nearest)
    np.testing.assert_array_equal(grid.decode(jnp.arange(16)), table)


class AbsmaxTest(parameterized.TestCase):
  W = np.array([[1.0, -8.0], [-3.0, 0.0], [2.0, 4.0]], np.float32)

  @parameterized.named_parameters(
      dict(testcase_name='tensor', granularity='tensor', peak=[[8]]),
      dict(testcase_name='channel', granularity='channel', peak=[[3, 8]]),
      dict(testcase_name='group', granularity='group', group=2, peak=[[3, 8], [2, 4]]),
      dict(testcase_name='group_of_one', granularity='group', group=1,
           peak=[[1, 8], [3, 1], [2, 4]]),
      dict(testcase_name='group_beyond', granularity='group', group=9, peak=[[3, 8]]))
  def test_by_hand(self, granularity, peak, group=None):
    # A limit of one: the scale is the peak, and 1 where all are zero.
    scale = scales.absmax(jnp.asarray(self.W), 1.0, granularity=granularity, group=group)
    np.testing.assert_array_equal(scale, np.asarray(peak, np.float32))
    full = np.broadcast_to(scales.expand(scale, 3, group), self.W.shape)
    self.assertTrue((np.abs(self.W) <= full).all())

  def test_stack_of_matrices(self):
    w = jnp.asarray(np.stack([self.W, 2 * self.W]))
    scale = scales.absmax(w, 1.0, granularity='channel')
    np.testing.assert_array_equal(scale, [[[3, 8]], [[6, 16]]])

  @parameterized.parameters('float16', 'bfloat16', 'float32')
  def test_scale_is_float32(self, dtype):
    scale = scales.absmax(jnp.full((2, 2), 7.0, dtype), 7.0, granularity='tensor')
    self.assertEqual((scale.dtype, float(scale[0, 0])), (jnp.float32, 1.0))

  @parameterized.parameters(0.0, 1e-40, 1e-38)
  def test_as_good_as_zero(self, value):
    scale = scales.absmax(jnp.full((2, 2), value), 127.0, granularity='channel')
    self.assertEqual(scale.tolist(), [[1.0, 1.0]])

  def test_huge(self):
    scale = scales.absmax(jnp.full((1, 1), 3e38), 127.0, granularity='channel')
    np.testing.assert_allclose(scale, 3e38 / 127, rtol=1e-6)

  @parameterized.product(dtype=('float16', 'bfloat16', 'float32'), axes=((2,), (1, 2), (0,)))
  def test_extremes(self, dtype, axes):
    """In every dtype; one sign alone, zeros of both signs, and infinities are themselves."""
    x = np.random.default_rng(0).normal(size=(6, 2, 50)) * np.logspace(-9, 3, 50)
    x[1], x[2], x[3], x[4] = np.abs(x[1]), -np.abs(x[2]), 0.0, -0.0
    x[5, 0, 1], x[5, 1, 2] = np.inf, -np.inf
    x = jnp.asarray(x, dtype)
    both = jax.jit(lambda x, y: scales.extremes_of([x, y], axes))(x, x[::-1])
    for (low, high), y in zip(both, (x, x[::-1])):
      y = np.asarray(y, np.float32)
      np.testing.assert_array_equal(low, np.minimum(y.min(axes, keepdims=True), 0))
      np.testing.assert_array_equal(high, np.maximum(y.max(axes, keepdims=True), 0))
    for bad in (jnp.nan, -jnp.nan):
      low, high = jax.jit(lambda x: scales.extremes(x, axes))(x.at[0, 0, 3].set(bad))
      found = np.asarray(low + high, np.float32)[0, 0]
      self.assertTrue(np.isnan(found[3 if axes == (0,) else 0]))

  def test_jit_agrees_to_the_bit(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(33, 17)), jnp.float32)
    run = lambda w: scales.absmax(w, 127.0, granularity='channel')
    np.testing.assert_array_equal(jax.jit(run)(w), run(w))


if __name__ == '__main__':
  absltest.main()
