"""Products inside `jax.shard_map`, which checks what varies over its axes unless told otherwise."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from tests.kernels import problems

_PACKED = {
    'panels': "magnitude(0.75, pattern=balanced_blocks(8, 8))",
    'vectors': "magnitude(0.75, pattern=block(1, 16))",
    'columns': "magnitude(0.9)",
    'tiles': "magnitude(0.75, pattern=block(4, 16)) | quantize('int8')",
    'int8': "quantize('int8')",
    'int4': "quantize('int4', group=16)",
}


def _mesh():
  return jax.make_mesh((2,), ('x',), axis_types=(jax.sharding.AxisType.Auto,))


class ManualAxesTest(parameterized.TestCase):

  @parameterized.parameters(*_PACKED)
  def test_rows_of_a_packed_product(self, name):
    rng = np.random.default_rng(0)
    w, x = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 48), (32, 64)))
    transform = jsp.parse(_PACKED[name])
    params = jsp.prepare(transform.pack(*transform.init({'w': w})))
    fn = jsp.dispatch(lambda params, x: x @ params['w'])
    shared = jax.shard_map(lambda x: fn(params, x), mesh=_mesh(), in_specs=P('x'), out_specs=P('x'))
    both = lambda f: jax.jit(jax.value_and_grad(lambda x: (f(x) ** 2).sum()))(x)
    for found, expected in zip(both(shared), both(lambda x: fn(params, x))):
      np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)

  @parameterized.parameters(((P('x'), P(), P()), P('x')), ((P(), P('x'), P('x')), P(None, 'x')))
  def test_gradients_of_panels_are_summed_over_what_does_not_vary(self, specs, out):
    x, data, kidx, dy = problems.draw(0, 8, 24, 4, 2, 4, 6)
    shared = jax.shard_map(jsp.block_sparse_matmul, mesh=_mesh(), in_specs=specs, out_specs=out)
    y, pull = jax.jit(lambda x, data: jax.vjp(lambda x, data: shared(x, data, kidx), x, data))(
        x, data)
    for found, expected in zip((y, *pull(dy)), problems.oracle(x, data, kidx, dy)):
      np.testing.assert_allclose(found, expected, atol=1e-4)

  def test_groups_of_each_device(self):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((24, 6), (3, 6, 5)))
    sizes = jnp.array([4, 0, 8, 1, 2, 9])
    shared = jax.shard_map(jsp.grouped_matmul, mesh=_mesh(), in_specs=(P('x'), P(), P('x')),
                           out_specs=P('x'))
    parts = lambda x, w: jnp.concatenate([
        jsp.grouped_matmul(x[:12], w, sizes[:3]), jsp.grouped_matmul(x[12:], w, sizes[3:])])
    both = lambda f: jax.jit(jax.value_and_grad(lambda x, w: (f(x, w) ** 2).sum(), (0, 1)))(x, w)
    found, expected = both(lambda x, w: shared(x, w, sizes)), both(parts)
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
      np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-3)


if __name__ == '__main__':
  absltest.main()
