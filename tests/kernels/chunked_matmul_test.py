"""Products that decode their weight a few rows at a time, against the whole at once."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.kernels import chunked_matmul


class ChunkedMatmulTest(parameterized.TestCase):

  @parameterized.product(bits=(8, 4, 2), reduction=(256, 300, 1023))
  def test_equals_the_product_with_the_dense_weight(self, bits, reduction):
    w = jax.random.normal(jax.random.key(0), (reduction, 1100))
    x = jax.random.normal(jax.random.key(1), (3, reduction))
    transform = jsp.at('w', jsp.quantize(f'int{bits}'))
    tree = transform.pack(*transform.init({'w': w}))
    run = lambda x: jsp.dispatch(lambda p, x: x @ p['w'])(tree, x)
    dense = jsp.densify(tree)['w']
    # Tests run on several devices, where the loop is not taken by itself.
    with mock.patch.object(chunked_matmul, 'worthwhile', lambda rows, shape: True):
      np.testing.assert_allclose(run(x), x @ dense, rtol=1e-4, atol=1e-3)
      by_x = jax.grad(lambda x: run(x).sum())(x)
      self.assertIn('scan', str(jax.make_jaxpr(run)(x)))
    wanted = jnp.broadcast_to(dense.sum(1), x.shape)
    np.testing.assert_allclose(by_x, wanted, rtol=1e-4, atol=1e-3)

  def test_only_large_weights_and_few_rows_on_one_cpu(self):
    one = jax.device_count() == 1 and jax.default_backend() == 'cpu'
    self.assertEqual(chunked_matmul.worthwhile(1, (4096, 4096)), one)
    self.assertFalse(chunked_matmul.worthwhile(64, (4096, 4096)))
    self.assertFalse(chunked_matmul.worthwhile(1, (128, 128)))

  def test_the_loop_holds_no_weight_of_floats(self):
    data = jnp.zeros((512, 640), jnp.int8)
    run = jax.jit(lambda x, d: chunked_matmul.chunked_matmul(x, d, lambda c: c.astype(jnp.float32)))
    compiled = run.lower(jnp.zeros((2, 512)), data).compile()
    self.assertLess(compiled.memory_analysis().temp_size_in_bytes, 512 * 640 * 2)
