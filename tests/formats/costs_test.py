"""Bytes and multiply-adds by hand, and convolutions by factors."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import formats
from jaxsparse.numerics import axes
from tests.trace import stored

D = axes.DimensionNumbers


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class BytesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('int8', stored.int8, 16 * 6 + 6 * 4), ('int4', stored.int4_group, 8 * 6 + 4 * 6 * 4),
      ('two_four', stored.two_four, 8 * 6 * 4 + 2 * 6), ('factors', stored.factors, 2 * 22 * 4),
      ('clusters', stored.clusters, 4 * 4 + 16 * 6 // 4))
  def test_by_hand(self, make, nbytes):
    self.assertEqual(make(normal(16, 6)).nbytes, nbytes)

  @parameterized.named_parameters(
      ('int8', stored.int8, 96, 96), ('two_four', stored.two_four, 96, 48),
      ('factors', stored.factors, 2 * 22, 2 * 22), ('clusters', stored.clusters, 96, 96))
  def test_multiply_adds(self, make, executed, ideal):
    self.assertEqual(make(normal(16, 6)).multiply_adds(5), (5 * executed, 5 * ideal))
    self.assertEqual(make(normal(2, 16, 6)).multiply_adds(5), (10 * executed, 10 * ideal))

  def test_a_gather_of_blocks_pays_at_low_density(self):
    w = normal(8, 8)
    mask = np.zeros((8, 8), bool)
    mask[:2, :2] = mask[4:6, 2:4] = True
    layout = stored.layout_of(w)
    from_mask = formats.BlockArray.from_mask
    self.assertEqual(from_mask(w, mask, layout, (2, 2)).multiply_adds(3), (24, 24))
    x = normal(3, 8)
    chex.assert_trees_all_close(from_mask(w, mask, layout, (2, 2)).matmul(x),
                                x @ jnp.where(mask, w, 0), rtol=1e-5, atol=1e-6)
    # A dense matrix in blocks executes densely; no block at all executes nothing.
    full, none = np.ones((8, 8), bool), np.zeros((8, 8), bool)
    self.assertEqual(from_mask(w, full, layout, (2, 2)).multiply_adds(3), (192, 192))
    self.assertEqual(float(jnp.abs(from_mask(w, none, layout, (2, 2)).matmul(x)).max()), 0)


class ConvolveTest(parameterized.TestCase):

  @parameterized.named_parameters(
      dict(testcase_name='same', names=('NHWC', 'HWIO', 'NHWC'), window_strides=(2, 1),
           padding='SAME'),
      dict(testcase_name='dilated', names=('NCHW', 'OIHW', 'NCHW'), window_strides=(1, 2),
           padding=[(2, 1), (0, 3)], rhs_dilation=(2, 1)),
      dict(testcase_name='transposed', names=('NHWC', 'HWIO', 'NCHW'), window_strides=(1, 1),
           padding=[(0, 1), (1, 0)], lhs_dilation=(2, 2)),
      dict(testcase_name='default', names=None, window_strides=(1, 1), padding='VALID'))
  def test_low_rank_like_dense(self, names, **params):
    spec = names or ('NCHW', 'OIHW', 'NCHW')
    x = normal(*({'N': 2, 'H': 7, 'W': 6, 'C': 4}[c] for c in spec[0]))
    shape = [{'H': 3, 'W': 2, 'I': 4, 'O': 8}[c] for c in spec[1]]
    output = spec[1].index('O')
    roles = D(tuple(a for a in range(4) if a != output), (output,))
    w = stored.factors(normal(*shape), roles)
    self.assertIsNotNone(w.convolve(x, dimension_numbers=names, **params))
    found = formats.convolve(x, w, dimension_numbers=names, **params)
    expected = jax.lax.conv_general_dilated(x, w.todense(), dimension_numbers=names, **params)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
