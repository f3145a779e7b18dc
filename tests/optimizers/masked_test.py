"""Mask-aware optax transformations: pruned weights neither move nor count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def tree(seed=0):
  keys = jax.random.split(jax.random.key(seed))
  return {'a': {'kernel': jax.random.normal(keys[0], (6, 4))},
          'b': {'kernel': jax.random.normal(keys[1], (4, 3)), 'bias': jnp.ones(3)}}


def masks_of(params):
  _, state = jsp.at('.*kernel', jsp.magnitude(0.5)).init(params)
  return jsp.masks(state)


FACTORIES = [
    ('decay', lambda: jsp.masked_decay(0.1)),
    ('updates', jsp.masked_updates),
    ('clip', lambda: jsp.masked_clip(0.5)),
    ('rms', lambda: jsp.masked_rms_clip(0.1)),
    ('adaptive', lambda: jsp.masked_adaptive_clip(0.01)),
]


class AgainstOptaxTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('decay', jsp.masked_decay(0.1), optax.add_decayed_weights(0.1)),
      ('updates', jsp.masked_updates(), optax.identity()),
      ('clip', jsp.masked_clip(0.5), optax.clip_by_global_norm(0.5)),
      ('rms', jsp.masked_rms_clip(0.1), optax.clip_by_block_rms(0.1)),
      ('adaptive', jsp.masked_adaptive_clip(0.01), optax.adaptive_grad_clip(0.01)))
  def test_without_masks_it_is_optax(self, ours, theirs):
    params, grads = tree(), tree(1)
    mine, _ = ours.update(grads, ours.init(params), params, masks={})
    wanted, _ = theirs.update(grads, theirs.init(params), params)
    for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(wanted)):
      np.testing.assert_allclose(a, b, rtol=1e-6)

  def test_global_norm_of_kept_in_numpy(self):
    params, grads = tree(), tree(1)
    masks = masks_of(params)
    tx = jsp.masked_clip(0.5)
    updates, _ = tx.update(grads, tx.init(params), params, masks=masks)
    kept = [np.where(masks['a/kernel'], grads['a']['kernel'], 0),
            np.where(masks['b/kernel'], grads['b']['kernel'], 0), grads['b']['bias']]
    norm = np.sqrt(sum(np.square(k).sum() for k in kept))
    self.assertGreater(norm, 0.5)
    np.testing.assert_allclose(updates['a']['kernel'], kept[0] * 0.5 / norm, rtol=1e-5)
    np.testing.assert_allclose(updates['b']['bias'], kept[2] * 0.5 / norm, rtol=1e-5)

  def test_rms_of_kept_in_numpy(self):
    params, grads = tree(), tree(1)
    mask = np.asarray(masks_of(params)['a/kernel'])
    tx = jsp.masked_rms_clip(0.1)
    updates, _ = tx.update(grads, tx.init(params), params, masks=masks_of(params))
    g = np.where(mask, grads['a']['kernel'], 0)
    np.testing.assert_allclose(
        updates['a']['kernel'], g * 0.1 / np.sqrt(np.square(g).sum() / mask.sum()), rtol=1e-5)
    nothing, _ = tx.update(grads, tx.init(params), params,
                           masks={'a/kernel': jnp.zeros((6, 4), bool)})
    self.assertEqual(float(jnp.abs(nothing['a']['kernel']).sum()), 0)


class PrunedTest(parameterized.TestCase):

  @parameterized.named_parameters(*FACTORIES)
  def test_what_is_pruned_neither_moves_nor_counts(self, factory):
    params, grads, tx = tree(), tree(1), factory()
    masks = masks_of(params)
    wild = lambda t, by: {'a': {'kernel': jnp.where(masks['a/kernel'], t['a']['kernel'], by)},
                          'b': t['b']}
    out = [tx.update(wild(grads, by), tx.init(params), wild(params, by), masks=masks)[0]
           for by in (0.0, 1e6, jnp.nan)]
    for other in out[1:]:
      for a, b in zip(jax.tree.leaves(out[0]), jax.tree.leaves(other)):
        np.testing.assert_array_equal(a, b)
    self.assertEqual(float(jnp.abs(jnp.where(masks['a/kernel'], 0, out[0]['a']['kernel'])).sum()),
                     0)
    self.assertGreater(float(jnp.abs(out[0]['a']['kernel']).sum()), 0)

  @parameterized.named_parameters(*FACTORIES)
  def test_survives_the_combinators_of_optax(self, factory):
    params, grads = tree(), tree(1)
    masks = masks_of(params)
    only_kernels = jsp.label({'.*kernel': 'kernel', '.*': 'other'})
    cases = {
        'chain': optax.chain(optax.trace(0.9), factory(), optax.sgd(0.1)),
        'masked': optax.masked(factory(), lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        'MultiSteps': optax.MultiSteps(optax.chain(factory(), optax.sgd(0.1)), 1),
        'partition': optax.partition({'kernel': factory(), 'other': optax.sgd(0.1)}, only_kernels),
    }
    for name, tx in cases.items():
      update = jax.jit(tx.update)
      updates, _ = update(grads, tx.init(params), params, masks=masks)
      gone = jnp.where(masks['a/kernel'], 0, updates['a']['kernel'])
      self.assertEqual(float(jnp.abs(gone).sum()), 0, name)
      self.assertGreater(float(jnp.abs(updates['a']['kernel']).sum()), 0, name)

  def test_injected_hyperparameters(self):
    params = tree()
    tx = optax.inject_hyperparams(jsp.masked_decay)(weight_decay=lambda count: 0.1 * (count + 1))
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for rate in (0.1, 0.2):
      updates, state = tx.update(zeros, state, params, masks=masks_of(params))
      np.testing.assert_allclose(updates['b']['bias'], rate * params['b']['bias'], rtol=1e-5)


# Where a transform does more than set entries to zero, nothing projects the latents.
STALE = jsp.chain(jsp.magnitude(0.5), jsp.fake_quantize('int8'))


class InTrainingTest(parameterized.TestCase):

  def _trained(self, tx, steps=3):
    params = tree()
    transform = jsp.at('.*kernel', STALE)
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(
        lambda p, x: jnp.square(jnp.tanh(x @ p['a']['kernel']) @ p['b']['kernel']).sum(), tx,
        transform)
    for _ in range(steps):
      ts, _, _ = step(ts, jnp.ones((2, 6)))
    mask = jsp.masks(ts.state)['a/kernel']
    moved = ts.params['a']['kernel'] - params['a']['kernel']
    return moved[~mask], moved[mask]

  def test_train_step_hands_over_the_masks(self):
    plain, _ = self._trained(optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1)))
    self.assertGreater(float(jnp.abs(plain).min()), 0)
    gone, kept = self._trained(optax.chain(jsp.masked_decay(0.1), optax.sgd(0.1)))
    self.assertEqual(float(jnp.abs(gone).max()), 0)
    self.assertGreater(float(jnp.abs(kept).min()), 0)

  def test_momentum_from_before_the_pruning_does_not_move_what_was_pruned(self):
    def moved(*last):
      tx = optax.chain(optax.sgd(0.01, momentum=0.9), *last)
      transform = jsp.chain(jsp.magnitude(jsp.at_step(2, 0.5)), jsp.fake_quantize('int8'))
      ts = jsp.TrainState.create(transform, tx, {'kernel': tree()['a']['kernel']})
      step = jsp.train_step(lambda p: jnp.square(p['kernel']).sum(), tx, transform)
      for _ in range(3):
        ts, _, _ = step(ts)
      before = jnp.copy(ts.params['kernel'])
      ts, _, _ = step(ts)
      change = ts.params['kernel'] - before
      return float(jnp.abs(jnp.where(jsp.masks(ts.state)['kernel'], 0, change)).max())

    self.assertGreater(moved(), 0)
    self.assertEqual(moved(jsp.masked_updates()), 0)

  def test_wrap_hands_over_the_masks(self):
    params = tree()
    tx = jsp.wrap(optax.chain(jsp.masked_decay(0.1), optax.sgd(0.1)),
                  jsp.at('.*kernel', STALE))
    state = tx.init(params)
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    mask = jsp.masks(state)['a/kernel']
    wanted = jnp.where(mask, -0.01 * params['a']['kernel'], 0)
    np.testing.assert_allclose(updates['a']['kernel'], wanted, rtol=1e-5)

  def test_dense_latents_behind_a_mask_count(self):
    transform = jsp.straight_through(0.5)
    tx, params = optax.chain(jsp.masked_decay(0.1), optax.sgd(0.1)), {'kernel': jnp.ones((4, 2))}
    ts = jsp.TrainState.create(transform, tx, params)
    ts, _, _ = jsp.train_step(lambda p: 0.0 * p['kernel'].sum(), tx, transform)(ts)
    np.testing.assert_allclose(ts.params['kernel'], np.full((4, 2), 0.99), rtol=1e-6)


class RefusalTest(absltest.TestCase):

  def test_masks_and_params_are_needed_and_fit(self):
    params, tx = tree(), jsp.masked_decay(0.1)
    with self.assertRaisesRegex(TypeError, 'masks'):
      tx.update(params, tx.init(params), params)
    with self.assertRaisesRegex(ValueError, 'needs params'):
      tx.update(params, tx.init(params), masks={})
    with self.assertRaisesRegex(ValueError, r'a/kernel.*found shape \(4, 6\), expected \(6, 4\)'):
      tx.update(params, tx.init(params), params, masks={'a/kernel': jnp.ones((4, 6), bool)})


if __name__ == '__main__':
  absltest.main()
