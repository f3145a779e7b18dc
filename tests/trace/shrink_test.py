"""A shrunk model computes what the masked one does, is smaller, and trains on."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen as nn

import jaxsparse as jsp
from tests.trace import models

_DEAD = jnp.array([1, 3])


class _Cnn(nn.Module):
  """Convolution, BatchNorm, depthwise convolution, pooling, flattening, two dense layers."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), name='stem')(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True, name='norm')(x))
    x = nn.relu(nn.Conv(6, (3, 3), feature_group_count=6, name='depthwise')(x))
    x = nn.relu(nn.Conv(8, (3, 3), name='conv')(x))
    x = nn.max_pool(nn.avg_pool(x, (2, 2), strides=(2, 2)), (2, 2))
    x = nn.relu(nn.Dense(10, name='hidden')(x.reshape(x.shape[0], -1)))
    return nn.Dense(3, name='head')(x)


class _Decoder(nn.Module):
  """An embedding and a pre-norm block with a residual stream."""

  @nn.compact
  def __call__(self, ids):
    x = nn.Embed(11, 8, name='embed')(ids)
    h = nn.LayerNorm(name='norm')(x)
    x = x + nn.MultiHeadDotProductAttention(num_heads=4, name='attention')(h)
    h = nn.RMSNorm(name='rms')(x)
    x = x + nn.Dense(8, name='down')(nn.gelu(nn.Dense(12, name='up')(h)))
    return nn.Dense(11, name='head')(x)


def _noisy(params):
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(7), len(leaves))
  return treedef.unflatten([
      x + 0.3 * jnp.abs(jax.random.normal(k, x.shape)) for k, x in zip(keys, leaves)])


def _zero(params, cuts):
  """Zeroes `{name: [(axis, entries)]}`."""
  def one(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for axis, entries in cuts.get(name.removesuffix('/value'), []):
      x = x.at[(slice(None),) * axis + (entries,)].set(0)
    return x
  return jax.tree_util.tree_map_with_path(one, params)


def _cnn():
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  net = _Cnn()
  params = _noisy(jax.jit(net.init)(jax.random.key(0), x))
  cuts = {f'params/{n}/kernel': [(-1 % r, _DEAD)] for n, r in
          (('stem', 4), ('conv', 4), ('hidden', 2))}
  params = _zero(params, cuts)
  return net.apply, jsp.silence(net.apply, params, x), x


def _decoder():
  ids = jnp.arange(10).reshape(2, 5)
  net = _Decoder()
  params = _noisy(jax.jit(net.init)(jax.random.key(0), ids))
  last = lambda rank: [(rank - 1, _DEAD)]
  cuts = {'attention/out/kernel': [(0, jnp.array([2])), *last(3)], 'attention/out/bias': last(1),
          'up/kernel': [(1, jnp.array([0, 5]))], 'down/kernel': last(2), 'down/bias': last(1),
          'embed/embedding': last(2), 'norm/scale': last(1), 'norm/bias': last(1)}
  params = _zero(params, {f'params/{name}': cut for name, cut in cuts.items()})
  return net.apply, jsp.silence(net.apply, params, ids), ids


_MODELS = {'cnn': _cnn, 'decoder': _decoder}
_SHAPES = {
    'cnn': {'stem/kernel': (3, 3, 3, 4), 'norm/scale': (4,), 'depthwise/kernel': (3, 3, 1, 4),
            'conv/kernel': (3, 3, 4, 6), 'hidden/kernel': (54, 8), 'head/kernel': (8, 3)},
    'decoder': {'embed/embedding': (11, 6), 'attention/query/kernel': (6, 3, 2),
                'attention/out/kernel': (3, 2, 6), 'up/kernel': (6, 10), 'rms/scale': (6,),
                'down/kernel': (10, 6), 'head/kernel': (6, 11)}}


def _shapes(plan):
  return {row.name.removeprefix('params/'): row.after for row in plan}


class ShrinkTest(parameterized.TestCase):

  @parameterized.parameters('cnn', 'decoder')
  def test_outputs_equal_and_sizes_are_those_left(self, name):
    apply, params, x = _MODELS[name]()
    small = jsp.shrink(apply, params, x)
    shapes = _shapes(small.plan)
    self.assertEqual({n: shapes[n] for n in _SHAPES[name]}, _SHAPES[name])
    chex.assert_trees_all_equal_structs(small.params, params)
    for batch in (x, x[:1], jnp.concatenate([x, x, x])):
      got = jax.jit(small.apply)(small.params, batch)
      chex.assert_trees_all_close(got, apply(params, batch), atol=1e-5, rtol=1e-5)

  @parameterized.parameters('cnn', 'decoder')
  def test_a_step_with_carried_moments_is_the_masked_step(self, name):
    apply, params, x = _MODELS[name]()
    small = jsp.shrink(apply, params, x)
    # Keys' biases have no gradient but rounding, which Adam would blow up without this epsilon.
    optimizer = optax.adam(1e-2, eps=1e-3)
    loss = lambda fn: lambda p: jnp.mean(fn(p, x) ** 2)

    @jax.jit
    def full_step(p, state):
      updates, state = optimizer.update(jax.grad(loss(apply))(p), state, p)
      return optax.apply_updates(p, updates), state

    @jax.jit
    def small_step(p, state):
      updates, state = optimizer.update(jax.grad(loss(small.apply))(p), state, p)
      return optax.apply_updates(p, updates), state

    # Moments of a real step; the weights stay where they are, so that what is dead stays dead.
    _, state = full_step(params, optimizer.init(params))
    carried = small.carry(state)
    chex.assert_trees_all_equal_shapes(carried, optimizer.init(small.params))
    want, _ = full_step(params, state)
    got, _ = small_step(small.params, carried)
    chex.assert_trees_all_close(got, small.carry(want), atol=2e-5)

  def test_a_model_without_dead_parts_is_itself(self):
    for name in ('haiku_net', 'bare'):
      with self.subTest(name):
        apply, params, x = models.ALL[name]()
        small = jsp.shrink(apply, params, x)
        self.assertTrue(all(row.before == row.after for row in small.plan))
        chex.assert_trees_all_close(small.apply(small.params, x), apply(params, x), atol=1e-6)

  def test_an_nnx_head_goes(self):
    apply, params, ids = models.nnx_transformer()
    params = _zero(params, {'attention/out/kernel': [(0, jnp.array([1]))]})
    small = jsp.shrink(apply, params, ids)
    self.assertEqual(_shapes(small.plan)['attention/key/kernel'], (8, 1, 4))
    got = jax.jit(small.apply)(small.params, ids)
    chex.assert_trees_all_close(got, apply(params, ids), atol=1e-5)

  def test_the_gradient_of_relu_at_zero_stays_its_own(self):
    # max(x, 0) would give a half where relu gives none.
    apply = lambda p, x: jax.nn.relu(x @ p['up']) @ p['down']
    params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
    x = jnp.array([[1.0, -1.0, 0.0]])
    small = jsp.shrink(apply, params, x)
    got = jax.grad(lambda p: small.apply(p, x).sum())(small.params)
    want = jax.grad(lambda p: apply(p, x).sum())(params)
    chex.assert_trees_all_equal(got, small.carry(want))
    self.assertEqual(float(jnp.abs(got['up']).max()), 0.0)

  def test_a_custom_vjp_keeps_its_rule(self):
    @jax.custom_vjp
    def clipped(x):
      return jnp.tanh(x)

    clipped.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (jnp.clip(g, -0.1, 0.1),))
    apply = lambda p, x: clipped(x @ p['up']) @ p['down']
    params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
    x = jnp.ones((2, 3))
    small = jsp.shrink(apply, params, x)
    self.assertEqual(small.params['up'].shape, (3, 3))
    got = jax.jit(jax.grad(lambda p: small.apply(p, x).sum()))(small.params)
    chex.assert_trees_all_close(
        got, small.carry(jax.grad(lambda p: apply(p, x).sum())(params)))

  def test_what_dies_in_turn_goes_too(self):
    # The second layer's neuron 0 reads only neuron 1 of the first, which is dead.
    apply = lambda p, x: jnp.tanh(jnp.tanh(x @ p['a']) @ p['b']) @ p['c']
    params = {'a': jnp.ones((3, 4)).at[:, 1].set(0), 'c': jnp.ones((5, 2)),
              'b': jnp.ones((4, 5)).at[jnp.array([0, 2, 3]), 0].set(0)}
    small = jsp.shrink(apply, params, jnp.ones((2, 3)))
    self.assertEqual(small.params['b'].shape, (3, 4))

  def test_of_a_dead_layer_one_entry_stays(self):
    apply = lambda p, x: jnp.tanh(x @ p['up']) @ p['down'] + p['bias'][None]
    params = {'up': jnp.zeros((3, 4)), 'down': jnp.ones((4, 2)), 'bias': jnp.ones(2)}
    small = jsp.shrink(apply, params, jnp.ones((2, 3)))
    self.assertEqual(small.params['down'].shape, (1, 2))
    np.testing.assert_array_equal(small.apply(small.params, jnp.ones((1, 3))), 1.0)

  @parameterized.named_parameters(
      ('unknown', lambda h: jnp.fft.fft(h).real, 'fft is not understood'),
      ('softmax', jax.nn.softmax, 'mixes it'),
      ('sigmoid', jax.nn.sigmoid, 'down reads it'))
  def test_what_cannot_go_stays_and_says_why(self, middle, why):
    apply = lambda p, x: middle(x @ p['up']) @ p['down']
    params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
    small = jsp.shrink(apply, params, jnp.ones((2, 3)))
    self.assertEqual(small.params['up'].shape, (3, 4))
    self.assertIn(why, str(small))

  def test_a_constant_channel_goes_only_when_nothing_reads_it_or_it_is_silenced(self):
    apply = lambda p, x: jax.nn.relu(x @ p['up'] + p['bias'][None]) @ p['down']
    x = jnp.ones((2, 3))
    params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'bias': jnp.ones(4), 'down': jnp.ones((4, 2))}
    self.assertEqual(jsp.shrink(apply, params, x).params['up'].shape, (3, 4))
    unread = {**params, 'down': params['down'].at[1].set(0)}
    self.assertEqual(jsp.shrink(apply, unread, x).params['up'].shape, (3, 3))
    silent = jsp.silence(apply, params, x)
    np.testing.assert_array_equal(silent['bias'], [1, 0, 1, 1])
    self.assertEqual(jsp.shrink(apply, silent, x).params['bias'].shape, (3,))

  def test_silence_leaves_outputs_and_reached_channels_alone(self):
    apply = lambda p, x: x @ p['kernel'] + p['bias'][None]
    params = {'kernel': jnp.zeros((3, 2)), 'bias': jnp.ones(2)}
    chex.assert_trees_all_equal(jsp.silence(apply, params, jnp.ones((1, 3))), params)
    # A residual channel that one of two writers still reaches.
    apply = lambda p, x: (x @ p['a'] + x @ p['b'] + p['bias'][None]) @ p['c']
    params = {'a': jnp.zeros((3, 2)), 'b': jnp.ones((3, 2)), 'bias': jnp.ones(2),
              'c': jnp.ones((2, 1))}
    chex.assert_trees_all_equal(jsp.silence(apply, params, jnp.ones((1, 3))), params)

  def test_bfloat16(self):
    apply = lambda p, x: jax.nn.gelu(x @ p['up']) @ p['down']
    params = {'up': jnp.ones((3, 4), jnp.bfloat16).at[:, 1].set(0),
              'down': jnp.ones((4, 2), jnp.bfloat16)}
    x = jnp.ones((2, 3), jnp.bfloat16)
    small = jsp.shrink(apply, params, x)
    self.assertEqual((small.params['up'].shape, small.params['up'].dtype), ((3, 3), jnp.bfloat16))
    np.testing.assert_array_equal(np.float32(small.apply(small.params, x)),
                                  np.float32(apply(params, x)))

  def test_merged_axes_go_in_whole_heads_only(self):
    # Features 0 and 3 are dead: no head of two, and no place within heads, is dead altogether.
    apply = lambda p, x: jnp.einsum(
        'bhd,hdo->bo', jnp.tanh(x @ p['up']).reshape(-1, 3, 2), p['down'])
    up = jnp.ones((3, 6))
    down = jnp.ones((3, 2, 2))
    x = jnp.ones((2, 3))
    odd = {'up': up.at[:, jnp.array([0, 3])].set(0), 'down': down}
    self.assertEqual(jsp.shrink(apply, odd, x).params['up'].shape, (3, 6))
    head = {'up': up.at[:, 2:4].set(0), 'down': down}
    small = jsp.shrink(apply, head, x)
    self.assertEqual((small.params['up'].shape, small.params['down'].shape), ((3, 4), (2, 2, 2)))

  def test_cpus_get_pictures_of_four_channels_and_other_devices_three(self):
    conv = lambda x, w: jax.lax.conv_general_dilated(
        x, w, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    apply = lambda p, x: conv(conv(x, p['first']), p['second'])
    rng = np.random.default_rng(0)
    params = {'first': jnp.float32(rng.normal(size=(3, 3, 3, 48))).at[..., ::2].set(0),
              'second': jnp.float32(rng.normal(size=(1, 1, 48, 2)))}
    x = jnp.float32(rng.normal(size=(2, 5, 5, 3)))
    small = jsp.shrink(apply, params, x)
    self.assertEqual(small.params['first'].shape, (3, 3, 3, 24))
    np.testing.assert_allclose(small.apply(small.params, x), apply(params, x), atol=1e-4)
    loss = lambda p: (small.apply(p, x) ** 2).sum()
    expected = jax.grad(lambda p: (apply(p, x) ** 2).sum())(params)
    found = jax.jit(jax.grad(loss))(small.params)
    chex.assert_trees_all_close(found, small.carry(expected), rtol=1e-4)
    traced = jax.jit(small.apply).trace(small.params, x)
    for device, pads in (('cpu', True), ('tpu', False)):
      text = traced.lower(lowering_platforms=(device,)).as_text()
      self.assertEqual('tensor<2x5x5x4xf32>' in text, pads, device)

  def test_formats_are_densified(self):
    apply = lambda p, x: jnp.tanh(x @ p['up']) @ p['down']
    params = {'up': jnp.arange(12.0).reshape(3, 4), 'down': jnp.ones((4, 2))}
    transform = jsp.at('up', jsp.magnitude(0.5, pattern=jsp.channel()))
    packed = transform.pack(*transform.init(params))
    self.assertEqual(jsp.shrink(apply, packed, jnp.ones((2, 3))).params['up'].shape, (3, 2))

  def test_wrong_shapes_are_named(self):
    apply = lambda p, x: jnp.tanh(x @ p['up']) @ p['down']
    params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
    small = jsp.shrink(apply, params, jnp.ones((2, 3)))
    with self.assertRaisesRegex(ValueError, 'down has shape .4, 2.; shrunk, it has .3, 2.'):
      small.apply(params, jnp.ones((2, 3)))
    with self.assertRaisesRegex(ValueError, 'mu/up has shape .4,., but up'):
      small.carry({'mu': {'up': jnp.ones(4)}})


if __name__ == '__main__':
  absltest.main()
