"""Count-sketch Adam against a slow one, beside Adam, and inside what optax offers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest

import jaxsparse as jsp
from jaxsparse.optimizers.sketched_adam import _hashes


def sparse_gradient(rng, rows=40, columns=3, moving=6):
  g = np.zeros((rows, columns), np.float32)
  g[rng.permutation(rows)[:moving]] = rng.normal(size=(moving, columns))
  return g


class SketchedAdamTest(absltest.TestCase):

  def test_like_loops_over_rows(self):
    rng, rows, depth = np.random.default_rng(0), 40, 3
    tx = jsp.sketched_adam(0.1, ratio=0.6, depth=depth, min_rows=10, seed=4)
    state = tx.init({'table': jnp.zeros((rows, 3))})
    width = 8
    places, signs = (np.asarray(a) for a in _hashes(rows, width, depth, 4))
    self.assertEqual(set(np.unique(signs)), {-1, 1})
    self.assertEqual(len(np.unique(places)), width)
    mu, nu = np.zeros((2, depth, width, 3))
    update = jax.jit(tx.update)
    for count in range(1, 6):
      g = sparse_gradient(rng)
      mu, nu = mu * 0.9, nu * 0.999
      for j, i in np.ndindex(depth, rows):
        mu[j, places[j, i]] += 0.1 * signs[j, i] * g[i]
        nu[j, places[j, i]] += 0.001 * np.float64(g[i]) ** 2
      expected = np.zeros((rows, 3))
      for i in range(rows):
        first = np.median([signs[j, i] * mu[j, places[j, i]] for j in range(depth)], 0)
        second = np.min([nu[j, places[j, i]] for j in range(depth)], 0)
        first, second = first / (1 - 0.9**count), second / (1 - 0.999**count)
        expected[i] = -0.1 * first / (np.sqrt(second) + 1e-8)
      found, state = update({'table': jnp.asarray(g)}, state)
      np.testing.assert_allclose(found['table'], expected, rtol=2e-4, atol=2e-6)
    self.assertEqual(update._cache_size(), 1)

  def test_state_and_quality(self):
    rng = np.random.default_rng(1)
    params = {'embedding': jnp.zeros((2000, 4)), 'bias': jnp.zeros(4)}
    target = jnp.asarray(rng.normal(size=(2000, 4)), jnp.float32)
    seen = jnp.asarray(rng.permutation(2000)[:60])   # the words of a text
    loss = lambda p: jnp.square(p['embedding'][seen] + p['bias'][None] - target[seen]).mean()

    def trained(tx):
      def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None
      run = jax.jit(lambda p, s: jax.lax.scan(step, (p, s), length=300)[0])
      return run(params, tx.init(params))

    adam = optax.adam(0.05)
    sketched = jsp.sketched_adam(0.05, ratio=0.3)
    size = lambda tx: jsp.nbytes(tx.init(params))
    self.assertLess(size(sketched), 0.31 * size(adam))
    ends = [float(loss(trained(tx)[0])) for tx in (adam, sketched)]
    self.assertLess(ends[0], 1e-4)
    self.assertLess(ends[1], 0.02)   # from about 1
    # Leaves below min_rows are Adam's own, to rounding.
    few = [jsp.sketched_adam(0.05, min_rows=3000), adam]
    a, b = (trained(tx)[0]['embedding'] for tx in few)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

  def test_inside_optax(self):
    params = {'a': {'table': jnp.ones((30, 2))}, 'b': jnp.ones(3)}
    grads = jax.tree.map(jnp.ones_like, params)
    make = lambda rate: jsp.sketched_adam(rate, min_rows=10, only='a/.*')
    for tx in (optax.chain(optax.clip(1.0), make(0.1)),
               optax.masked(make(0.1), {'a': {'table': True}, 'b': False}),
               optax.MultiSteps(make(0.1), 2), optax.inject_hyperparams(make)(rate=0.1),
               optax.inject_hyperparams(jsp.sketched_adam, ('ratio', 'depth', 'min_rows', 'seed'))(
                   learning_rate=0.1, min_rows=10),
               jsp.quantized_state(make(0.1), block=4)):
      state = tx.init(params)
      for _ in range(2):
        updates, state = jax.jit(tx.update)(grads, state, params)
      for x in jax.tree.leaves(updates):
        self.assertTrue(np.isfinite(x).all())
    doubled = optax.tree_map_params(make(0.1), lambda x: x + 1, make(0.1).init(params))
    self.assertEqual(float(doubled[0].mu['b'][0]), 1)

  def test_bad(self):
    for kwargs, message in (({'ratio': 0}, r'in \(0, 1\], got 0'), ({'depth': 0}, 'depth must be'),
                            ({'min_rows': True}, 'min_rows must be'), ({'seed': 1.5}, 'got 1.5')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.sketched_adam(0.1, **kwargs)
    with self.assertRaisesRegex(ValueError, "'x' matches no leaf of 1024 rows"):
      jsp.sketched_adam(0.1, only='x').init({'w': jnp.ones((2000, 2))})
    zeros = {'w': jnp.zeros((2000, 2))}
    tx = jsp.sketched_adam(0.1)
    np.testing.assert_array_equal(tx.update(zeros, tx.init(zeros))[0]['w'], zeros['w'])


if __name__ == '__main__':
  absltest.main()
