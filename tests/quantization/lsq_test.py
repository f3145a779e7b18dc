"""LSQ against the paper's equations, arXiv:1902.08153."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def equations(w, s, bits, upstream):
  """w_hat (1, 2), and the gradients of w (5) and s (3, scaled as in 2.2)."""
  low, high = -2 ** (bits - 1), 2 ** (bits - 1) - 1
  v = w / s
  w_hat = np.rint(np.clip(v, low, high)) * s
  inside = (v > low) & (v < high)
  to_s = np.where(v <= low, low, np.where(v >= high, high, -v + np.rint(v)))
  return w_hat, upstream * inside, (upstream * to_s).sum() / np.sqrt(w.size * high)


class LsqTest(parameterized.TestCase):

  @parameterized.parameters((2, 0.3), (4, 0.3), (8, 0.3), (4, 0.011))
  def test_equations(self, bits, step):
    rng = np.random.default_rng(bits)
    w, upstream = rng.normal(size=(2, 6, 5)).astype(np.float32)
    transform = jsp.lsq(bits)
    params, state = transform.init({'kernel': jnp.asarray(w)})
    params = {'kernel': params['kernel']._replace(step_size=jnp.float32(step))}
    loss = lambda p: jnp.sum(transform.apply(p, state)['kernel'] * upstream)
    step = np.float64(np.float32(step))
    w_hat, to_w, to_s = equations(w.astype(np.float64), step, bits, upstream)
    np.testing.assert_allclose(transform.apply(params, state)['kernel'], w_hat, rtol=1e-5)
    grads = jax.grad(loss)(params)['kernel']
    np.testing.assert_allclose(grads.w, to_w, rtol=1e-6)   # g * s / s
    np.testing.assert_allclose(grads.step_size, to_s, rtol=1e-4, atol=1e-5)
    packed = transform.pack(params, state)['kernel']
    np.testing.assert_array_equal(packed.todense(), transform.apply(params, state)['kernel'])

  def test_a_step_an_output(self):
    rng = np.random.default_rng(1)
    w, upstream = rng.normal(size=(2, 3, 6, 5)).astype(np.float32)
    transform = jsp.lsq(3, granularity='channel')
    params, state = transform.init({'kernel': jnp.asarray(w)})
    sizes = np.asarray(params['kernel'].step_size)
    np.testing.assert_allclose(sizes, 2 * np.abs(w).mean(1) / np.sqrt(3), rtol=1e-6)
    out = transform.apply(params, state)['kernel']
    grads = jax.grad(lambda p: (transform.apply(p, state)['kernel'] * upstream).sum())(params)
    for n, column in np.ndindex(sizes.shape):
      expected = equations(w[n, :, column].astype(np.float64), np.float64(sizes[n, column]), 3,
                           upstream[n, :, column])
      found = (out[n, :, column], grads['kernel'].w[n, :, column],
               grads['kernel'].step_size[n, column])
      for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(transform.pack(params, state)['kernel'].todense(), out)
    with self.assertRaisesRegex(ValueError, "one of tensor, channel, got 'group'"):
      jsp.lsq(3, granularity='group')

  def test_by_hand(self):
    # Two bits: codes -2..1; s = 1, N Qp = 4, so the step's gradient is halved.
    transform = jsp.lsq(2)
    params, state = transform.init({'kernel': jnp.asarray([[0.25, -9.0], [9.0, -0.75]])})
    params = {'kernel': params['kernel']._replace(step_size=jnp.float32(1))}
    self.assertEqual(transform.apply(params, state)['kernel'].tolist(), [[0, -2], [1, -1]])
    grads = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)['kernel']
    self.assertEqual(grads.w.tolist(), [[1, 0], [0, 1]])
    self.assertEqual(float(grads.step_size), (-0.25 - 2 + 1 - 0.25) / 2)

  def test_first_step_size(self):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    params, _ = jsp.lsq(4).init({'kernel': w})
    np.testing.assert_allclose(params['kernel'].step_size,
                               2 * np.abs(w).mean((1, 2)) / np.sqrt(7), rtol=1e-6)

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_all_zero_weight_trains(self, dtype):
    transform = jsp.lsq(4)
    params, state = transform.init({'kernel': jnp.zeros((4, 3), dtype)})
    self.assertEqual(params['kernel'].step_size, 1.0)
    value, grads = jax.value_and_grad(
        lambda p: jnp.sum((transform.apply(p, state)['kernel'] - 1) ** 2))(params)
    self.assertEqual((float(value), np.asarray(grads['kernel'].w).tolist()), (12, [[-2] * 3] * 4))
    self.assertEqual(grads['kernel'].w.dtype, dtype)

  @parameterized.parameters(0.0, -0.5)
  def test_a_step_that_crossed_zero(self, step):
    transform = jsp.lsq(4)
    params, state = transform.init({'kernel': jnp.asarray([[1.0, -0.5]])})
    params = {'kernel': params['kernel']._replace(step_size=jnp.float32(step))}
    out = transform.apply(params, state)['kernel']
    np.testing.assert_allclose(out, [[1.0, -0.5]] if step else [[0, 0]], atol=1e-10)
    grads = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)
    self.assertTrue(all(np.isfinite(g).all() for g in jax.tree.leaves(grads)))

  @parameterized.parameters(1, 9, 4.0, True)
  def test_bad(self, bits):
    with self.assertRaisesRegex(ValueError, 'bits must be an integer from 2 to 8'):
      jsp.lsq(bits)


if __name__ == '__main__':
  absltest.main()
