"""Masks one can see, and what they are stored as."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse import formats
from jaxsparse.numerics import axes
from jaxsparse.sparsity import patterns

SCORES = np.array([[9, 1, 5, 5], [1, 1, 5, 4], [8, 8, 0, 0], [8, 9, 0, 7]], np.float32)


def layout_of(*shape, dtype='float32'):
  return axes.Layout(shape, dtype, axes.default_axes(len(shape)))


def rows(text):
  """'1100 1100' as a bool matrix."""
  return np.array([[c == '1' for c in row] for row in text.split()])


class PatternsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      dict(testcase_name='unstructured', pattern=patterns.unstructured(), units=16, kept=4,
           mask='1000 0000 1100 0100'),   # nine, nine, then the first eights
      dict(testcase_name='two_four', pattern=patterns.n_m(2, 4), units=4, kept=2,
           mask='1011 0010 1100 0101'),
      dict(testcase_name='one_two', pattern=patterns.n_m(1, 2), units=2, kept=1,
           mask='1111 0000 1010 0101'),
      dict(testcase_name='blocks', pattern=patterns.block(2, 2), units=4, kept=2,
           mask='0011 0011 1100 1100'),
      dict(testcase_name='wide_blocks', pattern=patterns.block(1, 4), units=4, kept=1,
           mask='0000 0000 0000 1111'),
      dict(testcase_name='columns', pattern=patterns.channel(), units=4, kept=1,
           mask='1000 1000 1000 1000'),
      dict(testcase_name='rows', pattern=patterns.channel('reduction'), units=4, kept=2,
           mask='1111 0000 0000 1111'))
  def test_mask(self, pattern, units, kept, mask):
    self.assertEqual(pattern.units(layout_of(4, 4)), units)
    np.testing.assert_array_equal(pattern.mask(jnp.asarray(SCORES), kept), rows(mask))
    # Each matrix of a stack competes by itself, however large the other is.
    both = pattern.mask(jnp.asarray(np.stack([SCORES, 100 * SCORES])), kept)
    np.testing.assert_array_equal(both, np.stack([rows(mask)] * 2))
    every = pattern.mask(jnp.asarray(SCORES), pattern.units(layout_of(4, 4)))
    if pattern.fixed is None:
      self.assertTrue(every.all())

  def test_ragged_blocks_rank_by_the_mean_of_what_they_have(self):
    pattern = patterns.block(2, 2, pad=True)
    scores = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    self.assertEqual(pattern.units(layout_of(3, 3)), 4)
    np.testing.assert_array_equal(pattern.mask(scores, 1), rows('000 000 001'))
    np.testing.assert_array_equal(pattern.mask(scores, 2), rows('110 110 001'))

  @parameterized.named_parameters(
      dict(testcase_name='n', make=lambda: patterns.n_m(0, 4), message='n must be a positive'),
      dict(testcase_name='nm', make=lambda: patterns.n_m(5, 4), message='n=5, m=4'),
      dict(testcase_name='m', make=lambda: patterns.n_m(2, 257), message='at most 256, got 257'),
      dict(testcase_name='bool', make=lambda: patterns.n_m(True, 4), message='got True'),
      dict(testcase_name='rows', make=lambda: patterns.block(0, 1), message='rows must be'),
      dict(testcase_name='axis', make=lambda: patterns.channel('in'), message="got 'in'"),
      dict(testcase_name='divide', make=lambda: patterns.n_m(2, 4).units(layout_of(6, 4)),
           message='size 6 .* not divisible by m=4; the nearest m that divides it is 3'),
      dict(testcase_name='prime', make=lambda: patterns.n_m(2, 4).units(layout_of(7, 4)),
           message='no m divides it'),
      dict(testcase_name='block', make=lambda: patterns.block(2, 3).units(layout_of(4, 4)),
           message='output axis of size 4 .* block size 3; pass pad=True'))
  def test_bad(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()

  @parameterized.named_parameters(
      dict(testcase_name='unstructured', pattern=patterns.unstructured(), kept=2,
           kind=formats.BitmaskArray, nbytes=2 * 4 + 1 * 8),
      dict(testcase_name='half', pattern=patterns.unstructured(), kept=63, kind=jax.Array,
           nbytes=256),
      dict(testcase_name='two_four', pattern=patterns.n_m(2, 4), kept=2, kind=formats.NMArray,
           nbytes=32 * 4 + 32 // 4),
      dict(testcase_name='block', pattern=patterns.block(4, 4), kept=1, kind=formats.BlockArray,
           nbytes=16 * 4 + 4 + 4),
      dict(testcase_name='column', pattern=patterns.channel(), kept=2, kind=formats.BlockArray,
           nbytes=16 * 4 + 2 * (4 + 4)),
      dict(testcase_name='row', pattern=patterns.channel('reduction'), kept=2,
           kind=formats.BlockArray, nbytes=16 * 4 + 2 * 4))
  def test_packed(self, pattern, kept, kind, nbytes):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)
    mask = pattern.mask(jnp.abs(w), kept)
    stored = pattern.pack(w, mask, layout_of(8, 8))
    self.assertIsInstance(stored, kind)
    self.assertEqual(stored.nbytes, nbytes)
    np.testing.assert_array_equal(formats.densify(stored), np.where(mask, w, 0))

  @parameterized.parameters(('bfloat16', 2, 5, 7))
  def test_odd_blocks_there_and_back(self, dtype, *shape):
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=shape), dtype)
    layout = layout_of(*shape, dtype=dtype)
    for pattern in (patterns.block(4, 3, pad=True), patterns.unstructured()):
      mask = pattern.mask(jnp.abs(w.astype(jnp.float32)), 1)
      stored = formats.densify(pattern.pack(w, mask, layout))
      self.assertEqual(stored.dtype, w.dtype)
      np.testing.assert_array_equal(stored, np.where(mask, w, 0))


if __name__ == '__main__':
  absltest.main()
