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

  @parameterized.parameters(0, -1, 2.0, True, None)
  def test_bad(self, group):
    with self.assertRaisesRegex(ValueError, 'group'):
      jsp.nf4(group=group)


if __name__ == '__main__':
  absltest.main()
