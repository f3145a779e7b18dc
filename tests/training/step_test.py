"""The drivers: one backward pass, two programs, the optax wrapper, restage."""

import chex
import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

OPTIMIZERS = {
    'adamw': lambda: optax.adamw(1e-2, weight_decay=1e-2),
    'momentum': lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1e-2, momentum=0.9)),
    'lion': lambda: optax.lion(1e-3),
    'adafactor': lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    'injected': lambda: optax.inject_hyperparams(optax.adam)(learning_rate=1e-2),
    'every_two': lambda: optax.MultiSteps(optax.adam(1e-2), 2),
    'masked': lambda: optax.partition(
        {'k': optax.adam(1e-2), 'b': optax.sgd(1e-2)}, jsp.label({'.*bias': 'b', '.*': 'k'})),
}


def problem(width=16, batch=8):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.3, 'float32')
  params = {'a': {'kernel': draw(width, width), 'bias': jnp.zeros(width)},
            'b': {'kernel': draw(width, width)}}
  x, y = draw(batch, width), draw(batch, width)

  def loss(p, x, y):
    hidden = jax.nn.relu(x @ p['a']['kernel'] + p['a']['bias'][None])
    return ((hidden @ p['b']['kernel'] - y) ** 2).mean()

  return params, loss, x, y


class WrapTest(parameterized.TestCase):

  def test_agrees_with_the_loop_over_100_steps_of_adamw_with_rigl(self):
    params, loss, x, y = problem()
    transform = jsp.at('(.*/)?kernel', jsp.rigl(0.8, every=7, end=80))
    wrapped, inner = jsp.wrap(OPTIMIZERS['adamw'](), transform), OPTIMIZERS['adamw']()
    explicit = jsp.TrainState.create(transform, inner, params)
    step = jsp.train_step(loss, inner, transform)
    p, opt_state = params, wrapped.init(params)

    @jax.jit
    def wrapped_step(p, opt_state):
      grads = jax.grad(loss)(transform.apply(p, opt_state.transform), x, y)
      updates, opt_state = wrapped.update(grads, opt_state, p)
      return optax.apply_updates(p, updates), opt_state

    for _ in range(100):
      p, opt_state = wrapped_step(p, opt_state)
      explicit, _, _ = step(explicit, x, y)
    chex.assert_trees_all_close(p, explicit.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(jsp.masks(opt_state.transform), jsp.masks(explicit.state))
    self.assertEqual(wrapped_step._cache_size(), 1)
    self.assertEqual(step.compiled._cache_size(), 2)

  def test_refuses_what_restructures(self):
    params, *_ = problem()
    with self.assertRaisesRegex(ValueError, r'low_rank\(4\).* restructures'):
      jsp.wrap(optax.sgd(0.1), jsp.low_rank(4)).init(params)

  def test_passes_extra_arguments_on(self):
    seen = []
    def update(grads, state, params=None, *, value=None, **_):
      seen.append(value)
      return grads, state
    tx = optax.GradientTransformationExtraArgs(lambda p: (), update)
    params = {'kernel': jnp.ones((4, 4))}
    wrapped = jsp.wrap(tx, jsp.nm(2, 4))
    wrapped.update(params, wrapped.init(params), params, value=3.0)
    self.assertEqual(seen, [3.0])

  @parameterized.parameters(*OPTIMIZERS)
  def test_grown_weights_and_their_moments_start_at_zero(self, name):
    params, loss, x, y = problem()
    tx = OPTIMIZERS[name]()
    transform = jsp.at('(.*/)?kernel', jsp.rigl(0.5, every=3, end=30))
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(loss, tx, transform)
    for _ in range(3):
      ts, _, _ = step(ts, x, y)
    before = np.array(jsp.masks(ts.state)['a/kernel'])   # a copy: the step donates its state
    ts, _, _ = step(ts, x, y)   # count 3: masks change
    grown = jsp.masks(ts.state)['a/kernel'] & ~before
    self.assertGreater(int(grown.sum()), 0)
    self.assertEqual(float(jnp.abs(jnp.where(grown, ts.params['a']['kernel'], 0)).max()), 0.0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(ts.opt_state)[0]:
      if "'a'" in jax.tree_util.keystr(path) and leaf.shape == grown.shape:
        self.assertEqual(float(jnp.abs(jnp.where(grown, leaf, 0)).max()), 0.0, path)


class TrainStepTest(parameterized.TestCase):

  @parameterized.product(batch=[4, 64], text=["rigl(0.9) | fake_quantize('int8')",
                                              "rigl(0.5) | fake_quantize('int4', "
                                              "granularity='group', group=8)"])
  def test_an_ordinary_step_costs_20_flops_a_weight_at_most(self, batch, text):
    params, loss, x, y = problem(64, batch)
    tx = optax.adamw(1e-3)

    def cost(transform):
      ts = jsp.TrainState.create(transform, tx, params)
      step = jsp.train_step(loss, tx, transform)
      program = step.compiled.lower(False, ts.params, ts.state, ts.opt_state, x, y).compile()
      text = program.as_text()
      for word in (' sort(', ' conditional(', ' while('):
        self.assertNotIn(word, text)
      for _ in range(3):
        ts, _, _ = step(ts, x, y)
      self.assertEqual(step.compiled._cache_size(), 1)
      return program.cost_analysis()['flops']

    transform = jsp.at('(.*/)?kernel', jsp.parse(text))
    extra = cost(transform) - cost(jsp.identity())
    self.assertLessEqual(extra / (2 * 64 * 64), 20)

  def test_two_programs_agree_with_one_under_scan(self):
    params, loss, x, y = problem()
    tx = optax.adam(1e-2)
    transform = jsp.at('(.*/)?kernel', jsp.magnitude(jsp.cubic(0.8, start=2, end=9, every=3)))
    step = jsp.train_step(loss, tx, transform)
    start = jsp.TrainState.create(transform, tx, params)
    ts = jsp.TrainState.create(transform, tx, params)
    for _ in range(12):
      ts, _, _ = step(ts, x, y)
    carry = start._replace(count=jnp.asarray(0))
    scanned, _ = jax.lax.scan(lambda c, _: (step(c, x, y)[0], None), carry, length=12)
    chex.assert_trees_all_close(scanned.params, ts.params, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(scanned.state, ts.state)
    self.assertAlmostEqual(jsp.sparsity(ts.state), 0.8, places=2)

  def test_the_dense_weights_survive_donation(self):
    params, loss, x, y = problem()
    transform, tx = jsp.identity(), optax.sgd(0.1)
    ts = jsp.TrainState.create(transform, tx, params)
    jsp.train_step(loss, tx, transform)(ts, x, y)
    self.assertTrue(bool(jnp.isfinite(params['a']['kernel']).all()))

  def test_rigl_in_a_chain_grows_by_dense_gradients(self):
    params = {'kernel': jnp.ones((8, 8))}
    transform = jsp.parse("rigl(0.75, every=1, end=10) | fake_quantize('int8')")
    latents, state = transform.init(params)
    slope = jnp.arange(1.0, 65.0).reshape(8, 8)
    _, grads, effective = jsp.value_and_grad(
        lambda p: (p['kernel'] * slope).sum(), transform)(latents, state)
    mask = jsp.masks(state)['kernel']
    np.testing.assert_array_equal(effective['kernel'], slope)
    np.testing.assert_array_equal(grads['kernel'], jnp.where(mask, slope, 0))

  def test_a_module_that_can_be_called_is_weights(self):
    model = equinox.nn.MLP(16, 4, 16, 1, key=jax.random.key(0))
    params, rest = equinox.partition(model, equinox.is_inexact_array)
    transform, tx = jsp.at('.*weight', jsp.nm(2, 4)), optax.sgd(0.1)
    apply = lambda p, x: jax.vmap(equinox.combine(p, rest))(x)
    loss = lambda p, x: jnp.square(apply(p, x)).mean()
    x = problem()[2]
    ts = jsp.TrainState.create(transform, tx, params)
    ts, _, _ = jsp.train_step(loss, tx, transform)(ts, x)
    effective, packed = transform.apply(ts.params, ts.state), transform.pack(ts.params, ts.state)
    # Of the inputs of each output, `[out, in]`.
    kept = np.asarray(effective.layers[0].weight != 0).reshape(16, 4, 4).sum(-1)
    np.testing.assert_array_equal(kept, 2)
    with self.assertNoLogs(level='WARNING'):   # stored weights are multiplied by as they are
      found = jsp.dispatch(apply)(packed, x)
    np.testing.assert_allclose(found, apply(effective, x), rtol=1e-5, atol=1e-6)
    mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), params)
    places = jsp.train_shardings(transform, tx, params, specs, mesh)
    placed = jsp.TrainState.create(transform, tx, params, shardings=places)
    self.assertEqual(int(jsp.masks(placed.state)['layers/1/weight'].sum()), 4 * 16 // 2)
    with self.assertRaisesRegex(TypeError, 'activation: found .*, expected an array'):
      jsp.TrainState.create(transform, tx, model)

  def test_integer_parameters_are_carried(self):
    params = {'kernel': jnp.ones((4, 4)), 'table': jnp.arange(6).reshape(2, 3)}
    transform = jsp.nm(2, 4)
    latents, state = transform.init(params)
    _, grads, _ = jsp.value_and_grad(lambda p: p['kernel'].sum(), transform)(latents, state)
    self.assertEqual(int(grads['table'].sum()), 0)

  def test_value_and_grad_hands_formats_to_a_dispatched_loss(self):
    params, loss, x, y = problem()
    transform = jsp.at('(.*/)?kernel', jsp.low_rank(4))
    latents, state = transform.init(params)
    dense = jsp.value_and_grad(loss, transform)(latents, state, x, y)
    factored = jsp.value_and_grad(jsp.dispatch(loss), transform, dense=False)(latents, state, x, y)
    chex.assert_trees_all_close(factored[:2], dense[:2], rtol=1e-4, atol=1e-6)

  def test_restage_keeps_weights_and_matching_moments(self):
    params, loss, x, y = problem()
    tx, old = optax.adam(1e-2), jsp.identity()
    ts = jsp.TrainState.create(old, tx, params)
    step = jsp.train_step(loss, tx, old)
    for _ in range(5):
      ts, _, _ = step(ts, x, y)
    new = jsp.at('a/kernel', jsp.low_rank(16))
    latents, state, opt_state = jsp.restage(old, new, ts.params, ts.state, ts.opt_state, tx)
    chex.assert_trees_all_close(jsp.densify(new.apply(latents, state)), ts.params, atol=1e-5)
    self.assertEqual(int(opt_state[0].count), 5)
    chex.assert_trees_all_equal(opt_state[0].mu['b'], ts.opt_state[0].mu['b'])
    self.assertEqual(opt_state[0].mu['a']['kernel'].u.shape, (16, 16))


if __name__ == '__main__':
  absltest.main()
