"""Rounding and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

from jaxsparse.numerics import rounding


class RoundingTest(parameterized.TestCase):

  def test_half_to_even_then_clipped(self):
    x = jnp.asarray([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 9.0, -9.0])
    self.assertEqual(rounding.nearest(x, -3, 3).tolist(), [-2, -2, 0, 0, 2, 2, 3, -3])

  def test_bytes(self):
    x = np.append(np.arange(-254, 255) / np.float32(2), np.float32([-0.0, 126.49999, -126.50001]))
    found = rounding.bytes_of(jnp.asarray(x, jnp.float32))
    self.assertEqual(found.dtype, jnp.int8)
    np.testing.assert_array_equal(found, np.rint(x))

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_straight_through(self, dtype):
    x, q = jnp.asarray([0.4, 1e4], dtype), jnp.asarray([0.1, -3.0], dtype)
    weights = jnp.asarray([2.0, 3.0], dtype)
    loss = lambda x, q: jnp.sum(rounding.straight_through(x, q) * weights)
    # Exactly q: x + (q - x) would lose bits beside 1e4.
    np.testing.assert_array_equal(rounding.straight_through(x, q), q)
    to_x, to_q = jax.grad(loss, (0, 1))(x, q)
    self.assertEqual(to_x.dtype, x.dtype)
    self.assertEqual((to_x.tolist(), to_q.tolist()), ([2.0, 3.0], [0.0, 0.0]))

  def test_nan_and_infinity_stay_when_rounded_by_chance(self):
    bits = np.array([0x7f800001, 0xff80ffff, 0x7fc00000, 0x7f800000, 0xff800000], np.uint32)
    for seed in range(8):
      out = np.asarray(rounding.stochastic(jnp.asarray(bits.view(np.float32)), seed), np.float32)
      np.testing.assert_array_equal(out, [np.nan, np.nan, np.nan, np.inf, -np.inf])

  def test_through_transformations(self):
    run = jax.jit(jax.vmap(jax.grad(lambda x: 3 * rounding.straight_through(x, jnp.round(x)))))
    self.assertEqual(run(jnp.asarray([0.2, 0.7])).tolist(), [3.0, 3.0])

  @parameterized.parameters('float32', 'bfloat16')
  def test_scale_gradient(self, dtype):
    x = jnp.asarray([1.0, -2.0], dtype)
    np.testing.assert_array_equal(rounding.scale_gradient(x, 0.25), x)
    grad = jax.grad(lambda x: jnp.sum(rounding.scale_gradient(x, 0.25) ** 2))(x)
    self.assertEqual((grad.dtype, grad.tolist()), (x.dtype, [0.5, -1.0]))

  @parameterized.parameters('float32', 'bfloat16')
  def test_add_gradient(self, dtype):
    x = jnp.asarray([1.0, -2.0], dtype)
    loss = lambda x: jnp.sum(rounding.add_gradient(x, 0.5 * x.astype(jnp.float32)) ** 2)
    self.assertEqual(float(loss(x)), 5.0)
    grad = jax.jit(jax.grad(loss))(x)   # 2 x, and x / 2 once: none through the extra itself
    self.assertEqual((grad.dtype, grad.tolist()), (x.dtype, [2.5, -5.0]))


if __name__ == '__main__':
  absltest.main()
