"""Packed weights times rounded activations: integers in the program, NumPy's in the result."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def apply_fn(params, x):
  return x @ params['w']


def packed(w, dtype='int8', **scheme):
  transform = jsp.at('w', jsp.quantize(dtype, **scheme))
  return transform.pack(*transform.init({'w': w}))


def by_numpy(x, w, limit, granularity):
  """int64 codes of both, each with its absmax scale."""
  x, w = np.asarray(x, np.float32), np.asarray(w, np.float32)
  peak = np.abs(x).max(-1, keepdims=True) if granularity == 'row' else np.abs(x).max()
  steps = [np.float32(peak / np.float32(127)), np.abs(w).max(0, keepdims=True) / np.float32(limit)]
  steps = [np.where(s > 0, s, 1) for s in steps]
  codes = [np.rint(a / s).astype(np.int64) for a, s in zip((x, w), steps)]
  return (codes[0] @ codes[1]) * (steps[0].astype(np.float64) * steps[1])


class IntegerProductTest(parameterized.TestCase):

  @parameterized.product(dtype=('int8', 'int4'), granularity=('row', 'tensor'))
  def test_equals_numpys_integers(self, dtype, granularity):
    rng = np.random.default_rng(0)
    w, x = rng.normal(size=(37, 13)), rng.normal(size=(3, 5, 37))
    x *= 10.0 ** rng.integers(-3, 3, 5)[:, None]
    x[0, 1] = 0
    run = jax.jit(jsp.quantize_activations(apply_fn, granularity=granularity))
    tree = packed(jnp.asarray(w, jnp.float32), dtype)
    found = run(tree, jnp.asarray(x, jnp.float32))
    wanted = by_numpy(x, w, {'int8': 127, 'int4': 7}[dtype], granularity)
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-5 * np.abs(wanted).max())
    text = run.lower(tree, jnp.zeros((4, 37))).compile().as_text()
    self.assertRegex(text, r's32\[4,13\].*\sdot\(')
    self.assertNotRegex(text, r'f32\[4,13\][^=]*\sdot\(')

  def test_gradients_are_those_of_the_rounded_floats(self):
    w, x = (jax.random.normal(jax.random.key(n), s) for n, s in enumerate([(16, 8), (4, 16)]))
    tree = packed(w)
    run = jsp.quantize_activations(apply_fn, granularity='row')
    found = jax.grad(lambda x: (run(tree, x) ** 2).sum())(x)
    out = run(tree, x)
    np.testing.assert_allclose(found, 2 * out @ jsp.densify(tree)['w'].T, rtol=1e-4, atol=1e-4)

  @parameterized.parameters(packed, lambda w: {'w': w})
  def test_what_is_not_finite_is_seen(self, stored):
    x = jnp.ones((3, 160)).at[1, 2].set(jnp.nan).at[2, 0].set(jnp.inf)
    params = stored(jnp.ones((160, 8)))
    out = jsp.quantize_activations(apply_fn, granularity='row')(params, x)
    self.assertEqual(np.isnan(out).any(-1).tolist(), [False, True, True])
    ranges = {'w': jnp.ones(160)}
    out = jsp.quantize_activations(apply_fn, ranges=ranges)(params, x)
    self.assertEqual(np.isnan(out).any(-1).tolist(), [False, True, False])

  def test_a_static_step_clips(self):
    tree, x = packed(jnp.eye(4)), jnp.array([[0.5, -3.0, 2.0, 0.0], [1.0, 0.0, 0.0, 0.25]])
    run = jsp.quantize_activations(apply_fn, ranges={'w': jnp.ones(4)})
    np.testing.assert_allclose(run(tree, x), jnp.round(jnp.clip(x, -1, 1) * 127) / 127, rtol=1e-6)

  @parameterized.parameters('uint8', 'float8_e4m3')
  def test_other_grids_of_activations_stay_products_of_floats(self, dtype):
    w, x = (jax.random.normal(jax.random.key(n), s) for n, s in enumerate([(16, 8), (4, 16)]))
    run = jsp.quantize_activations(apply_fn, dtype)
    np.testing.assert_allclose(run(packed(w), x), x @ w, atol=0.6)


if __name__ == '__main__':
  absltest.main()
