"""Frozen codes: NF4 against numpy, and round to nearest."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import grids


def reference(w, group):
  """Each value by the nearest of the sixteen times its group's peak."""
  table, out = np.asarray(grids.NF4, np.float32), np.zeros_like(w)
  for start in range(0, len(w), group):
    for column in range(w.shape[1]):
      cell = w[start:start + group, column]
      peak = np.abs(cell).max() or np.float32(1)
      out[start:start + group, column] = table[
          np.abs(cell[:, None] / peak - table).argmin(1)] * peak
  return out


class Nf4Test(parameterized.TestCase):

  @parameterized.parameters(1, 4, 5, 64)
  def test_like_numpy(self, group):
    w = np.random.default_rng(0).normal(size=(11, 6)).astype(np.float32)
    w[4:8] = 0
    transform = jsp.nf4(group=group)
    params, state = transform.init({'kernel': jnp.asarray(w)})
    self.assertEqual(jax.tree.leaves(params), [])   # nothing left to train
    out = transform.apply(params, state)['kernel']
    np.testing.assert_allclose(out, reference(w, group), rtol=1e-6)
    packed = transform.pack(params, state)['kernel']
    np.testing.assert_array_equal(packed.todense(), out)
    self.assertEqual(packed.nbytes, 6 * 6 + -(-11 // group) * 6 * 4)

  def test_a_stack_with_roles(self):
    w = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)   # [in, expert, out]
    transform = jsp.nf4(group=2)
    out = transform.apply(*transform.init(
        {'kernel': jnp.asarray(w)}, axes={'kernel': jsp.DimensionNumbers((0,), (2,))}))['kernel']
    for expert in range(2):
      np.testing.assert_allclose(out[:, expert], reference(w[:, expert], 2), rtol=1e-6)

  def test_projection(self):
    for transform in (jsp.nf4(group=4), jsp.quantize('int4'), jsp.quantize('int8')):
      w = {'kernel': jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)}
      once = transform.apply(*transform.init(w))
      twice = transform.apply(*transform.init(once))
      np.testing.assert_allclose(twice['kernel'], once['kernel'], rtol=1e-6)

  @parameterized.parameters(('nf4(group=64, double_quantize=True)', 384, 0.517),
                            ('nf4(group=64, double_quantize=256)', 1536, 0.517),
                            ("quantize('int4', granularity='group', group=64, "
                             'double_quantize=True)', 384, 0.517))
  def test_double_quantization(self, text, outputs, most_bytes):
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(128, outputs)) * np.exp(rng.normal(size=outputs))).astype(np.float32)
    w[64:, 7] = 0   # a cell of zeros must not widen the range that its neighbours share
    transform = jsp.parse(text)
    state = transform.init({'kernel': jnp.asarray(w)})[1].weights['kernel']
    self.assertLess(state.nbytes / w.size, most_bytes)
    limit = 1.0 if 'nf4' in text else 7.0
    plain = np.abs(w.reshape(2, 64, -1)).max(1) / limit
    live = plain > 0
    for start in range(0, outputs, 256):   # each group's range, in numpy, decides its precision
      part = np.s_[:, start:start + 256]
      logs = np.log(np.where(live, plain, np.nan))[part]
      half = (np.nanmax(logs, 1) - np.nanmin(logs, 1)) / 510
      error = np.abs(np.log(np.asarray(state.scale_values)[part]) - logs)
      self.assertTrue((np.nanmax(error, 1) <= half + 1e-6).all())
    out = np.asarray(state.todense())
    step = 0.16 if 'nf4' in text else 0.5   # half of the widest gap of the grid, in scales
    bound = np.repeat(plain, 64, 0) * (step + 0.02 * limit)
    self.assertTrue((np.abs(out - w) <= bound).all())
    self.assertEqual(np.abs(out[64:, 7]).max(), 0)

  def test_double_quantization_of_zeros_a_stack_and_bfloat16(self):
    values = np.random.default_rng(1).normal(size=(3, 6, 5)).astype(np.float32)
    values[1] = 0
    for transform, dtype in (
        (jsp.nf4(group=4, double_quantize=2), jnp.bfloat16),
        (jsp.quantize('int8', granularity='tensor', double_quantize=True), jnp.float32)):
      view = jax.jit(lambda w, t=transform: t.apply(*t.init({'kernel': w}))['kernel'])
      out = view(jnp.asarray(values, dtype))
      self.assertEqual(out.dtype, dtype)
      out = np.asarray(out, np.float32)
      self.assertEqual(np.abs(out[1]).max(), 0)
      np.testing.assert_allclose(out, values, atol=0.4)

  @parameterized.parameters(0, -3, 2.5, None, '256')
  def test_bad_double_quantization(self, value):
    with self.assertRaisesRegex(ValueError, 'double_quantize must be'):
      jsp.nf4(double_quantize=value)

  @parameterized.parameters(0, -1, 2.0, True, None)
  def test_bad(self, group):
    with self.assertRaisesRegex(ValueError, 'group'):
      jsp.nf4(group=group)


if __name__ == '__main__':
  absltest.main()
