"""What is held and not trained: every rank, by the optimizer unseen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jaxsparse as jsp


def tree():
  rng = np.random.default_rng(0)
  return {'dense': {'kernel': jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
                    'bias': jnp.asarray(rng.normal(size=6), jnp.bfloat16)},
          'gain': jnp.float32(3.0), 'steps': jnp.int32(4)}


class FrozenTest(absltest.TestCase):

  def test_nothing_is_left_to_train_and_nothing_changes(self):
    transform, params = jsp.parse('frozen()'), tree()
    latents, state = transform.init(params)
    self.assertEqual(jax.tree.leaves(latents), [params['steps']])
    chex.assert_trees_all_equal(transform.apply(latents, state), params)
    chex.assert_trees_all_equal(transform.pack(latents, state), params)
    self.assertEqual(int(transform.update(latents, state, grads=params).count), 1)
    self.assertEqual(jsp.nbytes(optax.adam(1e-3).init(latents)), 4 + 2 * 4)   # of `steps` alone
    with self.assertRaisesRegex(ValueError, 'bias: the params do not match the state'):
      transform.apply(params, state)

  def test_the_rest_of_a_model_under_lora(self):
    transform = jsp.rules([('dense/kernel', jsp.lora(2)), ('.*', jsp.frozen())])
    params = tree()
    del params['steps']
    tx = optax.adam(1e-2)
    ts = jsp.TrainState.create(transform, tx, params)
    self.assertEqual(sorted(x.shape for x in jax.tree.leaves(ts.params)), [(2, 6), (8, 2)])
    loss = lambda p, x: jnp.square(
        x @ p['dense']['kernel'] + jnp.broadcast_to(p['dense']['bias'], (4, 6)) - p['gain']).sum()
    step, x = jsp.train_step(loss, tx, transform), jnp.ones((4, 8))
    ts, first, _ = step(ts, x)
    for _ in range(5):
      ts, last, _ = step(ts, x)
    self.assertLess(float(last), float(first))
    held = jsp.unmerge(transform, ts.params, ts.state)
    chex.assert_trees_all_equal(held, params)
    self.assertIn('frozen()', str(jsp.plan(transform, params)))
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), params)
    latents, state = jsp.sharding_specs(transform, params, specs)
    self.assertLen(jax.tree.leaves(state, is_leaf=lambda s: isinstance(
        s, jax.sharding.PartitionSpec)), 2 + 1 + 2)


if __name__ == '__main__':
  absltest.main()
