"""FLOPs budgets against a greedy knapsack in NumPy."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.sparsity import budgets


def spent(masks, prices):
  return sum(int(np.asarray(m).sum()) * p for m, p in zip(masks, prices))


class FlopsBudgetTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=25)
  @hypothesis.given(sizes=st.sampled_from([(1,), (9, 17, 4)]),   # few shapes, few compilations
                    fill=st.sampled_from(['normal', 'ties', 'zeros', 'negative']),
                    removed=st.floats(0.0, 0.99), data=st.data())
  def test_keeps_what_is_worth_most(self, sizes, fill, removed, data):
    prices = [data.draw(st.sampled_from([1, 3, 49, 1024])) for _ in sizes]
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    scores = [{'normal': np.abs(rng.normal(size=n)), 'ties': rng.integers(0, 3, n),
               'zeros': np.zeros(n), 'negative': rng.normal(size=n)}[fill].astype('f')
              for n in sizes]
    whole = sum(n * p for n, p in zip(sizes, prices))
    budget = whole - round(whole * removed)
    masks = budgets.budgeted_masks([jnp.asarray(s) for s in scores], prices, [removed], 0)
    masks = [np.asarray(m) for m in masks]
    self.assertLessEqual(spent(masks, prices), budget)
    worth = [s / np.float32(p) for s, p in zip(scores, prices)]
    out = [(w[~m].max(), p) for w, m, p in zip(worth, masks, prices) if not m.all()]
    if not out:
      return
    # Exact to one unit: the best entry left out does not fit any more.
    best = max(out)[0]
    self.assertTrue(all(budget - spent(masks, prices) < p for w, p in out if w == best))
    # One bar for all: whatever is kept is worth at least as much as what is not.
    self.assertGreaterEqual(min(w[m].min() for w, m in zip(worth, masks) if m.any())
                            if any(m.any() for m in masks) else best, best)

  def test_counts_beyond_32_bits_are_exact(self):
    n, price = 300_000, 30_000   # 9e9 multiply-adds
    scores = [jnp.arange(n, dtype=jnp.float32), jnp.arange(7, dtype=jnp.float32)]
    masks = budgets.budgeted_masks(scores, [price, 1], [0.25, 0.5], jnp.int32(1))
    budget = n * price + 7 - round((n * price + 7) * 0.5)
    left = budget - spent(masks, [price, 1])
    self.assertBetween(left, 0, price - 1)

  def test_with_the_flops_of_a_model(self):
    rng = np.random.default_rng(0)
    params = {'conv/kernel': jnp.asarray(rng.normal(size=(3, 3, 2, 4)), 'float32'),
              'head/kernel': jnp.asarray(rng.normal(size=(64, 10)), 'float32')}
    def run(p, x):
      y = jax.lax.conv_general_dilated(x, p['conv/kernel'], (2, 2), 'SAME',
                                       dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
      return y.reshape(1, -1) @ p['head/kernel']
    counted = jsp.flops(run, params, jnp.ones((1, 8, 8, 2)))
    uses = {k: w.executed // (2 * params[k].size) for k, w in counted.weights.items()}
    self.assertEqual(uses, {'conv/kernel': 16, 'head/kernel': 1})
    transform = jsp.magnitude(jsp.linear(0.5, end=4, every=2),
                              distribution=jsp.flops_budget(uses=uses))
    self.assertEqual(jsp.spell(jsp.parse(jsp.spell(transform))), jsp.spell(transform))
    latents, state = jax.jit(transform.init)(params)
    update = jax.jit(transform.update)
    whole = 72 * 16 + 640
    for _ in range(5):
      before = jsp.masks(state)
      state = update(latents, state)
      after = jsp.masks(state)
      self.assertFalse(any((after[k] & ~before[k]).any() for k in after))
    used = sum(int(m.sum()) * uses[k] for k, m in after.items())
    self.assertBetween(whole / 2 - used, 0, 15)
    # An entry of the convolution has to be worth sixteen of the head's.
    self.assertLess(after['conv/kernel'].mean(), after['head/kernel'].mean())

  def test_what_was_pruned_does_not_use_up_the_rest(self):
    scores = [jnp.array([3.0, -jnp.inf]), jnp.array([-jnp.inf, -jnp.inf])]
    masks = budgets.budgeted_masks(scores, [2, 1], [0.4], 0)   # 4 of 6 to spend
    self.assertEqual([m.tolist() for m in masks], [[True, False], [False, False]])

  @parameterized.named_parameters(
      dict(testcase_name='empty', make=lambda: jsp.flops_budget(uses={}), message='must be a dict'),
      dict(testcase_name='zero', make=lambda: jsp.flops_budget(uses={'a': 0}),
           message="uses of 'a' must be a positive integer"),
      dict(testcase_name='unknown', make=lambda: jsp.magnitude(
          0.5, distribution=jsp.flops_budget(uses={'a': 1})).init({'b': jnp.ones((2, 2))}),
           message='b: flops_budget does not say .* it knows a'),
      dict(testcase_name='far', make=lambda: jsp.magnitude(
          0.5, distribution=jsp.flops_budget(uses={'a': 1, 'b': 2**15})).init(
              {'a': jnp.ones((2, 2)), 'b': jnp.ones((2, 2))}), message='b: expected fewer than'),
      dict(testcase_name='pattern', make=lambda: jsp.magnitude(
          0.5, pattern=jsp.channel(), distribution=jsp.flops_budget(uses={'a': 1})),
           message='flops_budget ranks single entries'))
  def test_bad(self, make, message):
    with self.assertRaisesRegex(ValueError, message):
      make()


if __name__ == '__main__':
  absltest.main()
