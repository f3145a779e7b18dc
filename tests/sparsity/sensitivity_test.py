"""Tables of sensitivity, and what is shared out by them."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import axes


def layout(*shape):
  return axes.Layout(shape, 'float32', axes.default_axes(len(shape)))


class SensitivityTest(parameterized.TestCase):

  def test_measures_each_weight_alone(self):
    rng = np.random.default_rng(0)
    w = {k: rng.normal(size=(4, 4)).astype('f') for k in 'ab'}
    params = {'a': {'kernel': jnp.asarray(w['a']), 'bias': jnp.ones(4)},
              'b': {'kernel': jnp.asarray(w['b'])}}
    loss = lambda p, x: ((x @ p['a']['kernel'] @ p['b']['kernel']) ** 2).mean()
    batches = [rng.normal(size=(3, 4)).astype('f') for _ in range(2)]
    table = jsp.sensitivities(loss, params, iter(batches), sparsities=(0.75, 0.25))
    self.assertEqual(list(table), ['a/kernel', 'b/kernel'])
    mean = lambda a, b: np.mean([((x @ a @ b) ** 2).mean() for x in batches])
    for name in 'ab':
      for sparsity, rise in table[f'{name}/kernel']:
        cut = w[name].copy()
        cut.ravel()[np.argsort(np.abs(cut).ravel(), kind='stable')[:round(16 * sparsity)]] = 0
        self.assertAlmostEqual(rise, mean(**(w | {name: cut})) - mean(**w), places=4)
    transform = jsp.magnitude(0.5, distribution=jsp.by_sensitivity(table))
    self.assertEqual(jsp.spell(jsp.parse(jsp.spell(transform))), jsp.spell(transform))

  @hypothesis.settings(max_examples=30)
  @hypothesis.given(count=st.integers(1, 4), sparsity=st.floats(0.0, 0.9), seed=st.integers(0, 99))
  def test_total_is_exact_and_no_exchange_is_better(self, count, sparsity, seed):
    rng = np.random.default_rng(seed)
    shapes = {f'w{i}': tuple(rng.integers(1, 9, 2)) for i in range(count)}
    layouts = {k: layout(*map(int, s)) for k, s in shapes.items()}
    # Convex curves over quarters, up to 0.95.
    table = {k: [(0.25 * (j + 1) if j < 3 else 0.95, float(y))
                 for j, y in enumerate(np.cumsum(np.sort(rng.exponential(size=4))))]
             for k in shapes}
    size = {k: int(np.prod(s)) for k, s in shapes.items()}
    hypothesis.assume(round(sparsity * sum(size.values())) <= sum(
        int(0.95 * n) for n in size.values()))
    found = jsp.by_sensitivity(table)(layouts, sparsity)
    removed = {k: round(found[k] * size[k]) for k in shapes}
    self.assertEqual(sum(removed.values()), round(sparsity * sum(size.values())))
    def damage(k, n):
      xs, ys = zip((0.0, 0.0), *table[k])
      return np.interp(n / size[k], xs, ys) if n <= 0.95 * size[k] + 1e-6 else np.inf
    slack = 2 * max(y[-1][1] for y in table.values()) / min(size.values())
    for a, b in itertools.permutations(shapes, 2):
      if removed[a]:
        here = damage(a, removed[a]) + damage(b, removed[b])
        there = damage(a, removed[a] - 1) + damage(b, removed[b] + 1)
        self.assertLessEqual(here, there + slack)   # corners of a curve lie between entries

  def test_a_dip_does_not_hide_what_comes_after_it(self):
    # The hull of b is the straight line to (0.75, 0.1): cheaper everywhere than a.
    shares = jsp.by_sensitivity({'a': [(0.5, 0.2), (0.75, 1.0)], 'b': [(0.25, 3.0), (0.75, 0.1)]})
    found = shares({'a': layout(4, 4), 'b': layout(4, 4)}, 0.5)
    self.assertEqual(found, {'a': 0.25, 'b': 0.75})

  def test_stacks_lose_as_much_in_each_matrix(self):
    shares = jsp.by_sensitivity({'a': [(0.9, 1.0)], 'b': [(0.9, 5.0)]})
    params = {'a': jnp.asarray(np.random.default_rng(0).normal(size=(3, 5, 4)), 'bfloat16'),
              'b': jnp.ones((5, 5))}
    _, state = jsp.magnitude(0.6, distribution=shares).init(params)
    zeros = {k: int((~m).sum()) for k, m in jsp.masks(state).items()}
    self.assertEqual(zeros['a'] % 3, 0)
    self.assertBetween(round(0.6 * 85) - sum(zeros.values()), 0, 2)

  @parameterized.named_parameters(
      dict(testcase_name='early', make=lambda: jsp.by_sensitivity({'a': [(0.5, 1.0)]})(
          {'a': layout(4, 4)}, 0.75), message='ends before a sparsity of 0.75: 4 weights more'),
      dict(testcase_name='missing', make=lambda: jsp.by_sensitivity({'a': [(0.5, 1.0)]})(
          {'b': layout(4, 4)}, 0.25), message='b: not in the table .* has a'),
      dict(testcase_name='nan', make=lambda: jsp.by_sensitivity({'a': [(0.5, float('nan'))]}),
           message='a: expected points'),
      dict(testcase_name='batches', make=lambda: jsp.sensitivities(
          lambda p, x: 0.0, {'a': jnp.ones((2, 2))}, []), message='0 batches and 1 weights'),
      dict(testcase_name='loss', make=lambda: jsp.sensitivities(
          lambda p, x: x * p['a'].sum(), {'a': jnp.ones((2, 2))}, [jnp.nan]),
           message='dense: the loss is nan'))
  def test_bad(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
