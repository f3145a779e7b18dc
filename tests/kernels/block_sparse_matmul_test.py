"""Products with panels against float64 NumPy: every backend, forward and both gradients."""

import functools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

import jaxsparse as jsp
from tests.kernels import problems


class ReferenceTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=8)
  @hypothesis.given(seed=st.integers(0, 99), rows=st.integers(1, 70), features=st.integers(1, 40),
                    panels=st.integers(1, 9), share=st.floats(0, 1), bk=st.integers(1, 9),
                    bn=st.integers(1, 9))
  def test_like_numpy(self, seed, rows, features, panels, share, bk, bn):
    slots = round(share * -(-features // bk))
    problems.assert_agrees(problems.draw(seed, rows, features, panels, slots, bk, bn))

  @parameterized.named_parameters(
      ('a_scan_over_wide_panels', (300, 260, 5, 2, 128, 128)),
      ('a_transpose_by_narrow_panels', (300, 300, 40, 3, 16, 8)),
      ('a_transpose_by_many_slots', (70, 80, 100, 40, 2, 3)),
      ('groups_of_panels', (40, 2000, 36, 4, 256, 2)),
      ('many_slots', (9, 80, 3, 40, 2, 3)), ('one_row', (1, 30, 3, 2, 4, 3)),
      ('one_block_row', (9, 8, 3, 1, 8, 3)))
  def test_every_way(self, shape):
    problems.assert_agrees(problems.draw(1, *shape))

  def test_gradients_numerically(self):
    x, data, kidx, _ = problems.draw(0, 3, 10, 2, 2, 4, 3)
    run = jax.jit(lambda x, data: jsp.block_sparse_matmul(x, data, kidx, backend='xla'))
    check_grads(run, (x, data), order=1, modes=['rev'])

  def test_bfloat16_sums_in_float32(self):
    arguments = problems.draw(2, 4, 256, 2, 4, 64, 8, dtype='bfloat16')
    self.assertEqual(problems.all_three(*arguments)[0].dtype, jnp.bfloat16)
    problems.assert_agrees(arguments, tolerance=2**-8)

  @parameterized.named_parameters(('gathered', (7, 113, 4, 3, 32, 32)),
                                  ('transposed', (70, 300, 200, 3, 16, 8)))
  def test_float64_sums_in_float64(self, shape):
    with jax.enable_x64(True):
      problems.assert_agrees(problems.draw(2, *shape, dtype='float64'), tolerance=1e-12)

  @parameterized.named_parameters(
      ('transposed', (300, 300, 40, 3, 16, 8)), ('where_it_lies', (70, 300, 40, 3, 16, 8)),
      ('few_rows', (7, 300, 4, 3, 16, 8)),
      ('a_slice_of_x', (40, 300, 3, 1, 128, 4)))
  def test_indices_outside_are_clipped(self, shape):
    x, data, kidx, dy = problems.draw(3, *shape)
    last = -(-x.shape[1] // shape[4]) - 1
    outside = kidx.at[0, 0].set(-1).at[1, 0].set(last + 5)
    clipped, found = jnp.clip(outside, 0, last), problems.all_three(x, data, outside, dy)
    chex.assert_trees_all_equal(found, problems.all_three(x, data, clipped, dy))
    for f, e in zip(found, problems.oracle(x, data, clipped, dy)):
      np.testing.assert_allclose(f, e, atol=1e-5 * max(1, np.abs(e).max()))

  def test_a_new_mask_recompiles_nothing(self):
    run = jax.jit(jsp.block_sparse_matmul)
    for seed in range(3):
      x, data, kidx, dy = problems.draw(seed, 5, 24, 4, 2, 4, 4)
      expected = problems.oracle(x, data, kidx, dy)[0]
      np.testing.assert_allclose(run(x, data, kidx), expected, atol=1e-5)
    self.assertEqual(run._cache_size(), 1)

  def test_vmap_scan_remat_donation_and_export(self):
    x, data, kidx, dy = problems.draw(3, 6, 24, 4, 2, 4, 6)
    expected = problems.oracle(x, data, kidx, dy)

    @functools.partial(jax.jit, donate_argnums=0)
    def run(xs, data, kidx):
      mapped = jax.vmap(jsp.block_sparse_matmul)(xs, data, kidx)
      again = jax.checkpoint(jsp.block_sparse_matmul)
      scanned = jax.lax.scan(lambda c, a: (c, again(*a)), None, (xs, data, kidx))[1]
      pulled = jax.vmap(jax.grad(lambda x, w, i: (again(x, w, i) * dy).sum(), (0, 1)))
      return mapped, scanned, *pulled(xs, data, kidx)

    two = [jnp.stack([a, a]) for a in (x, data, kidx)]
    mapped, scanned, dx, ddata = run(*two)
    for found, e in ((mapped, expected[0]), (scanned, expected[0]), (dx, expected[1]),
                     (ddata, expected[2])):
      np.testing.assert_allclose(found, np.stack([e, e]), atol=1e-4)
    exported = jax.export.export(jax.jit(jsp.block_sparse_matmul))(x, data, kidx)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(x, data, kidx), expected[0], atol=1e-5)

  def test_two_devices(self):
    mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    x, data, kidx, dy = problems.draw(4, 8, 24, 4, 2, 4, 6)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    for split in ((('data',), (), ()), ((), ('data',), ('data',))):   # rows, then panels
      args = [place(a, *s) for a, s in zip((x, data, kidx), split)]
      problems.assert_agrees((*args, place(dy)))

  @parameterized.named_parameters(
      ('small', (0, 8, 24, 4, 2, 4, 6)), ('large', (1, 1024, 256, 16, 4, 16, 64)),
      ('one slot', (2, 512, 512, 4, 1, 128, 128)), ('many slots', (3, 4, 200, 4, 40, 4, 6)))
  def test_explicit_axes(self, problem):
    mesh = jax.make_mesh((2,), ('data',), axis_types=(jax.sharding.AxisType.Explicit,))
    x, data, kidx, dy = problems.draw(*problem)
    place = lambda a, *spec: jax.device_put(a, NamedSharding(mesh, P(*spec)))
    for of_x, of_data, of_y in ((('data',), (), ('data',)), ((None, 'data'), (), ()),
                                ((), ('data',), (None, 'data'))):   # rows, features, panels
      args = place(x, *of_x), place(data, *of_data), place(kidx), place(dy, *of_y)
      problems.assert_agrees(args)
      out = jsp.block_sparse_matmul(*args[:3])
      self.assertTrue(out.sharding.is_equivalent_to(args[3].sharding, 2), out.sharding)

  @parameterized.named_parameters(
      ('shapes', ((2, 8), (3, 4, 2), (2, 1)), {}, ValueError, r'found \(2, 8\)'),
      ('uneven', ((2, 8), (3, 5, 2), (3, 2)), {}, ValueError, '5 rows do not divide into the 2'),
      ('word', ((2, 8), (3, 4, 2), (3, 1)), {'backend': 'cuda'}, ValueError, 'one of xla'),
      ('tpu', ((2, 8), (3, 4, 2), (3, 1)), {'backend': 'pallas_tpu'}, ValueError,
       'multiples of 128, found 4 x 2'),
      ('gpu', ((2, 96), (3, 48, 64), (3, 1)), {'backend': 'pallas_triton'}, ValueError,
       'powers of two from 16, found 48 x 64'))
  def test_bad(self, shapes, how, error, message):
    x, data, kidx = (jnp.ones(s) for s in shapes)
    with self.assertRaisesRegex(error, message):
      jsp.block_sparse_matmul(x, data, kidx.astype(jnp.int32), **how)

  def test_bad_dtypes(self):
    x, data, kidx, _ = problems.draw(0, 2, 8, 2, 1, 4, 2)
    for bad in ((x.astype(int), data, kidx), (x, data, kidx.astype(float))):
      with self.assertRaises(TypeError):
        jsp.block_sparse_matmul(*bad)

  def test_empty(self):
    index = lambda *shape: jnp.zeros(shape, jnp.int32)
    for x, data, kidx in ((jnp.ones((0, 4)), jnp.ones((2, 4, 3)), index(2, 1)),
                          (jnp.ones((3, 4)), jnp.ones((2, 0, 3)), index(2, 0)),
                          (jnp.ones((3, 4)), jnp.ones((0, 4, 3)), index(0, 1))):
      y = jsp.block_sparse_matmul(x, data, kidx)
      chex.assert_shape(y, (x.shape[0], data.shape[0] * 3))
      self.assertEqual(float(y.sum()), 0)

  def test_leading_axes(self):
    x, data, kidx, dy = problems.draw(0, 6, 8, 2, 1, 4, 2)
    y = jsp.block_sparse_matmul(x.reshape(2, 3, 8), data, kidx)
    np.testing.assert_allclose(y.reshape(6, 4), problems.oracle(x, data, kidx, dy)[0], atol=1e-5)


if __name__ == '__main__':
  absltest.main()
