"""Training on a mesh: everything compressed lies where its weight lies, and stays there."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp

SPECS = {'a': {'bias': P('model'), 'kernel': P('data', 'model')}, 'b': {'kernel': P('model', None)}}
TRANSFORMS = ('rigl(0.75, every=2, end=6)', "nm(2, 4) | fake_quantize('int8')", 'lsq(bits=4)',
              'magnitude(0.5, distribution=pooled)', 'lora(rank=4)', 'low_rank(4)')


def init():
  a, b = jax.random.split(jax.random.key(0))
  draw = lambda key, *shape: jax.random.normal(key, shape) * 0.3
  return {'a': {'kernel': draw(a, 16, 32), 'bias': jnp.zeros(32)}, 'b': {'kernel': draw(b, 32, 8)}}


def loss(p, x, y):
  hidden = jax.nn.relu(x @ p['a']['kernel'] + p['a']['bias'][None])
  return ((hidden @ p['b']['kernel'] - y) ** 2).mean()


def mesh_of(data, model):
  return jax.make_mesh((data, model), ('data', 'model'),
                       axis_types=(jax.sharding.AxisType.Auto,) * 2)


def train(text, mesh, steps=6):
  transform, tx = jsp.at('.*kernel', jsp.parse(text)), optax.adamw(1e-2)
  places = jsp.train_shardings(transform, tx, init, SPECS, mesh)
  ts = jsp.TrainState.create(transform, tx, init, shardings=places)
  step = jsp.train_step(loss, tx, transform, shardings=places)
  rng, losses = np.random.default_rng(0), []
  for _ in range(steps):
    batch = (rng.normal(size=(8, 16)).astype('f'), rng.normal(size=(8, 8)).astype('f'))
    ts, value, _ = step(ts, *jax.device_put(batch, NamedSharding(mesh, P('data'))))
    losses.append(float(value))
  return ts, places, losses


class ShardedStepTest(parameterized.TestCase):

  @parameterized.parameters(*TRANSFORMS)
  def test_state_lies_where_it_should_before_and_after_and_meshes_agree(self, text):
    ts, places, losses = train(text, mesh_of(4, 2))
    _, _, alone = train(text, mesh_of(1, 1))
    for x, place in zip(jax.tree.leaves(ts[:3]), jax.tree.leaves(places[:3])):
      self.assertTrue(x.sharding.is_equivalent_to(place, x.ndim), f'{x.sharding} {place}')
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    for mask in jsp.masks(ts.state).values():
      self.assertFalse(mask.sharding.is_fully_replicated)

  def test_moments_of_several_optimizers_lie_with_their_weights(self):
    tx = optax.partition({'k': optax.adam(0.1), 'b': optax.sgd(0.1)},
                         jsp.label({'.*kernel': 'k', '.*': 'b'}))
    places = jsp.train_shardings(jsp.identity(), tx, init, SPECS, mesh_of(4, 2))
    adam = places.opt_state.inner_states['k'].inner_state[0]
    self.assertEqual(adam.mu['a']['kernel'].spec, P('data', 'model'))
    self.assertIsInstance(adam.mu['a']['bias'], optax.MaskedNode)

  def test_a_step_size_an_output_lies_with_its_output(self):
    places = jsp.train_shardings(jsp.at('.*kernel', jsp.lsq(4, granularity='channel')),
                                 optax.adam(0.1), init, SPECS, mesh_of(4, 2))
    for tree in (places.params, places.opt_state[0].mu):
      self.assertEqual(tree['a']['kernel'].step_size.spec, P('model'))
      self.assertEqual(tree['b']['kernel'].step_size.spec, P(None))
    stack, spec = {'kernel': jnp.ones((3, 8, 6))}, {'kernel': P('layer', 'rows', 'model')}
    latents, _ = jsp.sharding_specs(jsp.lsq(4, granularity='channel'), stack, spec)
    self.assertEqual(latents['kernel'].step_size, P('layer', 'model'))
    latents, _ = jsp.sharding_specs(jsp.lsq(4), stack, spec)
    self.assertEqual(latents['kernel'].step_size, P('layer'))

  def test_a_function_and_its_weights_begin_alike(self):
    mesh, transform, tx = mesh_of(4, 2), jsp.at('.*kernel', jsp.nm(2, 4)), optax.adam(1e-2)
    places = jsp.train_shardings(transform, tx, init, SPECS, mesh)
    weights = jax.jit(init)()
    chex.assert_trees_all_equal(
        jsp.TrainState.create(transform, tx, init, shardings=places)[:3],
        jsp.TrainState.create(transform, tx, weights, shardings=places)[:3])

  @parameterized.parameters(
      ({'kernel': P('data')}, 'not divisible by 4'),
      ({'kernel': P('rows')}, "names ['rows']"),
  )
  def test_a_spec_that_cannot_be_names_its_weight(self, specs, said):
    with self.assertRaises(ValueError) as caught:
      jsp.train_shardings(jsp.nm(2, 4), optax.sgd(0.1), {'kernel': jnp.ones((6, 4))}, specs,
                          mesh_of(4, 2))
    self.assertIn('kernel: ', str(caught.exception))
    self.assertIn(said, str(caught.exception))


if __name__ == '__main__':
  absltest.main()
