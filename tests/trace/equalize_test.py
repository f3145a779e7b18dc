"""Equalized models compute what they did, and their channels have one range on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import linen

import jaxsparse as jsp


class _Cnn(linen.Module):
  @linen.compact
  def __call__(self, x):
    x = linen.relu(linen.Conv(5, (3, 3))(x))
    x = linen.max_pool(linen.relu(linen.Conv(6, (3, 3))(x)), (2, 2), strides=(2, 2))
    x = linen.avg_pool(linen.relu(linen.Conv(4, (1, 1))(x)), (1, 2), strides=(1, 2))
    x = linen.relu(linen.Dense(7)(x.reshape(len(x), -1)))
    return linen.Dense(3)(linen.gelu(linen.Dense(6)(x)))


class EqualizeTest(absltest.TestCase):

  def test_cnn(self):
    rng, model = np.random.default_rng(0), _Cnn()
    x = jnp.asarray(rng.normal(size=(2, 4, 4, 2)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x)
    # Channels of very different sizes.
    params = jax.tree.map(lambda w: jnp.asarray(
        rng.normal(size=w.shape) * np.exp(2 * rng.normal(size=w.shape[-1])), jnp.float32), params)
    new = jsp.equalize(model.apply, params, x)
    before, after = (jax.jit(model.apply)(p, x) for p in (params, new))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    p = new['params']
    peak = lambda layer, *axes: np.abs(p[layer]['kernel']).max(axes)
    np.testing.assert_allclose(peak('Conv_0', 0, 1, 2), peak('Conv_1', 0, 1, 3), rtol=2e-3)
    np.testing.assert_allclose(peak('Conv_1', 0, 1, 2), peak('Conv_2', 0, 1, 3), rtol=2e-3)
    flat = np.abs(p['Dense_0']['kernel']).max(1).reshape(-1, 4).max(0)
    np.testing.assert_allclose(peak('Conv_2', 0, 1, 2), flat, rtol=2e-3)
    np.testing.assert_allclose(peak('Dense_0', 0), peak('Dense_2', 1), rtol=2e-3)
    # Behind a gelu nothing moves.
    np.testing.assert_array_equal(p['Dense_1']['kernel'], params['params']['Dense_1']['kernel'])
    one = jsp.equalize(model.apply, params, x, weights='.*/Dense_0/kernel')
    np.testing.assert_array_equal(one['params']['Conv_0']['kernel'],
                                  params['params']['Conv_0']['kernel'])
    # By tensor, int8 loses less.
    lossy = jsp.at('.*kernel', jsp.quantize('int8', granularity='tensor'))
    off = [np.abs(jax.jit(model.apply)(jsp.densify(lossy.apply(*lossy.init(q))), x)
                  - before).max() for q in (params, new)]
    self.assertLess(off[1], off[0])

  def test_zeros_and_what_is_no_pair(self):
    fn = lambda p, x: jax.nn.relu(x @ p['a'] + p['bias'][None]) @ p['b']
    params = {'a': jnp.array([[4.0, 0.0, 2.0]]), 'bias': jnp.array([2.0, 1.0, -1.0]),
              'b': jnp.array([[1.0], [3.0], [0.0]])}
    new, x = jsp.equalize(fn, params, jnp.ones((1, 1))), jnp.array([[3.0]])
    self.assertEqual(new['a'].tolist(), [[2, 0, 2]])
    self.assertEqual(new['bias'].tolist(), [1, 1, -1])
    np.testing.assert_allclose(fn(new, x), fn(params, x), rtol=1e-6)
    for other in (lambda p, x: jnp.tanh(x @ p['a']) @ p['b'],
                  lambda p, x: (y := jax.nn.relu(x @ p['a'])) @ p['b'] + y.sum(),
                  lambda p, x: jax.nn.relu(x @ p['a'] + 1.0) @ p['b']):
      with self.assertRaisesRegex(ValueError, 'no weight is followed by a ReLU'):
        jsp.equalize(other, params, x)
    # What others read too, or has not one entry for each channel, cannot be scaled.
    square = {'a': jnp.ones((3, 3)), 'b': jnp.ones((3, 3)), 'bias': jnp.ones(3)}
    layer = lambda p, x, bias: jax.nn.relu(x @ p['a'] + bias)
    for other in (lambda p, x: layer(p, x, p['bias'][None]) @ p['b'] + p['bias'][None],
                  lambda p, x: layer(p, x, p['bias'][:, None]) @ p['b'],
                  lambda p, x: (layer(p, x, 0.0) @ p['b'], jnp.square(p['a']).sum()),
                  lambda p, x: layer(p, x, 0.0) @ p['b'] + p['b'].sum(),
                  lambda p, x: layer(p, x, 0.0).astype(jnp.int32).astype(jnp.float32) @ p['b']):
      with self.assertRaisesRegex(ValueError, 'no weight is followed by a ReLU'):
        jsp.equalize(other, square, jnp.ones((3, 3)))
    empty = {'a': jnp.ones((3, 0)), 'b': jnp.ones((0, 3))}
    self.assertEqual(jsp.equalize(lambda p, x: jax.nn.relu(x @ p['a']) @ p['b'], empty,
                                  jnp.ones((1, 3)))['a'].shape, (3, 0))
    with self.assertRaisesRegex(ValueError, "no weight that 'c' matches"):
      jsp.equalize(fn, params, x, weights='c')
    with self.assertRaisesRegex(ValueError, 'got 0'):
      jsp.equalize(fn, params, x, sweeps=0)


if __name__ == '__main__':
  absltest.main()
