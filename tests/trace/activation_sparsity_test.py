"""Sparse activations: exact counts, the gradient, containers, and the fraction of zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized
from flax import linen
from flax import nnx

import jaxsparse as jsp
from jaxsparse import trace
from tests.trace import stored


def normal(*shape, seed=0):
  return jax.random.normal(jax.random.key(seed), shape)


def oracle(x, sparsity):
  """Top-k of each row by a stable sort, in numpy."""
  x = np.asarray(x, np.float32)
  kept = max(x.shape[-1] - round(x.shape[-1] * sparsity), 1)
  order = np.argsort(-np.abs(x), axis=-1, kind='stable')[..., :kept]
  mask = np.zeros(x.shape, bool)
  np.put_along_axis(mask, order, True, -1)
  return np.where(mask, x, 0)


class TopKTest(parameterized.TestCase):

  @parameterized.parameters(0.0, 0.3, 0.5, 0.9, 0.99)
  def test_against_numpy_with_ties(self, sparsity):
    x, w = jnp.round(normal(7, 10) * 2), normal(10, 4, seed=1)
    run = trace.top_k_activations(lambda p, x: x @ p['w'], sparsity)
    np.testing.assert_allclose(run({'w': w}, x), oracle(x, sparsity) @ w, rtol=1e-5, atol=1e-5)
    left = trace.top_k_activations(lambda p, x: p['w'] @ x.T, sparsity)
    np.testing.assert_allclose(left({'w': w.T}, x), (oracle(x, sparsity) @ w).T, rtol=1e-5,
                               atol=1e-5)

  def test_a_whole_tensor(self):
    x = jnp.array([[1.0, 9.0], [2.0, 3.0]])
    run = trace.top_k_activations(lambda p, x: x @ p['w'], 0.5, granularity='tensor')
    self.assertEqual(run({'w': jnp.eye(2)}, x).tolist(), [[0, 9], [0, 3]])

  def test_convolution_rows_are_examples(self):
    x, w = normal(2, 5, 5, 3), normal(3, 3, 3, 4)
    fn = lambda p, x: jax.lax.conv_general_dilated(
        x, p['w'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    wanted = fn({'w': w}, jnp.asarray(oracle(x.reshape(2, -1), 0.8).reshape(x.shape)))
    np.testing.assert_allclose(trace.top_k_activations(fn, 0.8)({'w': w}, x), wanted, rtol=1e-5,
                               atol=1e-5)

  def test_the_gradient_is_that_of_what_was_kept(self):
    x, w = normal(5, 8), normal(8, 4, seed=1)
    run = jax.jit(trace.top_k_activations(lambda p, x: x @ p['w'], 0.75))
    kept = oracle(x, 0.75)
    by_x = jax.grad(lambda x: run({'w': w}, x).sum())(x)
    np.testing.assert_allclose(by_x, np.where(kept != 0, np.asarray(w).sum(1), 0), rtol=1e-5)
    by_w = jax.grad(lambda w: run({'w': w}, x).sum())(w)
    np.testing.assert_allclose(by_w, np.broadcast_to(kept.sum(0)[:, None], w.shape), rtol=1e-5)

  def test_scan_remat_and_the_chosen_weights(self):
    params = {'stack': normal(3, 6, 6), 'head': normal(6, 2, seed=1)}

    def fn(params, x):
      body = jax.checkpoint(lambda x, w: (jnp.tanh(x @ w), None))
      return jax.lax.scan(body, x, params['stack'])[0] @ params['head']

    x = y = normal(4, 6, seed=2)
    for w in params['stack']:
      y = jnp.tanh(jnp.asarray(oracle(y, 0.5)) @ w)
    run = trace.top_k_activations(fn, 0.5, at='stack')
    np.testing.assert_allclose(run(params, x), y @ params['head'], rtol=1e-4, atol=1e-5)
    self.assertTrue(all(jnp.isfinite(g).all() for g in jax.tree.leaves(
        jax.grad(lambda p: run(p, x).sum())(params))))

  def test_linen_and_nnx(self):
    x = normal(3, 8)
    dense = linen.Dense(4, use_bias=False)
    variables = dense.init(jax.random.key(0), x)
    wanted = oracle(x, 0.5) @ variables['params']['kernel']
    run = trace.top_k_activations(dense.apply, 0.5)
    np.testing.assert_allclose(run(variables, x), wanted, rtol=1e-5, atol=1e-5)
    graph, state = nnx.split(nnx.Linear(8, 4, use_bias=False, rngs=nnx.Rngs(0)))
    run = trace.top_k_activations(lambda state, x: nnx.merge(graph, state)(x), 0.5, at='kernel')
    wanted = oracle(x, 0.5) @ jax.tree.leaves(state)[0]
    np.testing.assert_allclose(run(state, x), wanted, rtol=1e-5, atol=1e-5)

  def test_nan_formats_and_empty_inputs(self):
    run = trace.top_k_activations(lambda p, x: x @ p['w'], 0.75)
    out = run({'w': jnp.eye(4)}, jnp.array([[1.0, jnp.nan, 5.0, 2.0]]))
    self.assertTrue(bool(jnp.isnan(out).any()))
    packed, x = {'w': stored.int8(normal(8, 4))}, normal(3, 8)
    np.testing.assert_allclose(run(packed, x), oracle(x, 0.75) @ packed['w'].todense(), rtol=1e-5,
                               atol=1e-5)
    self.assertEqual(run(packed, jnp.zeros((0, 8))).shape, (0, 4))
    low = run({'w': jnp.ones((8, 4), jnp.bfloat16)}, x.astype(jnp.bfloat16))
    self.assertEqual(low.dtype, jnp.bfloat16)

  def test_lookups_are_left_alone(self):
    fn = lambda p, ids: jnp.take(p['w'], ids, axis=0)
    params, ids = {'w': normal(7, 4)}, jnp.array([1, 5])
    np.testing.assert_array_equal(trace.top_k_activations(fn, 0.9)(params, ids), fn(params, ids))


class ThresholdTest(absltest.TestCase):

  def test_values_and_gradient(self):
    run = trace.threshold_activations(lambda p, x: x @ p['w'], 1.0)
    x = jnp.array([[0.5, -1.0, 2.0, -0.1]])
    params = {'w': jnp.ones((4, 1))}
    self.assertEqual(run(params, x).tolist(), [[1.0]])
    self.assertEqual(jax.grad(lambda x: run(params, x).sum())(x).tolist(), [[0, 1, 1, 0]])
    self.assertTrue(bool(jnp.isnan(run(params, x.at[0, 0].set(jnp.nan))).all()))


class ZeroFractionTest(absltest.TestCase):

  def test_counts_zeros_per_weight_and_layer(self):
    fn = lambda p, x: jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, p['stack'])[0]
    params = {'stack': jnp.stack([jnp.diag(jnp.array([1.0, -1.0])), jnp.eye(2)])}
    batches = [jnp.ones((3, 2)), jnp.array([[0.0, 0.0]])]
    stats = jsp.calibrate(fn, params, batches, jsp.zero_fraction)
    # Layer 0 sees 2 zeros of 8; layer 1, behind the relu, also the 3 that were negative.
    np.testing.assert_allclose(stats['stack'], [2 / 8, 5 / 8])

  def test_measures_what_the_hook_left(self):
    fn = trace.top_k_activations(lambda p, x: x @ p['w'], 0.75)
    stats = jsp.calibrate(fn, {'w': normal(8, 4)}, [normal(5, 8)], jsp.zero_fraction)
    self.assertEqual(float(stats['w']), 0.75)


class RefusalTest(parameterized.TestCase):

  @parameterized.parameters(
      (trace.top_k_activations, 1.0, 'sparsity'), (trace.top_k_activations, -0.1, 'sparsity'),
      (trace.threshold_activations, -1.0, 'threshold'),
      (trace.threshold_activations, float('nan'), 'threshold'),
      (functools.partial(trace.top_k_activations, granularity='pixel'), 0.5, 'granularity'))
  def test_bad_arguments(self, factory, value, word):
    with self.assertRaisesRegex(ValueError, word):
      factory(len, value)

  def test_a_pattern_that_matches_nothing(self):
    run = trace.top_k_activations(lambda p, x: x @ p['w'], 0.5, at='kernel')
    with self.assertRaisesRegex(ValueError, "'kernel' matches no weight.*w"):
      run({'w': jnp.eye(2)}, jnp.ones((1, 2)))


if __name__ == '__main__':
  absltest.main()
