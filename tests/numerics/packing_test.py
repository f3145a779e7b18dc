"""Codes several to a byte, by hand and there and back."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import packing


class PackingTest(parameterized.TestCase):

  @parameterized.parameters(*zip(range(1, 9), (1, 2, 3, 4, 5, 6, 8, 8)))
  def test_width(self, bits, width):
    self.assertEqual(packing.width(bits), width)

  @parameterized.parameters(0, 9, -1)
  def test_bad_width(self, bits):
    with self.assertRaisesRegex(ValueError, f'Codes of {bits} bits'):
      packing.width(bits)

  @parameterized.named_parameters(
      dict(testcase_name='bits', bits=1, codes=[1, 0, 1, 1, 0, 0, 0, 0, 1], expected=[13, 1]),
      dict(testcase_name='pairs', bits=2, codes=[1, 2, 3, 0, 3], expected=[1 + 8 + 48, 3]),
      dict(testcase_name='nibbles', bits=4, codes=[1, 15, 7], expected=[241, 7]),
      dict(testcase_name='threes', bits=3, codes=[1, 7, 5, 2, 0, 0, 6, 4, 3],
           expected=[1 + (7 << 3) + ((5 & 3) << 6), (5 >> 2) + (2 << 1), (6 << 2) + (4 << 5), 3]),
      dict(testcase_name='bytes', bits=8, codes=[1, 255], expected=[1, 255]))
  def test_lowest_bits_first(self, bits, codes, expected):
    packed = packing.pack(jnp.asarray(codes)[:, None], bits)
    self.assertEqual(packed.dtype, jnp.uint8)
    self.assertEqual(packed[:, 0].tolist(), expected)

  @parameterized.product(bits=[1, 2, 3, 4, 5, 6, 7, 8], size_axis=[(1, 0), (7, -2), (9, -1)])
  def test_there_and_back(self, bits, size_axis):
    size, axis = size_axis
    shape = [2, 3, 1]
    shape[axis] = size
    codes = np.random.default_rng(size).integers(0, 2**bits, shape)
    packed = jax.jit(lambda c: packing.pack(c, bits, axis=axis))(codes)
    self.assertEqual(packed.shape[axis], -(-size * packing.width(bits) // 8))
    back = jax.jit(lambda p: packing.unpack(p, bits, size, axis=axis))(packed)
    self.assertEqual(back.dtype, jnp.uint8)
    np.testing.assert_array_equal(back, codes)

  @parameterized.product(bits=[3, 4], shape=[(0, 3), (9, 0), (2, 9, 0), (0, 9, 3), (0, 0)])
  def test_nothing_to_pack(self, bits, shape):
    packed = packing.pack(jnp.zeros(shape, jnp.uint8), bits)
    self.assertEqual(packed.shape, (*shape[:-2], -(-shape[-2] * bits // 8), shape[-1]))
    self.assertEqual(packing.unpack(packed, bits, shape[-2]).shape, shape)

  def test_bools_under_jit(self):
    mask = jnp.asarray([[True], [False], [True]])
    run = jax.jit(lambda m: packing.unpack(packing.pack(m, 1), 1, 3))
    np.testing.assert_array_equal(run(mask), mask)


if __name__ == '__main__':
  absltest.main()
