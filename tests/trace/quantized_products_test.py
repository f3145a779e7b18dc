"""Products of codes, forward and backward, against float64 sums and the exact gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def _normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _nearest(a, axes, limit=127):
  """`a` rounded to integers with a scale along what `axes` leaves."""
  a = np.asarray(a)
  scale = np.abs(a).max(axes, keepdims=True) * np.float32(1 / limit)
  return np.rint(a / scale).astype(np.float64) * scale


def _conv(p, x):
  return jax.lax.conv_general_dilated(x, p['w'], (1, 2), 'SAME',
                                      dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


# name -> (function, shape of w, shape of x, axes that share a scale of w and of x).
CASES = {
    'right': (lambda p, x: x @ p['w'], (6, 5), (3, 4, 6), 0, 2),
    'left': (lambda p, x: p['w'] @ x, (5, 6), (6, 4), 1, 0),
    'experts': (lambda p, x: jnp.einsum('bed,edf->bef', x, p['w']), (3, 6, 5), (4, 3, 6), 1, 2),
    'two axes': (lambda p, x: jnp.einsum('bhd,hdo->bo', x, p['w']), (2, 3, 5), (4, 2, 3), (0, 1),
                 (1, 2)),
    'convolution': (_conv, (3, 3, 2, 4), (2, 5, 6, 2), None, None),
}


def _rounded(params, x, w_axes, x_axes):
  near = lambda a, axes: jnp.asarray(_nearest(a, axes), jnp.float32)
  return {'w': near(params['w'], w_axes)}, near(x, x_axes)


class QuantizedProductsTest(parameterized.TestCase):

  @parameterized.named_parameters((name, *case) for name, case in CASES.items())
  def test_forward_is_of_codes_and_gradients_have_no_bias(self, fn, w_shape, x_shape, *axes):
    params, x = {'w': _normal(*w_shape)}, _normal(*x_shape, seed=1)
    run = jsp.quantized_products(fn, 'int8', gradient_dtype='int4', seed=5)
    y = run(params, 0, x)
    np.testing.assert_allclose(y, fn(*_rounded(params, x, *axes)), rtol=1e-5, atol=1e-5)
    upstream = _normal(*y.shape, seed=2)
    exact = jax.grad(lambda p, x: (fn(p, x) * upstream).sum(), (0, 1))(params, x)
    loss = lambda p, x, count: (run(p, count, x) * upstream).sum()

    @jax.jit
    def moments(counts):
      found = jax.lax.map(lambda count: jax.grad(loss, (0, 1))(params, x, count), counts)
      return [(g.mean(0), g.std(0)) for g in jax.tree.leaves(found)]

    many = 3000
    for (mean, deviation), g in zip(moments(jnp.arange(many)), jax.tree.leaves(exact)):
      self.assertGreater(float(deviation.max()), 0)
      off = np.abs(np.asarray(mean - g)) / (np.asarray(deviation) / many**0.5 + 1e-6)
      self.assertLess(off.max(), 5)

  @parameterized.named_parameters((name, *case) for name, case in CASES.items())
  def test_products_of_gradients_may_stay_float(self, fn, w_shape, x_shape, *axes):
    params, x = {'w': _normal(*w_shape)}, _normal(*x_shape, seed=1)
    run = jsp.quantized_products(fn, 'int8', gradient_dtype='float32')
    y, pull = jax.vjp(lambda p, x: run(p, 0, x), params, x)
    wanted, straight = jax.vjp(fn, *_rounded(params, x, *axes))
    upstream = _normal(*y.shape, seed=2)
    chex.assert_trees_all_close(y, wanted, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(pull(upstream), straight(upstream), rtol=1e-5, atol=1e-5)

  def test_narrow_operands_and_what_is_not_finite(self):
    run = jsp.quantized_products(lambda p, x: x @ p['w'], 'int8', gradient_dtype='float32')
    params, x = {'w': _normal(40, 8)}, _normal(36, 40, seed=1)
    narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (params, x))
    y, pull = jax.vjp(lambda p, x: run(p, 0, x), *narrow)
    chex.assert_trees_all_equal_dtypes(pull(y), narrow)
    np.testing.assert_allclose(y.astype(jnp.float32), run(params, 0, x), atol=0.2)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
      self.assertTrue(bool(jnp.isnan(run(params, 0, x.at[7, 3].set(bad))[7]).all()))
      broken = {'w': params['w'].at[39, 2].set(bad)}
      found = jnp.isnan(run(broken, 0, x))
      self.assertTrue(bool(found[:, 2].all()) and not bool(found[:, 3:].any()))

  @parameterized.parameters('float8_e4m3', 'float8_e5m2')
  def test_floats_of_eight_bits(self, dtype):
    fn = lambda p, x: x @ p['w']
    params, x = {'w': _normal(6, 5)}, _normal(4, 6, seed=1)
    run = jsp.quantized_products(fn, dtype)
    limit, kind = (448, 'float8_e4m3fn') if dtype == 'float8_e4m3' else (57344, dtype)

    def cast(a, axis):
      scale = jnp.abs(a).max(axis, keepdims=True) * np.float32(1 / limit)
      return np.asarray((a / scale).astype(kind), np.float64) * np.asarray(scale)

    np.testing.assert_allclose(run(params, 0, x), cast(x, 1) @ cast(params['w'], 0), rtol=1e-5,
                               atol=1e-5)
    grads = jax.jit(jax.vmap(jax.grad(lambda p, n: run(p, n, x).sum()), (None, 0)))(
        params, jnp.arange(3000))['w']
    exact = jax.grad(lambda p: fn(p, x).sum())(params)['w']
    sigma = np.asarray(grads.std(0)) / 3000**0.5 + 1e-6
    self.assertLess((np.abs(np.asarray(grads.mean(0) - exact)) / sigma).max(), 5)

  def test_layers_of_a_scan_and_what_is_left_alone(self):
    params = {'layers': _normal(3, 4, 4), 'head': _normal(4, 2, seed=1), 'table': _normal(9, 4)}

    def fn(p, ids):
      x = p['table'][ids]
      x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p['layers'])
      return x @ p['head']

    ids = jnp.array([1, 5, 7])
    exact = jax.jit(jax.grad(lambda p: (fn(p, ids) ** 2).sum()))(params)
    run = jsp.quantized_products(fn, 'int8')
    grad = jax.jit(jax.grad(lambda p, count: (run(p, count, ids) ** 2).sum()))
    both = grad(params, 3)
    for name in params:
      np.testing.assert_allclose(both[name], exact[name], atol=0.1 * np.abs(exact[name]).max())
      self.assertFalse(np.array_equal(both[name], exact[name]))
    head = jsp.quantized_products(fn, 'int8', weights='head')
    np.testing.assert_array_equal(
        jax.make_jaxpr(head)(params, 0, ids).pretty_print(use_color=False).count('i32[3,2] = dot'),
        1)
    np.testing.assert_array_equal(grad(params, 3)['head'], both['head'])
    self.assertFalse(np.array_equal(grad(params, 4)['head'], both['head']))

  def test_bad(self):
    fn = lambda p, x: x @ (p['w'] * 2)
    params, x = {'w': _normal(3, 3)}, _normal(2, 3)
    with self.assertRaisesRegex(ValueError, 'w: no product took the weight'):
      jsp.quantized_products(fn, weights='w')(params, 0, x)
    with self.assertRaisesRegex(ValueError, 'no weight matches'):
      jsp.quantized_products(fn, weights='v')(params, 0, x)
    for dtype in ('uint8', 'nf4', 'int2', 'float4_e2m1'):
      with self.assertRaisesRegex(ValueError, f'float8_e5m2\'; got {dtype!r}'):
        jsp.quantized_products(fn, dtype)
    run = jsp.quantized_products(lambda p, x: x @ p['w'])
    x = _normal(2, 600)   # more than XLA:CPU finds a NaN among when it takes a maximum
    y = run({'w': _normal(600, 3)}, 0, x.at[0, 1].set(jnp.nan).at[1, 0].set(0))
    self.assertTrue(np.isnan(y[0]).all())
    self.assertTrue(np.isfinite(y[1]).all())
    grads = jax.grad(lambda p: run(p, 0, jnp.zeros((2, 3))).sum())({'w': jnp.zeros((3, 3))})
    np.testing.assert_array_equal(grads['w'], jnp.zeros((3, 3)))

  @parameterized.parameters('int8', 'float8_e4m3')
  def test_digits_are_learned(self, dtype):
    datasets = pytest.importorskip('sklearn.datasets')
    images, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    params = {'a': _normal(64, 64) * 0.15, 'b': _normal(64, 10, seed=1) * 0.15}
    fn = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
    run, tx = jsp.quantized_products(fn, dtype), optax.adam(5e-3)

    @jax.jit
    def train(params):
      def step(carry, count):
        params, state = carry
        at = jax.lax.rem(count, 11) * 128
        x, y = (jax.lax.dynamic_slice_in_dim(a, at, 128) for a in (images, labels))
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(run(p, count, x), y).mean()
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None
      return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(150))[0][0]

    trained = train(params)
    right = (run(trained, 0, images[1437:]).argmax(-1) == labels[1437:]).mean()
    self.assertGreater(float(right), 0.95)


if __name__ == '__main__':
  absltest.main()
