"""Frobenius decay against automatic differentiation of what it stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def tree():
  factors = jsp.LowRank(normal(7, 3), normal(3, 5, seed=1))
  stack = jsp.LowRank(normal(2, 4, 2, seed=2), normal(2, 2, 6, seed=3))
  return {'a': factors, 'stack': stack, 'plain': normal(4, 3, seed=4), 'bias': normal(5, seed=5),
          'count': jnp.int32(3)}


class FrobeniusTest(parameterized.TestCase):

  @parameterized.parameters(None, 0.0, 0.25)
  def test_is_the_gradient_of_the_penalty(self, others):
    params, decay = tree(), 0.37

    def penalty(p):
      product = lambda x: (jnp.matmul(x.u, x.v, precision='highest') ** 2).sum()
      rest = decay if others is None else others
      return decay / 2 * (product(p['a']) + product(p['stack'])) + rest / 2 * (p['plain']**2).sum()

    floats = {k: v for k, v in params.items() if k != 'count'}
    expected = jax.grad(penalty)(floats)
    tx = jsp.frobenius_decay(decay, others=others)
    zero = jax.tree.map(jnp.zeros_like, params)
    found, _ = jax.jit(tx.update)(zero, tx.init(params), params)
    for key, want in expected.items():
      for f, w in zip(jax.tree.leaves(found[key]), jax.tree.leaves(want)):
        np.testing.assert_allclose(f, w, rtol=1e-6, atol=1e-6 * float(jnp.abs(w).max()))
    self.assertEqual((float(jnp.abs(found['bias']).max()), int(found['count'])), (0, 0))

  def test_adds_to_updates_inside_chain_and_partition(self):
    params = {k: v for k, v in tree().items() if k != 'count'}
    one = jsp.frobenius_decay(0.1)
    both = optax.partition({'f': optax.chain(jsp.frobenius_decay(0.1), optax.scale(-1.0)),
                            'b': optax.scale(2.0)}, jsp.label({'bias': 'b', '.*': 'f'}))
    grads = jax.tree.map(jnp.ones_like, params)
    alone, _ = one.update(grads, one.init(params), params)
    found, _ = both.update(grads, both.init(params), params)
    np.testing.assert_allclose(found['a'].u, -alone['a'].u)
    np.testing.assert_allclose(found['bias'], 2.0)

  def test_normalized_factors_exclude_it(self):
    params, _ = jsp.low_rank(2, normalize=True).init({'w': normal(6, 5)})
    tx = jsp.frobenius_decay(0.1)
    with self.assertRaisesRegex(ValueError, 'w: Frobenius decay and a normalization .* exclude'):
      tx.update(params, tx.init(params), params)

  @parameterized.parameters(-1.0, float('nan'), float('inf'))
  def test_bad_decay(self, value):
    with self.assertRaisesRegex(ValueError, 'weight_decay must be at least 0'):
      jsp.frobenius_decay(value)


if __name__ == '__main__':
  absltest.main()
