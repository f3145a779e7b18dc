"""Fake quantization against numpy, rounding half to even."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def reference(w, bits, granularity, group=None):
  """Codes and values of a matrix in float32, cell by cell."""
  limit = np.float32(2 ** (bits - 1) - 1)
  codes, values = np.zeros(w.shape, int), np.zeros(w.shape, np.float32)
  rows, outputs = w.shape
  step = {'tensor': rows, 'channel': rows, 'group': group}[granularity]
  for start in range(0, rows, step):
    for column in range(outputs):
      cell = w[start:start + step, column]
      peak = np.abs(w if granularity == 'tensor' else cell).max()
      scale = peak * (np.float32(1) / limit) if peak > 0 else np.float32(1)
      code = np.clip(np.rint(cell / scale), -limit, limit)
      codes[start:start + step, column] = code
      values[start:start + step, column] = code.astype(np.float32) * scale
  return codes, values


def effective(transform, w, **extra):
  params, state = transform.init({'kernel': w}, **extra)
  return transform.apply(params, state)['kernel'], transform.pack(params, state)['kernel']


class FakeQuantizeTest(parameterized.TestCase):

  @parameterized.parameters((8, 'channel'), (3, 'tensor'), (8, 'group', 3), (4, 'group', 1),
                            (3, 'group', 50))
  def test_like_numpy(self, bits, granularity, group=None):
    w = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    w[:, 2] = 0
    transform = jsp.fake_quantize(f'int{bits}', granularity=granularity, group=group)
    out, packed = effective(transform, jnp.asarray(w))
    codes, values = reference(w, bits, granularity, group)
    np.testing.assert_array_equal(packed.codes.unpack(), codes)
    np.testing.assert_allclose(out, values, rtol=1e-6)
    np.testing.assert_array_equal(packed.todense(), out)

  def test_ties_go_to_even_and_extremes_are_kept(self):
    # A scale of one: the peak is 7.
    w = jnp.asarray([[7.0], [0.5], [1.5], [-2.5], [-0.5], [-0.0], [6.5]])
    out, packed = effective(jsp.fake_quantize('int4'), w)
    self.assertEqual(out[:, 0].tolist(), [7, 0, 2, -2, 0, 0, 6])
    self.assertEqual(packed.nbytes, 4 + 4)   # seven nibbles, one scale

  @parameterized.parameters('int4', 'int5', 'nf4')
  def test_jit_and_pack_agree_to_the_bit(self, dtype):
    w = jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), jnp.bfloat16)
    transform = jsp.fake_quantize(dtype, granularity='group', group=4)
    params, state = transform.init({'kernel': w})
    out = transform.apply(params, state)['kernel']
    np.testing.assert_array_equal(jax.jit(transform.apply)(params, state)['kernel'], out)
    np.testing.assert_array_equal(transform.pack(params, state)['kernel'].todense(), out)
    self.assertEqual(out.dtype, w.dtype)

  @parameterized.parameters(1e30, 1e-30, 0.0, 3e38)
  def test_extremes(self, size):
    w = jnp.asarray([[size], [-size / 2]])
    out, _ = effective(jsp.fake_quantize('int8'), w)
    np.testing.assert_allclose(out, w, rtol=0.02)

  def test_gradient_passes(self):
    transform = jsp.fake_quantize('int4')
    params, state = transform.init({'kernel': jnp.asarray([[7.0, 0.3], [1.2, 0.1]])})
    weights = jnp.asarray([[1.0, 2.0], [3.0, 4.0]])
    loss = lambda p: jnp.sum(transform.apply(p, state)['kernel'] * weights)
    np.testing.assert_array_equal(jax.grad(loss)(params)['kernel'], weights)

  def test_roles_choose_the_channel(self):
    w = np.asarray([[127.0, 1.0], [1270.0, 10.0]], np.float32)   # [out, in]
    transform = jsp.fake_quantize('int8')
    out, packed = effective(transform, jnp.asarray(w),
                            axes={'kernel': jsp.DimensionNumbers((1,), (0,))})
    np.testing.assert_allclose(packed.scale, [[1.0, 10.0]], rtol=1e-6)
    np.testing.assert_allclose(out, w, rtol=1e-6)

  def test_zeros_of_a_mask_stay_and_are_stored_sparse(self):
    transform = jsp.chain(jsp.nm(2, 4), jsp.fake_quantize('int8'))
    w = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
    out, packed = effective(transform, w)
    self.assertEqual(int((out == 0).sum()), 12)
    self.assertEqual(packed.nbytes, 12 + 12 // 4 + 3 * 4)   # codes, positions, scales
    np.testing.assert_array_equal(packed.todense(), out)

  @parameterized.named_parameters(
      dict(testcase_name='dtype', kwargs=dict(dtype='int9'), message="'int9' is not a grid.*mxfp4"),
      dict(testcase_name='grain', kwargs=dict(granularity='row'), message="got 'row'"),
      dict(testcase_name='no_group', kwargs=dict(granularity='group'), message='group=None'),
      dict(testcase_name='stray', kwargs=dict(granularity='channel', group=4),
           message="granularity='channel', group=4"),
      dict(testcase_name='zero', kwargs=dict(granularity='group', group=0), message='got 0'),
      dict(testcase_name='block', kwargs=dict(group=(4,)), message=r'got \(4,\)'),
      dict(testcase_name='rule', kwargs=dict(scale='max'), message="got 'max'"),
      dict(testcase_name='zero_points', kwargs=dict(dtype='uint4', scale='power_of_two'),
           message='without zero points, not uint4'),
      dict(testcase_name='fixed', kwargs=dict(dtype='mxfp4', group=16), message='fixes'))
  def test_bad(self, kwargs, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.fake_quantize(**({'dtype': 'int8'} | kwargs))


if __name__ == '__main__':
  absltest.main()
