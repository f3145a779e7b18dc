"""Adapters after training: merged, taken off, mixed, chosen by example; against float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

_LAYERS, _WIDTH, _HEADS = 3, 8, 2


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def model(params, x):
  """A scanned stack, then an attention-like pair of rank-3 kernels, over `[example, token, 8]`."""
  x, _ = jax.lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), x, params['stack']['kernel'])
  heads = jnp.einsum('btd,dhk->bthk', x, params['query']['kernel'])
  return jnp.einsum('bthk,hkd->btd', heads, params['out']['kernel'])


def weights():
  heads = (_HEADS, _WIDTH // _HEADS)
  return {'stack': {'kernel': jnp.asarray(normal(_LAYERS, _WIDTH, _WIDTH))},
          'query': {'kernel': jnp.asarray(normal(_WIDTH, *heads, seed=1))},
          'out': {'kernel': jnp.asarray(normal(*heads, _WIDTH, seed=2))}}


def trained(transform, params, seed):
  """Latents moved to where training might have taken them."""
  latents, state = transform.init(params)
  rng = np.random.default_rng(seed)
  move = lambda x: x + 0.3 * jnp.asarray(rng.normal(size=x.shape), x.dtype)
  return jax.tree.map(move, latents), state


_BASES = {'lora(2)': 'identity()',
          'dora(2, base=nf4(group=4, double_quantize=True))': 'nf4(group=4, double_quantize=True)',
          'lora(3, base=nm(2, 4), scaling=rslora)': 'nm(2, 4)'}
_KINDS = tuple(_BASES)


class AdaptersTest(parameterized.TestCase):

  @parameterized.parameters(*_KINDS)
  def test_merged_and_unmerged(self, text):
    transform, params = jsp.parse(text), weights()
    latents, state = trained(transform, params, seed=3)
    x = jnp.asarray(normal(4, 5, _WIDTH, seed=4))
    merged = jsp.merge(transform, latents, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(merged, params)
    apart = jax.jit(jsp.dispatch(model))(transform.apply(latents, state), x)
    together = jax.jit(model)(merged, x)
    scale = float(jnp.abs(together).max())
    np.testing.assert_allclose(apart / scale, together / scale, atol=1e-5)
    base = jsp.parse(_BASES[text])
    expected = jsp.densify(base.apply(*base.init(params)))
    chex.assert_trees_all_equal(jsp.unmerge(transform, latents, state), expected)
    packed = transform.pack(latents, state)
    np.testing.assert_allclose(
        jax.jit(jsp.dispatch(model))(packed, x) / scale, together / scale, atol=1e-5)

  @parameterized.parameters(*_KINDS)
  def test_mixed(self, text):
    transform, params, shares = jsp.parse(text), weights(), [0.5, -0.25, 2.0]
    adapters = [trained(transform, params, seed)[0] for seed in (3, 4, 5)]
    state = transform.init(params)[1]
    mixed = jsp.densify(jsp.mix_adapters(transform, adapters, state, shares))
    base = jsp.unmerge(transform, adapters[0], state)
    alone = [jsp.merge(transform, adapter, state) for adapter in adapters]
    wide = lambda x: np.asarray(x, np.float64)
    expected = jax.tree.map(lambda b, *ws: wide(b) + sum(
        s * (wide(w) - wide(b)) for s, w in zip(shares, ws)), base, *alone)
    chex.assert_trees_all_close(mixed, jax.tree.map(np.float32, expected), atol=1e-4)

  @parameterized.parameters(*_KINDS)
  @pytest.mark.sampled(2)
  def test_chosen_by_example_as_each_alone(self, text):
    transform, params = jsp.parse(text), weights()
    adapters = [trained(transform, params, seed)[0] for seed in (3, 4)]
    state = transform.init(params)[1]
    x = jnp.asarray(normal(5, 6, _WIDTH, seed=6))
    index = jnp.array([1, 0, -1, 1, 0])
    run = jax.jit(lambda index, x: jsp.dispatch(model)(
        jsp.choose_adapters(transform, adapters, state, index), x))
    found = run(index, x)
    trees = [jsp.merge(transform, a, state) for a in adapters] + [
        jsp.unmerge(transform, adapters[0], state)]
    alone = jax.jit(model)
    for example, chosen in enumerate(index.tolist()):
      expected = alone(trees[chosen], x[example:example + 1])[0]
      scale = float(jnp.abs(expected).max())
      np.testing.assert_allclose(found[example] / scale, expected / scale, atol=1e-5)
    run(index[::-1], x)
    self.assertEqual(run._cache_size(), 1)   # another choice is no other program
    np.testing.assert_allclose(run(index * 0 + 7, x), run(index * 0 - 1, x), atol=1e-6)

  def test_a_tree_of_choices_counts_and_refuses_what_it_cannot(self):
    transform, params = jsp.lora(2), {'w': jnp.asarray(normal(8, 4))}
    latents, state = trained(transform, params, seed=3)
    tree = jsp.choose_adapters(transform, [latents] * 3, state, jnp.array([0, 2]))
    self.assertEqual(jsp.nbytes(tree), 4 * (8 * 4 + 3 * (8 * 2 + 2 * 4) + 2))
    fn = lambda params, x: x @ params['w']
    flops = jsp.flops(fn, tree, jax.ShapeDtypeStruct((2, 8), jnp.float32))
    self.assertEqual(flops.executed, 2 * 2 * (8 * 4 + 2 * (8 + 4)))
    with self.assertRaisesRegex(ValueError, '3 rows of activations do not divide among 2'):
      jsp.dispatch(fn)(tree, jnp.ones((3, 8)))
    with self.assertRaisesRegex(ValueError, 'Each of 2 examples has a weight'):
      jsp.densify(tree)
    for index, message in ((jnp.array([0, 3]), 'index names adapter 3; there are 3'),
                           (jnp.array([-2]), 'adapter -2'), (jnp.array([0.0]), 'one integer'),
                           (jnp.array([[0]]), 'one integer')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.choose_adapters(transform, [latents] * 3, state, index)
    with self.assertRaisesRegex(ValueError, 'at least one adapter'):
      jsp.choose_adapters(transform, [], state, jnp.array([0]))
    with self.assertRaisesRegex(ValueError, '2 weights and 1 adapters'):
      jsp.mix_adapters(transform, [latents], state, [1, 2])

  def test_without_adapters(self):
    for text in ('nm(2, 4)', "lora(2) | fake_quantize('int8')"):
      transform = jsp.parse(text)
      with self.assertRaisesRegex(ValueError, 'No weight shows an adapter'):
        jsp.unmerge(transform, *transform.init(weights()))


if __name__ == '__main__':
  absltest.main()
