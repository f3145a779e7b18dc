"""Rewinding: nested masks with exact counts, weights, optimizer and counts of the saved step."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

TX = optax.adam(optax.linear_schedule(0.1, 0.0, 10))
TARGET = jax.random.normal(jax.random.key(5), (10, 7))


def model(seed=0):
  return {'dense': {'kernel': jax.random.normal(jax.random.key(seed), (10, 7)),
                    'bias': jnp.zeros(7)}}


def loss_fn(params):
  return (jnp.square(params['dense']['kernel'] - TARGET).sum()
          + jnp.square(params['dense']['bias'] - 1).sum())


def method(sparsity):
  return jsp.at('.*/kernel', jsp.magnitude(sparsity))


STEP = jsp.train_step(loss_fn, TX, method(0.0))


def train(transform, ts, until=8):
  del transform
  while ts.count < until:
    ts, _, _ = STEP(ts)
  return ts


def saved_at(k):
  return train(None, jsp.TrainState.create(method(0.0), TX, model()), k)


def kernel(tree):
  return np.asarray(tree['dense']['kernel'])


class RewindTest(parameterized.TestCase):

  @parameterized.parameters(0, 3)
  def test_rounds_against_numpy(self, k):
    saved = saved_at(k)
    tickets = list(jsp.lottery(method, TX, saved, train, rounds=4))
    mask = np.ones((10, 7), bool)
    for i, ticket in enumerate(tickets):
      if i:
        size = np.where(mask, np.abs(kernel(tickets[i - 1].trained.params)), -1).ravel()
        kept = 70 - round(70 * (1 - 0.8**i))
        new = np.zeros(70, bool)
        new[np.argsort(-size, kind='stable')[:kept]] = True
        mask = mask & new.reshape(10, 7)
        self.assertEqual(mask.sum(), kept)
      found = np.asarray(jsp.masks(ticket.start.state)['dense/kernel'])
      np.testing.assert_array_equal(found, mask)
      np.testing.assert_array_equal(jsp.masks(ticket.trained.state)['dense/kernel'], mask)
      np.testing.assert_array_equal(kernel(ticket.start.params),
                                    np.where(mask, kernel(saved.params), 0))
      np.testing.assert_array_equal(ticket.start.params['dense']['bias'],
                                    saved.params['dense']['bias'])
      self.assertEqual(ticket.start.count, k)
      self.assertEqual(int(ticket.start.state.count), int(saved.state.count))
      adam, schedule = ticket.start.opt_state
      np.testing.assert_array_equal(kernel(adam.mu),
                                    np.where(mask, kernel(saved.opt_state[0].mu), 0))
      self.assertEqual((int(adam.count), int(schedule.count)), (k, k))
      self.assertEqual(float(np.abs(np.where(mask, 0, kernel(ticket.trained.params))).max()), 0)
      self.assertEqual(ticket.trained.count, 8)

  def test_training_from_a_ticket_is_that_of_masked_weights(self):
    saved = saved_at(2)
    *_, ticket = jsp.lottery(method, TX, saved, train, rounds=2)
    mask = jsp.masks(ticket.start.state)['dense/kernel']
    params, opt_state = ticket.start.params, ticket.start.opt_state
    params, opt_state = jax.tree.map(jnp.copy, (params, opt_state))
    for _ in range(6):
      grads = jax.grad(loss_fn)(params)
      grads['dense']['kernel'] = jnp.where(mask, grads['dense']['kernel'], 0)
      updates, opt_state = TX.update(grads, opt_state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(kernel(ticket.trained.params), kernel(params), rtol=1e-5, atol=1e-6)

  def test_kept_zeros_outrank_pruned_ones(self):
    saved = jsp.TrainState.create(jsp.magnitude(0.5), TX, {'w': jnp.array([[0., 0., 3., 4.]])})
    # Index 0 was pruned, 2 and 3 are kept but have become zero.
    dead = saved._replace(params={'w': jnp.zeros((1, 4))})
    ts = jsp.rewind(jsp.magnitude(0.75), TX, saved, dead)
    self.assertEqual(jsp.masks(ts.state)['w'].tolist(), [[False, False, True, False]])

  @parameterized.named_parameters(
      ('blocks', lambda s: jsp.magnitude(s, pattern=jsp.block(2, 2)), (8, 8)),
      ('channels', lambda s: jsp.magnitude(s, pattern=jsp.channel()), (8, 8)),
      ('pooled', lambda s: jsp.magnitude(s, distribution=jsp.pooled), (8, 8)),
      ('low precision', jsp.magnitude, (9, 5)))
  def test_other_methods_nest_too(self, method, shape):
    params = {'w': jax.random.normal(jax.random.key(0), shape)}
    if shape == (9, 5):
      params = jax.tree.map(lambda x: x.astype(jnp.float16), params)
    saved = jsp.TrainState.create(method(0.0), TX, params)
    zero = lambda transform, ts: ts._replace(params=jax.tree.map(jnp.zeros_like, ts.params))
    masks = [jsp.masks(t.start.state)['w']
             for t in jsp.lottery(method, TX, saved, zero, rounds=3, fraction=0.4)]
    for before, after in itertools.pairwise(masks):
      self.assertFalse(bool((after & ~before).any()))
      self.assertLess(int(after.sum()), int(before.sum()))

  def test_works_where_the_optimizer_owns_a_part(self):
    tx = optax.masked(optax.adam(0.1), {'dense': {'kernel': True, 'bias': False}})
    saved = jsp.TrainState.create(method(0.0), tx, model())
    ts = jsp.rewind(method(0.5), tx, saved, saved)
    self.assertEqual(jsp.sparsity(ts.state), 0.5)
    jsp.train_step(loss_fn, tx, method(0.5))(ts)

  def test_refuses(self):
    saved = saved_at(0)
    half = jsp.rewind(method(0.5), TX, saved, saved)
    with self.assertRaisesRegex(ValueError, 'dense/kernel: .*would bring back .* pruned weights'):
      jsp.rewind(method(0.2), TX, saved, half)
    with self.assertRaisesRegex(ValueError, 'no masks to rewind with'):
      jsp.rewind(jsp.identity(), TX, saved, saved)
    for wrong in ({'rounds': 0}, {'rounds': 1, 'fraction': 1.0}):
      with self.assertRaisesRegex(ValueError, 'rounds|fraction'):
        jsp.lottery(method, TX, saved, train, **wrong)


if __name__ == '__main__':
  absltest.main()
