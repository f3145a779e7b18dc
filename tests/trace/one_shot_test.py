"""one_shot: statistics of each weight from the model whose earlier weights are compressed."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from sklearn import datasets

import jaxsparse as jsp
from tests.trace import models


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def mlp(p, x):
  for name in ('c', 'a', 'b'):   # the order of execution is not that of the names
    x = jax.nn.relu(x @ p[name]['kernel'])
  return x


def scanned(p, x):
  layer = lambda x, w: (jax.nn.relu(jax.nn.relu(x @ w['up']) @ w['down']), None)
  return jax.lax.scan(layer, x, p['layers'])[0] @ p['head']


def unrolled(p, x):
  for i in range(3):
    x = jax.nn.relu(jax.nn.relu(x @ p[f'{i}/up']) @ p[f'{i}/down'])
  return x @ p['head']


PARAMS = {name: {'kernel': normal(8, 8, seed=seed)} for seed, name in enumerate('abc')}
BATCHES = [normal(20, 8, seed=5), normal(20, 8, seed=6)]


class OneShotTest(parameterized.TestCase):

  @parameterized.parameters('sparsegpt(0.5)', 'wanda(0.5) | fake_quantize("int4")', 'nm(2, 4)')
  def test_equals_a_loop_by_hand(self, text):
    transform = jsp.parse(text)
    current, stats = PARAMS, {}
    for name in ('c', 'a', 'b'):
      key = f'{name}/kernel'
      stats[key] = jsp.calibrate(mlp, current, BATCHES, jsp.gram)[key]
      one = {name: PARAMS[name]}
      current = current | jsp.densify(transform.apply(*transform.init(one, stats=stats)))
    params, state = jsp.one_shot(transform, mlp, PARAMS, iter(BATCHES))
    found = jsp.densify(transform.apply(params, state))
    for name in 'abc':
      np.testing.assert_allclose(found[name]['kernel'], current[name]['kernel'], rtol=1e-4,
                                 atol=1e-5)
    dense = jsp.calibrate(mlp, PARAMS, BATCHES, jsp.gram)
    self.assertGreater(float(jnp.abs(stats['b/kernel'] - dense['b/kernel']).max()), 1.0)

  def test_not_sequential_is_calibrate_and_init(self):
    transform = jsp.sparsegpt(0.5)
    stats = jsp.calibrate(mlp, PARAMS, BATCHES, jsp.gram)
    expected = transform.init(PARAMS, stats=stats)
    found = jsp.one_shot(transform, mlp, PARAMS, BATCHES, sequential=False)
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  def test_a_scanned_stack_goes_layer_by_layer(self):
    up, down, head = normal(3, 8, 6), normal(3, 6, 8, seed=1), normal(8, 4, seed=2)
    flat = {f'{i}/{n}': w[i] for i in range(3) for n, w in (('up', up), ('down', down))}
    transform = jsp.at('.*(up|down)', jsp.sparsegpt(0.5))
    expected = transform.apply(*jsp.one_shot(transform, unrolled, flat | {'head': head}, BATCHES))
    params = {'layers': {'up': up, 'down': down}, 'head': head}
    found = transform.apply(*jsp.one_shot(transform, scanned, params, BATCHES))
    for i in range(3):
      for name in ('up', 'down'):
        np.testing.assert_allclose(found['layers'][name][i], expected[f'{i}/{name}'], rtol=1e-3,
                                   atol=1e-4)
    np.testing.assert_array_equal(found['head'], head)

  def test_a_stock_transformer(self):
    fn, params, x = models.transformer()
    transform = jsp.at('.*(query|out|Dense_0)/kernel', jsp.wanda(0.5))
    latents, state = jsp.one_shot(transform, fn, params, [x])
    self.assertTrue(jnp.isfinite(fn(transform.apply(latents, state), x)).all())
    self.assertAlmostEqual(jsp.sparsity(state), 0.5, delta=0.08)

  def test_observer_and_refusals(self):
    masks = [jsp.masks(jsp.one_shot(jsp.wanda(0.5), mlp, PARAMS, BATCHES, observer=o)[1])
             for o in (jsp.gram, jsp.input_norm)]
    jax.tree.map(np.testing.assert_array_equal, *masks)
    with self.assertRaisesRegex(ValueError, 'no batches'):
      jsp.one_shot(jsp.wanda(0.5), mlp, PARAMS, [])
    unused = PARAMS | {'d': {'kernel': normal(4, 4)}}
    with self.assertRaisesRegex(ValueError, 'd/kernel: no statistics'):
      jsp.one_shot(jsp.wanda(0.5), mlp, unused, BATCHES)

  def test_compiles_once_however_many_weights(self):
    traces = []
    def counted(p, x):
      traces.append(1)
      return mlp(p, x)
    jsp.one_shot(jsp.wanda(0.5), counted, PARAMS, BATCHES)
    # Twice for the roles and the order, once for the dense pass, once for all others.
    self.assertLessEqual(len(traces), 4)

  def test_errors_on_real_data_order_the_methods(self):
    digits = jnp.asarray(datasets.load_digits().data[:400] / 16, jnp.float32)
    params = {name: {'kernel': normal(*shape, seed=seed) / 8} for seed, (name, shape) in enumerate(
        {'c': (64, 48), 'a': (48, 48), 'b': (48, 10)}.items())}
    stats = jsp.calibrate(mlp, params, [digits], jsp.gram)
    for methods in (
        ('magnitude(0.5)', 'wanda(0.5)', 'sparsegpt(0.5, block=16)'),
        ('nm(2, 4)', 'wanda(pattern=n_m(2, 4))', 'sparsegpt(pattern=n_m(2, 4), block=16)')):
      errors = []
      for text in methods:
        transform = jsp.parse(text)
        out = transform.apply(*transform.init(params, stats=stats))
        gap = {k: np.asarray(out[k]['kernel'] - params[k]['kernel']) for k in 'abc'}
        errors.append(sum(np.trace(gap[k].T @ np.asarray(stats[f'{k}/kernel']) @ gap[k])
                          for k in 'abc'))
      self.assertEqual(errors, sorted(errors, reverse=True), methods)
      self.assertLess(errors[2], 0.6 * errors[0])


if __name__ == '__main__':
  absltest.main()
