"""Which layers factors make faster: against every choice compiled whole, and counts by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import jaxsparse as jsp
from jaxsparse.lowrank.cuttlefish import slow_start

_ROWS, _RATIO = 64, 0.25
_WIDTHS = (64, 128, 128, 512, 2048, 64)   # five layers; the three inside may be factored


def loss(params, x):
  for name in sorted(params):
    x = jax.nn.relu(x @ params[name])
  return x.sum()


def weights():
  return {f'w{i}': jax.ShapeDtypeStruct(shape, 'float32')
          for i, shape in enumerate(itertools.pairwise(_WIDTHS))}


def compiled_flops(factored):
  """Of a whole step's forward and backward pass with these layers factored, as XLA counts them."""
  transform = jsp.low_rank(dict.fromkeys(factored, _RATIO))
  packed = jax.eval_shape(lambda p: transform.pack(*transform.init(p)), weights())
  x = jax.ShapeDtypeStruct((_ROWS, _WIDTHS[0]), 'float32')
  step = jax.jit(jax.value_and_grad(jsp.dispatch(loss)))
  return step.lower(packed, x).compile().cost_analysis()['flops']


class ProfileTest(absltest.TestCase):

  def test_choice_agrees_with_compiling_every_choice(self):
    layers = ['w1', 'w2', 'w3']
    x = jax.ShapeDtypeStruct((_ROWS, _WIDTHS[0]), 'float32')
    found = jsp.factor_speedups(loss, weights(), x, ratio=_RATIO, by='cost', names=layers)
    whole = compiled_flops([])
    shapes = {name: weights()[name].shape for name in layers}
    dense = {name: 6 * _ROWS * r * o for name, (r, o) in shapes.items()}
    thin = {name: 6 * _ROWS * (_RATIO * min(r, o)) * (r + o) for name, (r, o) in shapes.items()}
    chosen = {kept: compiled_flops(layers[kept:]) for kept in range(len(layers))}
    chosen[len(layers)] = whole
    for kept, flops in chosen.items():
      by_hand = whole - sum(dense[n] - thin[n] for n in layers[kept:])
      self.assertAlmostEqual(flops / by_hand, 1, delta=0.02)
    for i, name in enumerate(layers):
      saved = chosen[i + 1] - chosen[i]
      np.testing.assert_allclose(found[name], dense[name] / (dense[name] - saved), rtol=0.03)
    self.assertLess(found['w1'], found['w2'])
    for least in (1.5, 2.5, 3.1, 4.0):
      # A factored layer pays where its cost, `least` times over, is below the whole one's.
      def price(kept, least=least):
        return sum(dense[n] for n in layers[:kept]) + least * sum(
            dense[n] - (chosen[i + 1] - chosen[i]) for i, n in enumerate(layers) if i >= kept)

      best = min(range(len(layers) + 1), key=price)
      self.assertEqual(len(slow_start(layers, found, least)), best)

  def test_choice_is_the_best_of_all_under_any_costs(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      n, least = int(rng.integers(1, 9)), rng.uniform(1, 3)
      times = np.sort(rng.uniform(0.5, 4, n))   # later layers gain more, as in real models
      whole = rng.uniform(0.1, 10, n)
      names = [str(i) for i in range(n)]
      total = [whole[:k].sum() + least * (whole / times)[k:].sum() for k in range(n + 1)]
      found = slow_start(names, dict(zip(names, times)), least)
      self.assertEqual(found, set(names[:int(np.argmin(total))]))

  def test_only_what_is_asked_and_only_as_far(self):
    fn = lambda p, x: (x @ p['a']) @ p['b'] + p['a'].sum()
    params = {'a': jnp.ones((64, 64)), 'b': jnp.ones((64, 64)), 'c': jnp.ones((3, 3))}
    x = jnp.ones((16, 64))
    found = jsp.factor_speedups(fn, params, x, by='cost')
    self.assertEqual(set(found), {'a', 'b'})
    self.assertEqual(found['a'], found['b'])   # one shape, measured once
    until = jsp.factor_speedups(fn, params, x, by='cost', names=['c', 'b', 'a'], until=1.5)
    self.assertEqual(until, {'c': 1.0, 'b': found['b']})
    for wrong, message in ((dict(by='guess'), "by must be 'time' or 'cost'"),
                           (dict(ratio=0), 'ratio must be a share'),
                           (dict(names=['z']), "'z' matches no weight")):
      with self.assertRaisesRegex(ValueError, message):
        jsp.factor_speedups(fn, params, x, **wrong)


if __name__ == '__main__':
  absltest.main()
