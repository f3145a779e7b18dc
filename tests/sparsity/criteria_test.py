"""Scores against formulas by hand, and SNIP, GraSP, SynFlow and Fisher on a small network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

W = jnp.asarray([[2.0, -1.0], [0.0, -3.0]])
G = jnp.asarray([[1.0, 4.0], [5.0, -2.0]])

BY_HAND = dict(
    magnitude=[[2, 1], [0, 3]], saliency=[[2, 4], [0, 6]], snip=[[2, 4], [0, 6]],
    grasp=[[2, -4], [0, 6]], synflow=[[2, 4], [0, 6]], fisher=[[2, 8], [0, 18]],
    movement=[[-2, 4], [0, -6]])


def network(seed=0, dtype='float32'):
  rng = np.random.default_rng(seed)
  params = {'a': jnp.asarray(rng.normal(size=(4, 6)), dtype),
            'b': jnp.asarray(rng.normal(size=(6, 3)), dtype)}
  x = jnp.asarray(rng.normal(size=(5, 4)), dtype)
  apply_fn = lambda p, x: jax.nn.relu(x @ p['a']) @ p['b']
  return params, x, apply_fn


class CriteriaTest(parameterized.TestCase):

  @parameterized.product(name=list(BY_HAND), dtype=['float32', 'bfloat16'])
  def test_by_hand(self, name, dtype):
    criterion = jsp.criteria.KNOWN[name]
    keywords = {} if name == 'magnitude' else {'grads': G.astype(dtype)}
    scores = criterion(W.astype(dtype), **keywords)
    self.assertEqual((scores.tolist(), scores.dtype), (BY_HAND[name], jnp.float32))

  @parameterized.parameters(*(name for name in BY_HAND if name != 'magnitude'))
  def test_gradients_are_needed_and_the_weight_is_named(self, name):
    transform = jsp.prune(name, schedule=0.5)
    with self.assertRaisesRegex(ValueError, f'dense/kernel: {name} needs gradients; expected grad'):
      transform.init({'dense': {'kernel': W}})
    late = jsp.prune(name, schedule=jsp.at_step(0, 0.5))
    params, state = late.init({'kernel': W})
    with self.assertRaisesRegex(ValueError, f'kernel: {name} needs gradients'):
      late.update(params, state)

  @parameterized.parameters(*jsp.criteria.KNOWN)
  def test_spelled(self, name):
    text = f'prune({name!r}, schedule=cubic(0.9, end=10), distribution=pooled, seed=3)'
    self.assertEqual(jsp.spell(jsp.parse(text)), text)
    made = jsp.prune(jsp.criteria.KNOWN[name], schedule=0.5)
    self.assertEqual(jsp.spell(made), f'prune({name!r}, schedule=0.5)')

  def test_own_function_takes_what_it_names_and_has_no_spelled_form(self):
    seen = {}
    def magnitude(w, *, name, seed):   # a namesake is not the registered one
      seen[name] = seed
      return -w
    transform = jsp.prune(magnitude, schedule=0.5)
    params, state = transform.init({'a': {'kernel': W}})
    self.assertEqual(jsp.masks(state)['a/kernel'].tolist(), [[False, True], [False, True]])
    self.assertEqual(list(seen), ['a/kernel'])
    with self.assertRaisesRegex(ValueError, 'made by hand'):
      jsp.spell(transform)

  @parameterized.parameters(
      ('snap', r'one of magnitude, random, .*; got .snap.'), (3, 'criterion must be a function'),
      (None, 'criterion must be a function'))
  def test_unknown(self, criterion, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.prune(criterion, schedule=0.5)

  def test_scores_of_another_shape(self):
    with self.assertRaisesRegex(ValueError, r'kernel: .*of shape \(2, 2\), found \(2,\)'):
      jsp.prune(lambda w: w.sum(0), schedule=0.5).init({'kernel': W})

  @parameterized.parameters(float('nan'), float('inf'))
  def test_nan_gradients_name_the_weight(self, bad):
    grads = {'a': G, 'b': G.at[1, 0].set(bad)}
    with self.assertRaisesRegex(ValueError, r'b: 1 of 4 gradients are NaN or infinite'):
      jsp.prune('snip', schedule=0.5).init({'a': W, 'b': W}, grads=grads)

  def test_random_depends_on_name_seed_and_count_and_keeps_exact_numbers(self):
    params = {'a': jnp.ones((8, 8)), 'b': jnp.ones((8, 8))}
    mask = lambda seed: jsp.masks(jsp.prune('random', schedule=0.75, seed=seed).init(params)[1])
    first, second = mask(0), mask(1)
    self.assertEqual({int(m.sum()) for m in [*first.values(), *second.values()]}, {16})
    self.assertFalse((first['a'] == first['b']).all())
    self.assertFalse((first['a'] == second['a']).all())
    np.testing.assert_array_equal(first['a'], mask(0)['a'])
    reordered = jsp.prune('random', schedule=0.75).init({'z': params['b'], 'a': params['a']})[1]
    np.testing.assert_array_equal(first['a'], jsp.masks(reordered)['a'])
    # Each count draws anew among what is left.
    transform = jsp.prune('random', schedule=jsp.linear(0.5, end=3, every=1))
    _, state = transform.init(params)
    for count, kept in enumerate((64, 53, 43, 32)):
      old, state = jsp.masks(state)['a'], transform.update(params, state)
      new = jsp.masks(state)['a']
      self.assertEqual((int(new.sum()), bool((new & ~old).any())), (kept, False), count)

  def test_snip_is_one_ranking_of_the_network(self):
    params, x, apply_fn = network()
    grads = jax.grad(lambda p: (apply_fn(p, x) ** 2).mean())(params)
    transform = jsp.prune('snip', schedule=0.8, distribution=jsp.pooled)
    masks = jsp.masks(transform.init(params, grads=grads)[1])
    scores = {k: np.abs(np.asarray(params[k]) * np.asarray(grads[k])) for k in params}
    threshold = np.sort(np.concatenate([s.ravel() for s in scores.values()]))[-8]   # 42 weights
    for k, s in scores.items():
      np.testing.assert_array_equal(masks[k], s >= threshold)

  @pytest.mark.slow
  def test_grasp_uses_the_hessian(self):
    params, x, apply_fn = network(1)
    loss = lambda p, x: (jnp.tanh(apply_fn(p, x)) ** 2).mean()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda v: loss(unravel(v), x))(flat)
    gradient = jax.grad(lambda v: loss(unravel(v), x))(flat)
    expected = unravel(jnp.asarray(np.asarray(hessian, np.float64) @ np.asarray(gradient)))
    found = jsp.criteria.hessian_gradient(loss, params, x)
    for k in params:
      np.testing.assert_allclose(found[k], expected[k], rtol=1e-4, atol=1e-6)
    # Removing the weights it scores lowest: -w (H g), whose lowest the paper keeps.
    masks = jsp.masks(jsp.prune('grasp', schedule=0.5).init(params, grads=found)[1])
    paper = -np.asarray(params['b']) * np.asarray(found['b'])
    np.testing.assert_array_equal(masks['b'], paper <= np.sort(paper.ravel())[8])

  def test_synflow_rounds_agree_with_algorithm_1(self):
    params, x, apply_fn = network(2)
    rounds, sparsity = 10, 0.5   # sparser, one path is left to some weights: ties
    transform = jsp.prune('synflow', distribution=jsp.pooled, schedule=jsp.iterative(
        sparsity, rounds=rounds, every=1))
    _, state = transform.init(params)
    flow = jax.jit(lambda p: jsp.criteria.flow_gradient(apply_fn, p, x))
    update = jax.jit(lambda s, g: transform.update(params, s, grads=g, refresh=True))
    for _ in range(rounds):
      state = update(state, flow(transform.apply(params, state)))
    masks = jsp.masks(state)

    a, b = (np.abs(np.asarray(params[k], np.float64)) for k in 'ab')
    keep_a, keep_b = np.ones(a.shape, bool), np.ones(b.shape, bool)
    for i in range(1, rounds + 1):
      left = 42 - round(42 * (1 - (1 - sparsity) ** (i / rounds)))
      wa, wb = a * keep_a, b * keep_b
      # R = 1' |A| |B| 1 for five inputs of ones; relu does nothing to what is positive.
      score_a = wa * wb.sum(1)[None, :] * 5
      score_b = wb * wa.sum(0)[:, None] * 5
      score_a[~keep_a], score_b[~keep_b] = -1, -1
      order = np.sort(np.concatenate([score_a.ravel(), score_b.ravel()]))[::-1]
      keep_a, keep_b = score_a >= order[left - 1], score_b >= order[left - 1]
    np.testing.assert_array_equal(masks['a'], keep_a)
    np.testing.assert_array_equal(masks['b'], keep_b)
    self.assertEqual(jsp.sparsity(state), sparsity)

  def test_fisher_of_examples(self):
    params, x, apply_fn = network(3)
    loss = lambda p, x: (apply_fn(p, x[None]) ** 2).sum()
    found = jsp.criteria.rms_gradient(loss, params, [(row,) for row in x])
    squares = [np.asarray(jax.grad(loss)(params, row)['b'], np.float64) ** 2 for row in x]
    np.testing.assert_allclose(found['b'], np.sqrt(np.mean(squares, 0)), rtol=1e-5)
    scores = jsp.criteria.fisher(params['b'], grads=found['b'])
    np.testing.assert_allclose(
        scores, np.asarray(params['b']) ** 2 * np.mean(squares, 0) / 2, rtol=1e-4)
    with self.assertRaisesRegex(ValueError, 'at least one batch'):
      jsp.criteria.rms_gradient(loss, params, [])


if __name__ == '__main__':
  absltest.main()
