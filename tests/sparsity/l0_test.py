"""L0: gates against the paper's formulas in numpy, the penalty's slope, what is left at the end."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import hashing


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def at_count(state, count):
  return dataclasses.replace(state, count=jnp.asarray(count, jnp.int32))


class L0Test(parameterized.TestCase):

  @parameterized.parameters('entry', 'output', 'reduction')
  def test_gates_agree_with_numpy(self, unit):
    shape = {'entry': (6, 5), 'output': (1, 5), 'reduction': (6, 1)}[unit]
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)
    alpha = jnp.asarray(rng.normal(size=shape) * 3, jnp.float32)
    transform = jsp.l0(unit=unit, end=10, seed=4)
    params, state = transform.init({'kernel': w})
    self.assertEqual(params['kernel'].log_alpha.shape, shape)
    np.testing.assert_allclose(params['kernel'].log_alpha, np.log(0.7 / 0.3), rtol=1e-6)
    params = {'kernel': jsp.L0(w, alpha)}
    for count in (0, 9, 10, 99):
      if count < 10:
        key = hashing.key_of(4, 'kernel', jnp.asarray(count, jnp.int32))
        u = np.asarray(jax.random.uniform(key, shape, minval=1e-6, maxval=1 - 1e-6), np.float64)
        s = sigmoid((np.log(u) - np.log1p(-u) + alpha) * 1.5)
      else:
        s = sigmoid(alpha)
      gate = np.clip(1.2 * s - 0.1, 0, 1)
      found = transform.apply(params, at_count(state, count))['kernel']
      np.testing.assert_allclose(found, w * gate, rtol=1e-4, atol=1e-6)

  def test_share_of_open_gates_is_the_probability(self):
    transform = jsp.l0(droprate=0.5)
    params, state = transform.init({'kernel': jnp.ones((100, 100))})
    view = np.asarray(transform.apply(params, state)['kernel'])
    expected = sigmoid(0 - 2 / 3 * np.log(0.1 / 1.1))
    self.assertAlmostEqual((view > 0).mean(), expected, delta=0.02)
    self.assertAlmostEqual((view == 1).mean(), 1 - expected, delta=0.02)   # symmetric at a = 0
    again = np.asarray(transform.apply(params, at_count(state, 1))['kernel'])
    self.assertFalse((view == again).all())

  @parameterized.parameters(('entry', 1), ('output', 6), ('reduction', 5))
  @pytest.mark.sampled(1)
  def test_slope_of_the_penalty(self, unit, weights_each):
    transform = jsp.l0(unit=unit, penalty=0.25)
    params, state = transform.init({'kernel': jnp.zeros((6, 5))})   # the loss itself is flat
    alpha = jnp.linspace(-2.0, 2.0, params['kernel'].log_alpha.size)
    params = {'kernel': params['kernel']._replace(
        log_alpha=alpha.reshape(params['kernel'].log_alpha.shape))}
    found = jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)['kernel']
    p = sigmoid(np.asarray(alpha) - 2 / 3 * np.log(0.1 / 1.1))
    np.testing.assert_allclose(
        found.log_alpha.ravel(), 0.25 * weights_each * p * (1 - p), rtol=1e-4)

  def test_finds_the_input_that_matters(self):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 8)), jnp.float32)
    y = x[:, :1] * 3
    transform = jsp.l0(unit='reduction', penalty=0.1, droprate=0.5, end=300)
    params = {'kernel': jnp.asarray(rng.normal(size=(8, 1)) * 0.3, jnp.float32)}
    tx = optax.adam(5e-2)
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(lambda p: ((x @ p['kernel'] - y) ** 2).mean(), tx, transform)
    for _ in range(320):
      ts, loss, _ = step(ts)
    view = transform.apply(ts.params, ts.state)['kernel']
    self.assertEqual(np.flatnonzero(view).tolist(), [0])
    self.assertLess(float(loss), 0.05)
    np.testing.assert_array_equal(
        jsp.densify(transform.pack(ts.params, ts.state))['kernel'], view)


if __name__ == '__main__':
  absltest.main()
