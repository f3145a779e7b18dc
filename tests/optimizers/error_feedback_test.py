"""Error feedback: nothing is lost, on one worker and on many."""

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized
from jax.sharding import PartitionSpec

import jaxsparse as jsp

_COMPRESSORS = {'int8': 'int8', 'sign': 'sign', 'top': jsp.compressors.top_k(0.1),
                'low rank': jsp.compressors.power_sgd(2)}
_STEPS = {name: (tx, jax.jit(tx.update)) for name, tx in (
    (name, jsp.error_feedback(compressor)) for name, compressor in _COMPRESSORS.items())}


class ErrorFeedbackTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=20)
  @hypothesis.given(name=st.sampled_from(list(_COMPRESSORS)), seed=st.integers(0, 999),
                    fill=st.sampled_from(['normal', 'heavy', 'zeros', 'constant']))
  def test_sent_and_held_are_the_gradients(self, name, seed, fill):
    tx, step = _STEPS[name]
    rng = np.random.default_rng(seed)
    state = tx.init({'w': jnp.zeros((12, 5)), 'b': jnp.zeros(7)})
    for _ in range(4):
      make = {'normal': rng.normal, 'heavy': lambda size: rng.standard_t(1, size),
              'zeros': lambda size: np.zeros(size), 'constant': lambda size: np.full(size, 0.7)}
      grads = {'w': jnp.asarray(make[fill](size=(12, 5)), jnp.float32),
               'b': jnp.asarray(make[fill](size=7), jnp.float32)}
      before = state.held
      sent, state = step(grads, state)
      for key in grads:
        whole = np.asarray(grads[key]) + np.asarray(before[key])
        again = np.asarray(sent[key]) + np.asarray(state.held[key])
        if name in ('int8', 'top'):
          np.testing.assert_array_equal(again, whole)
        else:
          scale = np.abs(np.asarray(sent[key])).max() + np.abs(whole)
          self.assertTrue((np.abs(again - whole) <= 2.0**-23 * scale).all())

  @parameterized.parameters(*_COMPRESSORS)
  def test_narrow_gradients_lose_nothing_and_what_is_not_finite_is_seen(self, name):
    tx, step = _STEPS[name]
    rng = np.random.default_rng(0)
    for dtype in (jnp.bfloat16, jnp.float16):
      state = tx.init({'w': jnp.zeros((12, 5), dtype)})
      for _ in range(3):
        grads = {'w': jnp.asarray(rng.normal(size=(12, 5)), dtype)}
        before = np.asarray(state.held['w'], np.float64)
        sent, state = step(grads, state)
        self.assertEqual(sent['w'].dtype, dtype)
        wide = lambda tree: np.asarray(tree['w'], np.float64)
        np.testing.assert_allclose(wide(sent) + wide(state.held), wide(grads) + before, rtol=0,
                                   atol=0 if name in ('int8', 'top') else 1e-6)
    for bad in (np.nan, np.inf):
      # Of more entries than XLA:CPU finds a NaN among when it takes a maximum.
      grads = {'w': jnp.ones((12, 5)).at[3, 2].set(bad)}
      self.assertFalse(np.isfinite(step(grads, tx.init(grads))[0]['w']).all())

  def test_what_is_sent(self):
    g = {'w': jnp.asarray(np.random.default_rng(0).normal(size=(40, 25)), jnp.float32)}
    sent = {name: np.asarray(step(g, tx.init(g))[0]['w']) for name, (tx, step) in _STEPS.items()}
    w = np.asarray(g['w'])
    scale = np.float32(np.abs(w).max() * np.float32(1 / 127))
    np.testing.assert_array_equal(sent['int8'], np.rint(w / scale) * scale)
    np.testing.assert_allclose(sent['sign'], np.sign(w) * np.abs(w).mean(), rtol=1e-5)
    top = np.where(np.abs(w) >= np.sort(np.abs(w).ravel())[-100], w, 0)
    np.testing.assert_array_equal(sent['top'], top)
    self.assertEqual(np.linalg.matrix_rank(sent['low rank'], tol=1e-4), 2)
    # Warm starts make it the best approximation after a few steps of the same gradient.
    tx = jsp.error_feedback(jsp.compressors.power_sgd(2), feedback=False)
    state = tx.init(g)
    for _ in range(60):
      out, state = jax.jit(tx.update)(g, state)
    u, s, v = np.linalg.svd(w)
    np.testing.assert_allclose(out['w'], (u[:, :2] * s[:2]) @ v[:2], atol=0.05)

  @parameterized.parameters(*_COMPRESSORS)
  @pytest.mark.sampled(2)
  def test_workers_receive_the_mean_of_what_they_sent(self, name):
    tx = jsp.error_feedback(_COMPRESSORS[name], axis_name='data')
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    grads = {'w': jnp.asarray(rng.normal(size=(8, 12, 5)), jnp.float32),
             'b': jnp.asarray(rng.normal(size=(8, 7)), jnp.float32), 'n': jnp.zeros((8, 2), int)}
    one = jax.tree.map(lambda x: x[0], grads)
    state = jax.tree.map(lambda x: jnp.broadcast_to(x, (8, *x.shape)), tx.init(one))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=PartitionSpec('data'),
                       out_specs=PartitionSpec('data'))
    def step(grads, state):
      own = lambda tree: jax.tree.map(lambda x: x[0], tree)
      out = tx.update(own(grads), own(state))
      return jax.tree.map(lambda x: x[None], out)

    received, new = step(grads, state)
    alone = jsp.error_feedback(_COMPRESSORS[name])
    if name != 'low rank':
      sent = jax.vmap(lambda g: alone.update(g, alone.init(one))[0])(grads)
      for key in 'wb':
        for worker in range(8):
          np.testing.assert_allclose(received[key][worker], sent[key].mean(0), rtol=1e-5,
                                     atol=1e-7)
    for key in 'wb':   # over all workers nothing is lost either
      whole = np.asarray(grads[key], np.float64).mean(0)
      found = np.asarray(received[key][0], np.float64) + np.asarray(new.held[key]).mean(0)
      np.testing.assert_allclose(found, whole, atol=1e-6)

  def test_bad(self):
    for make, message in ((lambda: jsp.error_feedback('int7'), "'int7' is no compressor"),
                          (lambda: jsp.error_feedback(3), 'must be a name or a Compressor'),
                          (lambda: jsp.compressors.top_k(0), r'fraction must be in \(0, 1\]'),
                          (lambda: jsp.compressors.power_sgd(0), 'positive integer, got 0')):
      with self.assertRaisesRegex(ValueError, message):
        make()


if __name__ == '__main__':
  absltest.main()
