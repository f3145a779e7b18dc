"""Batch norms folded into what is before them, in linen, NNX and bare functions."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import linen
from flax import nnx

import jaxsparse as jsp


def _filled(tree, seed=0):
  """Every array at random; variances, and whatever else is called var, positive."""
  rng = np.random.default_rng(seed)

  def fill(path, x):
    value = rng.normal(size=x.shape)
    positive = 'var' in jax.tree_util.keystr(path)
    return jnp.asarray(np.exp(value) if positive else value, x.dtype)

  return jax.tree_util.tree_map_with_path(fill, tree)


class _Cnn(linen.Module):
  @linen.compact
  def __call__(self, x):
    norm = lambda **kwargs: linen.BatchNorm(use_running_average=True, **kwargs)
    x = linen.relu(norm()(linen.Conv(4, (3, 3), use_bias=False)(x)))
    skip = norm(use_scale=False, epsilon=1e-3)(linen.Conv(6, (1, 1))(x))
    x = linen.Conv(4, (3, 3), feature_group_count=4)(x)
    x = linen.relu(norm(use_bias=False)(x))
    x = linen.relu(norm()(linen.Conv(6, (3, 3))(x)) + skip)
    return norm(name='head_norm')(linen.Dense(5)(x.mean((1, 2))))


class _Net(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.conv = nnx.Conv(2, 3, (2, 2), rngs=rngs)
    self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)

  def __call__(self, x):
    return jnp.tanh(self.norm(self.conv(x)))


class FoldTest(absltest.TestCase):

  def test_linen(self):
    model = _Cnn()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 3)), jnp.float32)
    variables = _filled(jax.jit(model.init)(jax.random.key(0), x))
    folded = jsp.fold_batch_norm(model.apply, variables, x)
    before, after = (jax.jit(model.apply)(v, x) for v in (variables, folded))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    stats, params = variables['batch_stats']['BatchNorm_0'], variables['params']
    scale, variance = np.asarray(params['BatchNorm_0']['scale']), np.asarray(stats['var'])
    factor = scale / np.sqrt(variance + 1e-5)
    np.testing.assert_allclose(folded['params']['Conv_0']['kernel'],
                               np.asarray(params['Conv_0']['kernel']) * factor, rtol=1e-5)
    factor = 1 / np.sqrt(np.asarray(variables['batch_stats']['BatchNorm_1']['var']) + 1e-3)
    np.testing.assert_allclose(folded['params']['Conv_1']['bias'],
                               np.asarray(params['Conv_1']['bias']) * factor, rtol=1e-5)
    for name, norm in folded['batch_stats'].items():
      np.testing.assert_allclose(norm['var'], 1, atol=2e-3)
      if 'scale' in folded['params'][name]:
        np.testing.assert_array_equal(folded['params'][name]['scale'], 1)
    some = jsp.fold_batch_norm(model.apply, variables, x, norms='.*/head_norm/var')
    np.testing.assert_array_equal(some['params']['Conv_0']['kernel'], params['Conv_0']['kernel'])
    self.assertFalse(np.array_equal(some['params']['Dense_0']['kernel'],
                                    params['Dense_0']['kernel']))

  def test_nnx(self):
    graph, state = nnx.split(_Net())
    state = _filled(state)
    fn = lambda state, x: nnx.merge(graph, state)(x)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 5, 2)), jnp.float32)
    folded = jsp.fold_batch_norm(fn, state, x)
    np.testing.assert_allclose(fn(folded, x), fn(state, x), atol=1e-5)
    self.assertTrue(np.array_equal(folded['norm']['scale'][...], np.ones(3)))
    self.assertEqual(jax.tree.structure(folded), jax.tree.structure(state))

  def test_what_cannot_be_folded_is_named(self):
    norm = lambda p, y: (y - p['mean'][None]) * jax.lax.rsqrt(p['var'][None] + 1e-5)
    params = _filled({'w': jnp.ones((3, 3)), 'mean': jnp.ones(3), 'var': jnp.ones(3),
                      'b': jnp.ones(3), 'gain': jnp.ones(())})
    x = jnp.ones((3, 3))
    for fn, message in (
        (lambda p, x: norm(p, x), 'var: it comes right after an input'),
        (lambda p, x: norm(p, jax.nn.relu(x @ p['w'])), 'var: it comes after '),
        (lambda p, x: norm(p, x @ p['w']) + x @ p['w'], 'var: w is used in 2 products'),
        (lambda p, x: (y := x @ p['w']) + norm(p, y), 'var: something else reads'),
        (lambda p, x: norm(p, x @ jnp.tanh(p['w'])), 'has no weight as it is'),
        (lambda p, x: x @ p['w'] * jax.lax.rsqrt(p['var'][None] + 1e-5), 'not that of a batch'),
        (lambda p, x: norm(p, x @ p['w']) + p['mean'][None], 'var: mean is read elsewhere too'),
        (lambda p, x: norm(p, x @ p['w']) + jnp.square(p['w']).sum(), 'w is read elsewhere too'),
        (lambda p, x: norm(p, x @ p['w'] + p['b'][:, None]), 'has not one entry for each output'),
        (lambda p, x: norm(p, x @ p['w']) * p['gain'], 'var: gain has 1 entries, expected one'),
        (lambda p, x: x @ p['w'], 'by no variance among the params'),
    ):
      with self.assertRaisesRegex(ValueError, message):
        jsp.fold_batch_norm(fn, params, x)
    with self.assertRaisesRegex(ValueError, "that 'v' matches"):
      jsp.fold_batch_norm(lambda p, x: norm(p, x @ p['w']), params, x, norms='v')

  def test_the_order_of_a_sum_or_product_does_not_matter(self):
    params = _filled({'w': jnp.ones((4, 3)), 'mean': jnp.ones(3), 'var': jnp.ones(3),
                      'scale': jnp.ones(3)})
    fn = lambda p, x: (p['scale'][None] * jax.lax.rsqrt(1e-5 + p['var'][None])
                       * (x @ p['w'] - p['mean'][None]))
    folded = jsp.fold_batch_norm(fn, params, jnp.ones((2, 4)))
    factor = np.asarray(params['scale']) / np.sqrt(np.asarray(params['var']) + 1e-5)
    np.testing.assert_allclose(folded['w'], np.asarray(params['w']) * factor, rtol=1e-5)

  def test_half_precision_is_rounded_once(self):
    fn = lambda p, x: ((x.astype(p['w'].dtype) @ p['w'] - p['mean'][None])
                       * jax.lax.rsqrt(p['var'][None] + 1e-5))
    params = _filled({'w': jnp.ones((4, 3)), 'mean': jnp.ones(3), 'var': jnp.ones(3)})
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    folded = jsp.fold_batch_norm(fn, half, jnp.ones((2, 4)))
    self.assertEqual(folded['w'].dtype, jnp.bfloat16)
    wanted = np.float32(half['w']) / np.sqrt(np.float32(half['var']) + np.float32(1e-5))
    np.testing.assert_array_equal(folded['w'], jnp.asarray(wanted, jnp.bfloat16))


if __name__ == '__main__':
  absltest.main()
