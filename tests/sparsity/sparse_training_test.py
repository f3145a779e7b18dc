"""What all sparse training methods share: edges, errors, and the cost of an ordinary step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

# Spelled for a sparsity of 0.75, reached by the second update; `{}` is the sparsity.
MASKED = ('static({})', 'rigl({}, every=1, end=9)', 'sparse_evolution({}, every=1, end=9)',
          'snfs({}, every=1, end=9)', 'straight_through({})', 'top_kast({}, every=1)',
          'ac_dc({}, start=0, every=1, end=1)', 'movement(at_step(0, {}))',
          "prune('random', schedule={})", "prune('saliency', schedule=at_step(0, {}))",
          'magnitude(cyclic({}, cycles=1, end=1))')
ORDINARY = ('static(0.9)', 'rigl(0.9)', 'sparse_evolution(0.9)', 'snfs(0.9)',
            'straight_through(0.9, every=10)', 'sr_ste(2, 4, every=10)', 'top_kast(0.9)',
            'ac_dc(0.9)', 'movement(cubic(0.9, end=100))',
            "prune('snip', schedule=at_step(9, 0.9))", 'magnitude(cyclic(0.9, cycles=3, end=100))')


def after_updates(transform, w, grad, updates=2):
  params, state = transform.init({'kernel': w})
  for _ in range(updates):
    state = transform.update(params, state, grads={'kernel': grad}, refresh=True)
  return params, state


class SparseTrainingTest(parameterized.TestCase):

  @parameterized.product(text=MASKED, fill=['zeros', 'ties', 'normal'],
                         dtype=['float32', 'bfloat16', 'float16'])
  def test_counts_are_exact_whatever_the_weights(self, text, fill, dtype):
    rng = np.random.default_rng(0)
    w = {'zeros': np.zeros((5, 8)), 'ties': rng.integers(-1, 2, (5, 8)),
         'normal': rng.normal(size=(5, 8))}[fill]
    w, transform = jnp.asarray(w, dtype), jsp.parse(text.format(0.75))
    params, state = after_updates(transform, w, w)
    mask = jsp.masks(state)['kernel']
    self.assertEqual((int(mask.sum()), mask.dtype), (10, jnp.bool_))
    view = transform.apply(params, state)['kernel']
    self.assertEqual(view.dtype, w.dtype)
    np.testing.assert_array_equal(view, jnp.where(mask, w, 0))

  @parameterized.parameters(*MASKED)
  def test_sparsity_0_keeps_all_and_1_is_an_error(self, text):
    w = jnp.arange(12.0).reshape(3, 4)
    _, state = after_updates(jsp.parse(text.format(0.0)), w, w)
    self.assertTrue(bool(jsp.masks(state)['kernel'].all()))
    for bad in ('1.0', '-0.5', 'True', "'0.5'"):
      with self.assertRaisesRegex(ValueError, r'\[0, 1\), got'):
        jsp.parse(text.format(bad))

  @parameterized.parameters(*MASKED)
  def test_nan_weights_are_named_and_nan_gradients_grow_nothing_extra(self, text):
    transform = jsp.parse(text.format(0.75))
    for bad in (np.nan, np.inf):
      with self.assertRaisesRegex(ValueError, 'a/kernel: 1 of 4 values are NaN or infinite'):
        transform.init({'a': {'kernel': jnp.asarray([[1.0, bad], [3.0, 4.0]])}})
    w = jnp.arange(1.0, 13.0).reshape(3, 4)
    with self.assertRaisesRegex(ValueError, 'kernel: 4 of 12 gradients are NaN or infinite'):
      after_updates(transform, w, w.at[0].set(jnp.nan))
    # Inside a step nothing can be raised: a NaN ranks lowest, and counts stay exact.
    update = jax.jit(functools.partial(transform.update, refresh=True))
    params, state = transform.init({'kernel': w})
    for _ in range(2):
      state = update(params, state, grads={'kernel': w.at[0].set(jnp.nan)})
    self.assertEqual(int(jsp.masks(state)['kernel'].sum()), 3)

  @parameterized.parameters(*MASKED, 'soft_threshold()', 'l0()')
  def test_what_is_no_weight_passes(self, text):
    params = {'kernel': jnp.ones((4, 4)), 'scale': jnp.asarray(2.0), 'bias': jnp.ones(4),
              'empty': jnp.ones((0, 4))}
    transform = jsp.parse(text.format(0.75))
    latents, state = transform.init(params)
    for name in ('scale', 'bias', 'empty'):
      self.assertIs(latents[name], params[name])
    nothing = {'scale': jnp.asarray(2.0)}
    latents, state = transform.init(nothing)
    state = transform.update(latents, state, grads=nothing)
    self.assertEqual(transform.apply(latents, state), nothing)

  @parameterized.parameters(*(text for text in MASKED if 'saliency' not in text))
  def test_experts_compete_alone(self, text):
    rng = np.random.default_rng(1)
    w = jnp.asarray(rng.normal(size=(3, 4, 8)), jnp.float32)
    _, state = after_updates(jsp.parse(text.format(0.75)), w, w)
    self.assertEqual(jsp.masks(state)['kernel'].sum((1, 2)).tolist(), [8, 8, 8])

  @parameterized.parameters(
      ('static(linear(0.5, end=9))', r'static keeps one sparsity; .*linear\(0.5'),
      ('sparse_evolution(linear(0.5, end=9))', 'sparse_evolution keeps one sparsity'),
      ('snfs(0.5, distribution=pooled)', 'snfs draws masks at random, so there is no score'),
      ('static(0.5, distribution=pooled)', 'static draws masks at random'),
      ('static(0.5, seed=1.5)', 'seed must be an integer, got 1.5'),
      ('sparse_evolution(0.5, alpha=2)', r'alpha must be in \[0, 1\], got 2'),
      ('snfs(0.5, beta=1.0)', r'beta must be in \[0, 1\), got 1.0'),
      ('straight_through(0.5, every=0)', 'every must be an integer of at least 1'),
      ('straight_through(0.9, pattern=n_m(2, 4))', r'n_m\(2, 4\) has sparsity 0.5, but 0.9'),
      ('straight_through(0.5, pattern=channel(), distribution=pooled)', 'pooled ranks single'),
      ('straight_through(0.5, pattern=4)', 'pattern must be a pattern'),
      ('sr_ste(4, 2)', 'n must not exceed m'),
      ('sr_ste(2, 4, decay=-1)', 'decay must be a finite number of at least 0, got -1'),
      ('top_kast(0.5, backward=0.6)', r'backward=0.6 must not exceed sparsity=0.5'),
      ('top_kast(0.5, penalty=-1.0)', 'penalty must be a finite number'),
      ('movement(0.5)', 'gathers scores before it prunes; .*found 0.5 from the start'),
      ('movement(linear(0.5, end=9, initial=0.1))', 'found 0.1 from the start'),
      ('ac_dc(0.5, start=9, end=3)', 'end must be an integer of at least 9, got 3'),
      ('soft_threshold(initial=True)', 'initial must be a finite number, got True'),
      ('l0(droprate=1.0)', r'droprate must be in \(0, 1\), got 1.0'),
      ("l0(unit='row')", "unit must be one of entry, output, reduction, got 'row'"),
      ('l0(end=-1)', 'start must be an integer of at least 0, got -1'))
  def test_says_what_is_wrong(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(text)

  @parameterized.parameters('snfs(0.5)', 'movement(linear(0.5, end=9))')
  def test_gradients_are_needed(self, text):
    transform = jsp.parse(text)
    params, state = transform.init({'kernel': jnp.ones((4, 4))})
    with self.assertRaisesRegex(ValueError, 'expected update.*grads=effective_grads'):
      transform.update(params, state, refresh=False)

  @parameterized.parameters(*ORDINARY)
  def test_an_ordinary_step_searches_nothing_and_costs_20_flops_a_weight_at_most(self, text):
    width = 32
    params = {'kernel': jnp.ones((width, width))}
    tx = optax.adamw(1e-3)
    loss = lambda p, x: (jax.nn.relu(x @ p['kernel']) ** 2).mean()

    def cost(transform):
      ts = jax.eval_shape(lambda p: jsp.TrainState.create(transform, tx, p), params)
      step = jsp.train_step(loss, tx, transform)
      x = jax.ShapeDtypeStruct((8, width), jnp.float32)
      program = step.compiled.lower(False, ts.params, ts.state, ts.opt_state, x).compile()
      for word in (' sort(', ' conditional(', ' while('):
        self.assertNotIn(word, program.as_text())
      return program.cost_analysis()['flops']

    transform = jsp.parse(text)
    self.assertFalse(transform.spec.due(7))
    self.assertLessEqual(cost(transform) - cost(jsp.identity()), 20 * width**2)

  def test_every_step_of_straight_through_renews_its_mask(self):
    self.assertTrue(all(jsp.straight_through(0.5).spec.due(count) for count in range(5)))
    gradual = jsp.parse('straight_through(cubic(0.5, start=3, end=8, every=3), every=5)')
    self.assertEqual([c for c in range(12) if gradual.spec.due(c)], [0, 3, 5, 6, 8, 10])

  def test_top_kast_sets_are_nested_whatever_the_distribution(self):
    params = {'a': jnp.ones((4, 4)), 'b': jnp.ones((32, 32)), 'c': jnp.ones((4, 32))}
    for distribution in ('uniform', 'erk', 'pooled'):
      for sparsity, backward in ((0.9, 0.8), (0.5, 0.0), (0.8, 0.8)):
        transform = jsp.parse(
            f'top_kast({sparsity}, backward={backward}, distribution={distribution})')
        _, state = transform.init(params)
        for value in state.weights.values():
          self.assertFalse(bool((value.mask & ~value.backward).any()))

  def test_static_starts_where_the_dynamic_methods_do(self):
    params = {'kernel': jnp.ones((9, 9))}
    masks = [jsp.masks(jsp.parse(f'{word}(0.7, seed=3)').init(params)[1])['kernel']
             for word in ('static', 'rigl', 'sparse_evolution', 'snfs')]
    for mask in masks[1:]:
      np.testing.assert_array_equal(mask, masks[0])

  def test_set_grows_uniformly(self):
    w = jnp.asarray([[8.0, 7.0, 6.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    hits = np.zeros(8)
    for seed in range(300):
      transform = jsp.sparse_evolution(0.5, every=1, end=9, alpha=0.5, seed=seed)
      params, state = transform.init({'kernel': w})
      state.weights['kernel'] = state.weights['kernel']._replace(mask=w > 4)
      new = transform.update(params, state, refresh=True)
      hits += np.asarray(jsp.masks(new)['kernel']).ravel()
    # 8 and 7 stay; two of the six others are grown, each as likely.
    self.assertEqual(hits[:2].tolist(), [300, 300])
    np.testing.assert_allclose(hits[2:], 100, atol=4 * np.sqrt(300 * 2 / 9))

  @parameterized.parameters('straight_through(0.5)', 'sr_ste(2, 4)', 'movement(at_step(2, 0.5))',
                            'snfs(0.5, every=3, end=9)', 'top_kast(0.5, every=2)',
                            'ac_dc(0.5, start=1, every=2, end=6)')
  @pytest.mark.sampled(2)
  def test_wrap_and_scan_agree_with_the_loop(self, text):
    rng = np.random.default_rng(0)
    params = {'kernel': jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)}
    x, y = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((16, 8), (16, 4)))
    loss = lambda p, x, y: ((x @ p['kernel'] - y) ** 2).mean()
    transform, tx = jsp.parse(text), optax.adam(1e-1)
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(loss, tx, transform)
    for _ in range(8):
      ts, _, _ = step(ts, x, y)
    carry = jsp.TrainState.create(transform, tx, params)._replace(count=jnp.asarray(0))
    scanned, _ = jax.lax.scan(lambda c, _: (step(c, x, y)[0], None), carry, length=8)
    wrapped = jsp.wrap(tx, transform)

    def body(carry, _):
      p, opt_state = carry
      grads = jax.grad(loss)(transform.apply(p, opt_state.transform), x, y)
      updates, opt_state = wrapped.update(grads, opt_state, p)
      return (optax.apply_updates(p, updates), opt_state), None

    (p, opt_state), _ = jax.lax.scan(body, (params, wrapped.init(params)), length=8)
    for found, state in ((scanned.params, scanned.state), (p, opt_state.transform)):
      np.testing.assert_array_equal(jsp.masks(state)['kernel'], jsp.masks(ts.state)['kernel'])
      np.testing.assert_allclose(found['kernel'], ts.params['kernel'], rtol=1e-4, atol=1e-5)


if __name__ == '__main__':
  absltest.main()
