"""Grouped products against a loop in float64: values, gradients, isolation, transformations."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from jaxsparse.kernels import grouped_matmul as module
from jaxsparse.kernels import groups_tpu
from tests.kernels import aot

grouped_matmul = module.grouped_matmul


def numbers(seed, *shape, dtype=jnp.float32):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def oracle(x, w, sizes, dy):
  """Product and both gradients, group by group in float64."""
  x, w, dy = (np.asarray(v, np.float64) for v in (x, w, dy))
  y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
  start = 0
  for g, size in enumerate(sizes):
    own = slice(min(start, len(x)), min(start + int(size), len(x)))
    y[own], dx[own], dw[g] = x[own] @ w[g], dy[own] @ w[g].T, x[own].T @ dy[own]
    start += int(size)
  return y, dx, dw


@functools.partial(jax.jit, static_argnames=('backend', 'interpret'))
def passes(x, w, sizes, dy, backend='xla', interpret=False):
  """Product and both gradients."""
  run = functools.partial(grouped_matmul, group_sizes=sizes, backend=backend, interpret=interpret)
  y, pull = jax.vjp(run, x, w)
  return y, *pull(dy)


def check(found, wanted, tolerance=2e-5):
  for got, true in zip(found, wanted, strict=True):
    np.testing.assert_allclose(np.asarray(got, np.float64), true,
                               atol=tolerance * max(1.0, np.abs(true).max()))


# Of 150 rows: borders within and on tiles, empty groups, one that holds all, and rows left over.
SIZES = st.lists(st.sampled_from([0, 0, 1, 3, 15, 16, 37, 64, 65, 128, 150, 10**9]), min_size=4,
                 max_size=4)


class GroupedMatmulTest(parameterized.TestCase):

  @hypothesis.given(SIZES)
  @hypothesis.settings(max_examples=30)
  def test_xla_is_a_loop_over_groups(self, sizes):
    x, w, dy = numbers(0, 150, 6), numbers(1, 4, 6, 5), numbers(2, 150, 5)
    check(passes(x, w, jnp.array(sizes), dy), oracle(x, w, sizes, dy))

  @parameterized.product(dtype=('float32', 'float64'), rows=(150, 40))
  def test_where_numbers_have_64_bits(self, dtype, rows):
    with jax.enable_x64(True):
      arguments = numbers(0, rows, 6, dtype=dtype), numbers(1, 4, 6, 5, dtype=dtype)
      sizes, dy = [rows // 2, 0, rows // 3, 3], numbers(2, rows, 5, dtype=dtype)
      check(passes(*arguments, jnp.array(sizes), dy), oracle(*arguments, sizes, dy),
            1e-12 if dtype == 'float64' else 2e-5)

  @hypothesis.given(SIZES)
  @hypothesis.settings(max_examples=12)
  def test_pallas_is_a_loop_over_groups(self, sizes):
    x, w, dy = numbers(0, 150, 6), numbers(1, 4, 6, 130), numbers(2, 150, 130)
    check(passes(x, w, jnp.array(sizes), dy, 'pallas_tpu', True), oracle(x, w, sizes, dy))

  def test_pallas_tiles_the_contracted_axis(self):
    x, w, dy = numbers(0, 130, 1100), numbers(1, 2, 1100, 8), numbers(2, 130, 8)
    check(passes(x, w, jnp.array([50, 70]), dy, 'pallas_tpu', True), oracle(x, w, [50, 70], dy))

  @parameterized.parameters(1, 600)
  def test_any_number_of_rows(self, rows):
    x, w, dy = numbers(0, rows, 3), numbers(1, 3, 3, 2), numbers(2, rows, 2)
    sizes = [rows // 3, 0, rows - rows // 3]
    check(passes(x, w, jnp.array(sizes), dy), oracle(x, w, sizes, dy))

  def test_nothing_to_multiply(self):
    for shape in ((0, 3), (4, 0)):
      x, w = jnp.ones(shape), jnp.ones((2, shape[1], 5))
      np.testing.assert_array_equal(grouped_matmul(x, w, jnp.array([1, 1])), jnp.zeros((len(x), 5)))

  @parameterized.parameters('xla', 'pallas_tpu')
  def test_a_group_sees_no_other_groups_numbers(self, backend):
    x, w, dy = numbers(0, 40, 6), numbers(1, 3, 6, 5), numbers(2, 40, 5)
    clean = passes(x, w, jnp.array([9, 20, 5]), dy, backend, True)
    bad = lambda v: v.at[9:29].set(jnp.nan).at[34:].set(jnp.inf)
    y, dx, dw = passes(bad(x), w.at[1].set(jnp.nan), jnp.array([9, 20, 5]), bad(dy), backend, True)
    mine = np.r_[0:9, 29:34]
    check((y[mine], dx[mine], dw[::2]), [v[i] for v, i in zip(clean, (mine, mine, slice(0, 3, 2)))])
    np.testing.assert_array_equal(y[34:], 0)
    np.testing.assert_array_equal(dx[34:], 0)

  @parameterized.parameters('xla', 'pallas_tpu')
  def test_bfloat16_sums_in_float32(self, backend):
    x, w, dy = (numbers(i, *s, dtype=jnp.bfloat16)
                for i, s in enumerate(((200, 8), (2, 8, 8), (200, 8))))
    found = passes(x, w, jnp.array([190, 10]), dy, backend, True)
    self.assertTrue(all(v.dtype == jnp.bfloat16 for v in found))
    check(found, oracle(x, w, [190, 10], dy), 2**-8)

  def test_transformations(self):
    x, w = numbers(0, 2, 20, 4), numbers(1, 3, 4, 4)
    sizes = jnp.array([[5, 0, 15], [1, 2, 3]])

    def total(run, x, w):
      ys = run(x, w)
      return (ys ** 2).sum(), ys

    def one_by_one(product):
      return lambda x, w: jnp.stack([product(x[i], w, sizes[i]) for i in range(2)])

    runs = [jax.vmap(grouped_matmul, (0, None, 0)),
            jax.vmap(jax.checkpoint(grouped_matmul), (0, None, 0)),
            lambda x, w, sizes: jax.lax.scan(
                lambda c, v: (c, grouped_matmul(v[0], w, v[1])), 0, (x, sizes))[1]]

    @jax.jit
    def everything(x, w):
      grads = lambda run: jax.value_and_grad(total, (1, 2), has_aux=True)(run, x, w)
      return [grads(one_by_one(jax.lax.ragged_dot)),
              *(grads(lambda x, w, run=run: run(x, w, sizes)) for run in runs)]

    wanted, *found = everything(x, w)
    for one in found:
      check(jax.tree.leaves(one), jax.tree.leaves(wanted))
    donated = jax.jit(lambda x: x + grouped_matmul(x, w, sizes[0]), donate_argnums=0)
    first = wanted[0][1][0]
    check([donated(x[0] + 0)], [x[0] + first])
    exported = jax.export.export(jax.jit(grouped_matmul))(x[0], w, sizes[0])
    again = jax.export.deserialize(exported.serialize())
    check([again.call(x[0], w, sizes[0])], [first])

  def test_gradients_numerically(self):
    x, w = numbers(0, 9, 3), numbers(1, 2, 3, 2)
    run = jax.jit(lambda x, w: grouped_matmul(x, w, jnp.array([4, 3])))
    jax.test_util.check_grads(run, (x, w), 1, modes=('rev',), rtol=1e-2)

  @parameterized.parameters((PartitionSpec(None, None, 'd'),), (PartitionSpec('d'),))
  def test_two_devices(self, spec):
    mesh = jax.make_mesh((2,), ('d',), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    x, w, dy = numbers(0, 24, 4), numbers(1, 2, 4, 6), numbers(2, 24, 6)
    laid = jax.device_put(w, NamedSharding(mesh, spec))
    everywhere = lambda v: jax.device_put(v, NamedSharding(mesh, PartitionSpec()))
    found = passes(everywhere(x), laid, everywhere(jnp.array([7, 12])), everywhere(dy))
    check(found, oracle(x, w, [7, 12], dy))

  def test_another_routing_is_the_same_program(self):
    run = jax.jit(grouped_matmul)
    for sizes in ([3, 4], [0, 7], [7, 0]):
      run(jnp.ones((8, 2)), jnp.ones((2, 2, 2)), jnp.array(sizes))
    self.assertEqual(run._cache_size(), 1)

  @parameterized.named_parameters(
      ('groups', (4, 3), (2, 3, 5), (3,), 'expected x'),
      ('inner', (4, 2), (2, 3, 5), (2,), 'expected x'),
      ('ranks', (1, 4, 3), (2, 3, 5), (2,), 'expected x'))
  def test_shapes_are_checked(self, x, w, sizes, message):
    with self.assertRaisesRegex(ValueError, message):
      grouped_matmul(jnp.ones(x), jnp.ones(w), jnp.ones(sizes, int))

  def test_types_and_backends_are_checked(self):
    x, w, sizes = jnp.ones((4, 3)), jnp.ones((2, 3, 5)), jnp.array([1, 1])
    with self.assertRaisesRegex(TypeError, 'integers'):
      grouped_matmul(x, w, sizes * 1.0)
    with self.assertRaisesRegex(TypeError, 'w must be floating'):
      grouped_matmul(x, w.astype(int), sizes)
    with self.assertRaisesRegex(ValueError, "'xla'|xla, pallas_tpu"):
      grouped_matmul(x, w, sizes, backend='cuda')

  @hypothesis.given(SIZES, st.booleans())
  def test_visits_cover_every_row_once_and_fit_the_grid(self, sizes, every_group):
    ends = np.minimum(np.cumsum(np.minimum(sizes, 150)), 150).astype(np.int32)
    plan = jax.tree.map(np.asarray, jax.jit(groups_tpu.visits, static_argnums=(1, 2),
                                            static_argnames='every_group')(
                                                jnp.asarray(ends), 5, 32, every_group=every_group))
    rows = [r for low, high in zip(plan.low, plan.high) for r in range(low, high)]
    self.assertEqual(rows, list(range(ends[-1])))
    self.assertTrue((np.diff(plan.tile) >= 0).all() and (np.diff(plan.group) >= 0).all())
    self.assertEqual(len(set(plan.group if every_group else plan.tile)), 4 if every_group else 5)


@pytest.mark.tpu_aot
@pytest.mark.parametrize('chip', aot.CHIPS)
def test_kernels_compile_for_tpus(chip):
  found = aot.compiled()[chip]['grouped']
  assert found['kernels'] == 3
  # Three products of the rows alone; ragged_dot's own count is that of one.
  assert found['flops'] <= 1.05 * found['flops_of_the_rows']


if __name__ == '__main__':
  absltest.main()
