"""Fourteen steps of SGD of every sparse training method against numpy, weights and masks.

The loss is `sum(w' g_t)`, so the gradient of what the model sees is the given `g_t`.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import hashing
from tests.sparsity import oracles

RATE, STEPS, SHAPE = 0.1, 14, (8, 6)
KEPT = 12   # of 48, sparsity 0.75


class Numpy:
  """One matrix under training: `w`, `mask`, and `step(count, g)` with the optimizer inside."""

  def __init__(self, w, mask):
    self.w, self.mask = w.astype(np.float64), mask
    self.memory = np.zeros(w.shape)

  def descend(self, g):
    self.w = self.w - RATE * g

  def renew(self, mask):
    """New masks; what is grown starts at zero."""
    self.w[mask & ~self.mask] = 0
    self.mask = mask


def static(x, count, g):
  x.descend(g * x.mask)


def sparse_evolution(x, count, g):
  x.descend(g * x.mask)
  if count in (3, 6, 9):
    key = hashing.key_of(5, 'kernel', jnp.asarray(count, jnp.int32))
    x.renew(oracles.drop_and_grow(x.w, x.mask, jax.random.uniform(key, SHAPE), 0.5))


def snfs(x, count, g):
  x.descend(g * x.mask)
  x.memory = 0.9 * x.memory + 0.1 * g
  if count in (3, 6, 9):
    fraction = 0.6 / 2 * (1 + np.cos(np.pi * count / 9))
    x.renew(oracles.drop_and_grow(x.w, x.mask, np.abs(x.memory), fraction))


def straight_through(x, count, g):
  x.descend(g)
  x.mask = oracles.largest(np.abs(x.w), KEPT)


def rarely(x, count, g):
  x.descend(g)
  if count % 5 == 0:
    x.mask = oracles.largest(np.abs(x.w), KEPT)


def sr_ste(x, count, g):
  x.descend(g + 0.3 * ~x.mask * x.w)
  x.mask = oracles.n_of_m(np.abs(x.w), 2, 4)


def top_kast(x, count, g):
  backward = x.memory.astype(bool)
  pull = 0.2 * x.w * np.where(x.mask, 1, 1 / 0.25)
  x.descend((g + pull) * backward)
  if count % 3 == 0:
    x.mask = oracles.largest(np.abs(x.w), KEPT)
    x.memory = oracles.largest(np.abs(x.w), 2 * KEPT)


def ac_dc(x, count, g):
  x.descend(g * x.mask)
  if count in (2, 8, 11):
    x.mask = oracles.largest(np.where(x.mask, np.abs(x.w), -1), KEPT)
  if count == 5:
    x.renew(np.ones(SHAPE, bool))


def movement(x, count, g):
  x.descend(g * x.mask)
  x.memory -= x.w * g
  if count in (3, 7, 11):
    sparsity = 0.75 * (1 - (1 - (count - 3) / 8) ** 3)
    x.mask = oracles.largest(x.memory, 48 - round(48 * sparsity))


def cyclic(x, count, g):
  x.descend(g * x.mask)
  # Two ramps, 0..4 and 5..9, each dense at its first count and at 0.75 at its last.
  if count in (0, 5):
    x.renew(np.ones(SHAPE, bool))
  if count in (4, 9):
    x.mask = oracles.largest(np.where(x.mask, np.abs(x.w), -1), KEPT)


METHODS = {
    'static': ('static(0.75, seed=5)', static),
    'sparse_evolution': ('sparse_evolution(0.75, every=3, end=9, alpha=0.5, seed=5)',
                         sparse_evolution),
    'snfs': ('snfs(0.75, every=3, end=9, alpha=0.6)', snfs),
    'straight_through': ('straight_through(0.75)', straight_through),
    'straight_through_rarely': ('straight_through(0.75, every=5)', rarely),
    'sr_ste': ('sr_ste(2, 4, decay=0.3)', sr_ste),
    'top_kast': ('top_kast(0.75, backward=0.5, penalty=0.2, every=3)', top_kast),
    'ac_dc': ('ac_dc(0.75, start=2, every=3, end=11)', ac_dc),
    'movement': ('movement(cubic(0.75, start=3, end=11, every=4))', movement),
    'cyclic': ('magnitude(cyclic(0.75, cycles=2, end=9))', cyclic),
}


class TrajectoriesTest(parameterized.TestCase):

  @parameterized.named_parameters(*((name, *both) for name, both in METHODS.items()))
  def test_agrees_with_numpy(self, text, oracle):
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=SHAPE), rng.normal(size=(STEPS, *SHAPE))
    transform, tx = jsp.parse(text), optax.sgd(RATE)
    params = {'kernel': jnp.asarray(w, jnp.float32), 'bias': jnp.zeros(6)}
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(lambda p, g: (p['kernel'] * g).sum(), tx, transform)
    expected = Numpy(w, np.array(jsp.masks(ts.state)['kernel']))
    if oracle is top_kast:
      expected.memory = oracles.largest(np.abs(w), 2 * KEPT)
    for count, g in enumerate(gradients):
      view = transform.apply(ts.params, ts.state)['kernel']
      np.testing.assert_array_equal(np.asarray(view) != 0, expected.mask & (expected.w != 0))
      ts, _, _ = step(ts, jnp.asarray(g, jnp.float32))
      oracle(expected, count, g)
      if transform.spec.projects:
        expected.w[~expected.mask] = 0
      np.testing.assert_array_equal(jsp.masks(ts.state)['kernel'], expected.mask, f'step {count}')
      np.testing.assert_allclose(ts.params['kernel'], expected.w, rtol=2e-5, atol=2e-6)
    self.assertLessEqual(step.compiled._cache_size(), 2)

  def test_what_is_behind_a_view_keeps_its_value_and_what_was_pruned_does_not(self):
    tx = optax.adam(0.1)
    params = {'kernel': jnp.asarray([[4.0, 3.0], [2.0, 1.0]])}
    for text, value in (('straight_through(0.75)', 9.0), ('top_kast(0.75, every=1)', 9.0),
                        ('sr_ste(1, 2)', 9.0),
                        ('magnitude(cyclic(0.75, cycles=1, end=1, initial=0.25))', 0.0)):
      transform = jsp.parse(text)
      params, state = transform.init(params)
      moved = {'kernel': jnp.asarray([[4.0, 3.0], [2.0, 9.0]])}
      masked = state.weights['kernel'].mask.at[1, 1].set(False)
      state.weights['kernel'] = state.weights['kernel']._replace(mask=masked)
      grown = state.weights['kernel']._replace(mask=masked.at[1, 1].set(True))
      new = transform.init(params)[1]
      new.weights['kernel'] = grown
      aligned, _ = jsp.realign(tx, moved, tx.init(moved), state, new)
      self.assertEqual(float(aligned['kernel'][1, 1]), value, text)


if __name__ == '__main__':
  absltest.main()
