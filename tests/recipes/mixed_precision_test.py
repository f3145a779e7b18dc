"""The knapsack against all allocations, and costs against what they say they are."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

import jaxsparse as jsp

_SCHEMES = ("quantize('int8')", "quantize('int4')", 'identity()', "quantize('int3')")
_choice = st.tuples(st.sampled_from(_SCHEMES), st.integers(1, 9), st.integers(-2, 12))
_tables = st.lists(st.lists(_choice, min_size=1, max_size=4), min_size=1, max_size=5)


def costs_of(table):
  return {f'w{n}': [jsp.Choice(*choice) for choice in choices] for n, choices in enumerate(table)}


class KnapsackTest(absltest.TestCase):

  @hypothesis.settings(max_examples=60)
  @hypothesis.given(table=_tables, budget=st.integers(1, 50), most=st.integers(-5, 40))
  def test_no_allocation_is_better(self, table, budget, most):
    costs = costs_of(table)
    every = [(sum(c[1] for c in pick), sum(c[2] for c in pick))
             for pick in itertools.product(*table)]
    front = [(a.nbytes, a.rise) for a in jsp.pareto_front(costs)]
    self.assertEqual(front, sorted({p for p in every if not any(
        q != p and q[0] <= p[0] and q[1] <= p[1] for q in every)}))
    for limit, kept, best in (
        ({'nbytes': budget}, [p for p in every if p[0] <= budget], lambda p: (p[1], p[0])),
        ({'rise': most}, [p for p in every if p[1] <= most], lambda p: (p[0], p[1]))):
      if not kept:
        with self.assertRaisesRegex(ValueError, 'no allocation keeps to'):
          jsp.allocate(costs, **limit)
        continue
      found = jsp.allocate(costs, **limit)
      self.assertEqual((found.nbytes, found.rise), min(kept, key=best))
      rows = [next(c for c in costs[name] if c.scheme == text) for name, text in
              found.schemes.items()]
      self.assertLen(rows, len(table))
      self.assertEqual(jsp.spell(jsp.parse(found.recipe)), found.recipe)

  def test_operations_are_a_budget_too(self):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    params = {'a': target, 'b': 3 * target}
    loss = lambda p, _: jnp.square(p['a'] - target).sum() + jnp.square(p['b'] - 3 * target).sum()
    costs = jsp.scheme_costs(loss, params, [0], ('nm(2, 4)', "quantize('int4')", 'identity()'),
                             rows={'a': 5})
    self.assertEqual([c.flops for c in costs['a']], [160, 320, 320])
    self.assertEqual([c.flops for c in costs['b']], [32, 64, 64])
    for budget in (192, 224, 352, 384):
      every = [(sum(c.flops for c in pick), sum(c.rise for c in pick))
               for pick in itertools.product(*costs.values())]
      found = jsp.allocate(costs, flops=budget)
      self.assertLessEqual(found.flops, budget)
      self.assertAlmostEqual(found.rise, min(r for f, r in every if f <= budget), places=5)
    with self.assertRaisesRegex(ValueError, 'the least is 192 operations'):
      jsp.allocate(costs, flops=191)

  def test_many_weights_are_quick(self):
    rng = np.random.default_rng(0)
    costs = {f'layer_{n}/kernel': [jsp.Choice(text, size * 2 ** (n % 3), float(rng.random()) / size)
                                   for text, size in zip(_SCHEMES, (800, 400, 3200, 300))]
             for n in range(100)}
    front = jsp.pareto_front(costs)
    self.assertGreater(len(front), 500)
    self.assertLessEqual(jsp.allocate(costs, nbytes=100_000).nbytes, 100_000)

  def test_bad(self):
    costs = costs_of([[("quantize('int8')", 4, 1)]])
    for run, message in ((lambda: jsp.allocate(costs), 'takes one limit'),
                         (lambda: jsp.allocate(costs, nbytes=9, rise=1), 'takes one limit'),
                         (lambda: jsp.allocate(costs, nbytes=3), 'the least is 4 bytes'),
                         (lambda: jsp.allocate({'w': []}, nbytes=3), 'needs a choice; w'),
                         (lambda: jsp.pareto_front({}), 'there is no weight')):
      with self.assertRaisesRegex(ValueError, message):
        run()


class CostsTest(absltest.TestCase):

  def test_measured_alone_and_used_together(self):
    rng = np.random.default_rng(0)
    params = {'a': {'kernel': jnp.asarray(rng.normal(size=(16, 32)), jnp.float32)},
              'b': {'kernel': jnp.asarray(rng.normal(size=(32, 8)), jnp.float32)},
              'scale': jnp.ones(8)}
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    fn = lambda p, x: jnp.tanh(x @ p['a']['kernel']) @ p['b']['kernel']
    loss = lambda p, x: jnp.square(fn(p, x) - fn(params, x)).mean()
    stats = jsp.calibrate(fn, params, [x], jsp.gram)
    schemes = ("quantize('int8')", "gptq('int4', group=8)", 'identity()')
    costs = jsp.scheme_costs(loss, params, [x, x], schemes, weights='./kernel', stats=stats)
    self.assertEqual({n: [c.scheme for c in cs] for n, cs in costs.items()},
                     {'a/kernel': [*schemes], 'b/kernel': [*schemes]})
    self.assertEqual([c.nbytes for c in costs['b/kernel']], [256 + 32, 128 + 4 * 8 * 4, 1024])
    one = jsp.at('a/kernel', jsp.quantize('int8'))
    alone = one.apply(*one.init(params))
    np.testing.assert_allclose(costs['a/kernel'][0].rise, loss(alone, x), rtol=1e-4)
    self.assertEqual(costs['a/kernel'][2].rise, 0.0)
    found = jsp.allocate(costs, nbytes=1024)
    transform = jsp.parse(found.recipe)
    packed = transform.pack(*transform.init(params, stats=stats))
    self.assertEqual(jsp.nbytes(packed) - 8 * 4, found.nbytes)
    for kwargs, message in (({'weights': 'c'}, "0 that match 'c'"), ({'schemes': ()}, 'schemes')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.scheme_costs(loss, params, [x], **({'schemes': schemes} | kwargs))
    with self.assertRaisesRegex(ValueError, 'the float model: the loss is nan'):
      jsp.scheme_costs(lambda p, x: jnp.nan, params, [x], schemes, stats=stats)


if __name__ == '__main__':
  absltest.main()
