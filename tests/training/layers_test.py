"""Layers dropped from stacks and from numbered blocks, with the optimizer's state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized
from flax import nnx

import jaxsparse as jsp


def scanned(params, x):
  x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params['blocks']['kernel'])
  return x @ params['head']


def by_name(params, x):
  for i in range(sum(key.startswith('block_') for key in params)):
    x = x + jnp.tanh(x @ params[f'block_{i}']['kernel'])
  return x @ params['head']


def model():
  keys = jax.random.split(jax.random.key(0))
  return {'blocks': {'kernel': jax.random.normal(keys[0], (4, 5, 5)) / 3},
          'head': jax.random.normal(keys[1], (5, 2))}


def named():
  stack = model()
  return {'head': stack['head'],
          **{f'block_{i}': {'kernel': w} for i, w in enumerate(stack['blocks']['kernel'])}}


class KeepTest(parameterized.TestCase):

  @parameterized.parameters([[0, 1, 2, 3]], [[0, 3]], [[2]], [[3, 0, 1]])
  def test_stack_and_blocks_agree_with_the_layers_applied_by_hand(self, keep):
    x = y = jax.random.normal(jax.random.key(1), (3, 5))
    for i in keep:
      y = y + jnp.tanh(y @ model()['blocks']['kernel'][i])
    wanted = y @ model()['head']
    np.testing.assert_allclose(scanned(jsp.keep_layers(model(), keep, at='blocks/.*'), x), wanted,
                               rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(by_name(jsp.keep_blocks(named(), keep, prefix='block_'), x), wanted,
                               rtol=1e-5, atol=1e-5)

  @parameterized.named_parameters(
      ('stack', model, lambda t: jsp.keep_layers(t, [1, 3], at='.*blocks/.*'), scanned),
      ('blocks', named, lambda t: jsp.keep_blocks(t, [1, 3], prefix='block_'), by_name))
  def test_the_optimizer_goes_on(self, make, cut, apply_fn):
    tx, params, x = optax.adam(0.1), make(), jnp.ones((3, 5))
    opt_state = tx.init(params)
    loss = lambda p: jnp.square(apply_fn(p, x)).sum()
    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    params = optax.apply_updates(params, updates)
    small, small_state = cut(params), cut(opt_state)
    np.testing.assert_array_equal(
        jax.tree.leaves(small_state[0].mu)[0], jax.tree.leaves(cut(opt_state[0].mu))[0])
    self.assertEqual(jax.tree.map(jnp.shape, small_state), jax.tree.map(jnp.shape, tx.init(small)))
    self.assertEqual(int(small_state[0].count), 1)
    updates, _ = tx.update(jax.grad(loss)(small), small_state, small)
    self.assertLess(float(loss(optax.apply_updates(small, updates))), float(loss(small)))

  def test_a_list_of_nnx_modules(self):
    class Net(nnx.Module):
      def __init__(self, n, rngs):
        self.layers = nnx.List([nnx.Linear(5, 5, rngs=rngs) for _ in range(n)])

    state = nnx.state(Net(3, nnx.Rngs(0)))
    small = jsp.keep_blocks(state, [2, 0], prefix='')
    net = Net(2, nnx.Rngs(1))
    nnx.update(net, small)
    for layer, i in zip(net.layers, (2, 0)):
      np.testing.assert_array_equal(layer.kernel[...], state['layers'][i]['kernel'][...])

  def test_layers_that_do_nothing_change_nothing(self):
    params, x = model(), jax.random.normal(jax.random.key(1), (3, 5))
    params['blocks']['kernel'] = params['blocks']['kernel'].at[2].set(0)
    states = [x]
    for w in params['blocks']['kernel']:
      states.append(states[-1] + jnp.tanh(states[-1] @ w))
    change = jsp.layer_change(jnp.stack(states))
    self.assertEqual(int(change.argmin()), 2)
    np.testing.assert_allclose(change[2], 0, atol=1e-6)
    smaller = jsp.keep_layers(params, [0, 1, 3], at='blocks/.*')
    np.testing.assert_allclose(scanned(smaller, x), scanned(params, x), rtol=1e-6)

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, "'block/.*' matches no weight.*blocks/kernel"):
      jsp.keep_layers(model(), [0], at='block/.*')
    with self.assertRaisesRegex(ValueError, r'head: found 5 layers, expected 4'):
      jsp.keep_layers(model(), [0], at='.*')
    for keep in ([4], [], [0, 0], [-1]):
      with self.assertRaisesRegex(ValueError, 'must name layers out of'):
        jsp.keep_layers(model(), keep, at='blocks/.*')
      with self.assertRaisesRegex(ValueError, 'must name layers out of'):
        jsp.keep_blocks(named(), keep, prefix='block_')
    with self.assertRaisesRegex(ValueError, 'No dict of the tree has blocks called layer_0'):
      jsp.keep_blocks(named(), [0], prefix='layer_')
    with self.assertRaisesRegex(ValueError, 'at least one layer'):
      jsp.layer_change(jnp.ones((1, 3)))


if __name__ == '__main__':
  absltest.main()
