"""Low rank by calibration: against reduced-rank regression and the plain SVD, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp

_ROWS, _IN, _OUT = 200, 12, 9


def problem(seed=0, rows=_ROWS):
  """Inputs of uneven size and correlated, and a weight."""
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(_IN, _IN)) * np.exp(rng.normal(size=_IN))
  x = rng.normal(size=(rows, _IN)) @ mixing
  return x, rng.normal(size=(_IN, _OUT))


def regression(x, w, rank):
  """Reduced-rank regression of X W on X: the fit projected on its first principal directions."""
  fit = x @ w
  _, _, right = np.linalg.svd(fit, full_matrices=False)
  return w @ right[:rank].T @ right[:rank]


@functools.cache
def _view(text):
  transform = jsp.parse(text)
  return jax.jit(lambda w, gram: jsp.densify(transform.apply(*transform.init(
      {'w': w}, stats={'w': gram})))['w'])


def compressed(text, w, x):
  out = _view(text)(jnp.asarray(w, jnp.float32), jnp.asarray(x.T @ x, jnp.float32))
  return np.asarray(out, np.float64)


class SvdLlmTest(parameterized.TestCase):

  def test_optimal_and_ordered(self):
    error = lambda x, w, v: np.linalg.norm(x @ (w - v))
    for seed in range(4):
      x, w = problem(seed)
      for rank in (2, 6):
        best = error(x, w, regression(x, w, rank))
        found = compressed(f'svd_llm({rank})', w, x)
        self.assertLess(error(x, w, found), best * 1.001)
        self.assertLessEqual(np.linalg.matrix_rank(found, tol=1e-4), rank)
        plain = compressed(f'low_rank({rank})', w, x)
        self.assertLess(error(x, w, found), error(x, w, plain))
        scaled = compressed(f'asvd({rank})', w, x)
        self.assertLess(best, error(x, w, scaled) * 1.001)
        size = (np.linalg.norm(x, axis=0) ** 0.5)[:, None]   # restated
        u, s, v = np.linalg.svd(size * w, full_matrices=False)
        np.testing.assert_allclose(scaled, (u[:, :rank] * s[:rank]) @ v[:rank] / size, atol=1e-3)

  def test_corners(self):
    x, w = problem()
    for text in ('svd_llm(99)', 'svd_llm(1.0)', 'asvd(9)'):
      np.testing.assert_allclose(compressed(text, w, x), w, atol=1e-3)
    np.testing.assert_allclose(compressed('asvd(6, alpha=0)', w, x),
                               compressed('low_rank(6)', w, x), atol=1e-4)
    few, _ = problem(rows=5)   # the Gram has rank 5, so rank 5 loses nothing of the outputs
    few[:, 3] = 0
    found = compressed('svd_llm(6)', w, few)
    self.assertLess(np.linalg.norm(few @ (w - found)), 5e-3 * np.linalg.norm(few @ w))
    for text in ('svd_llm(6)', 'asvd(6)'):
      self.assertTrue(np.isfinite(compressed(text, w, 0 * x)).all())
      np.testing.assert_array_equal(compressed(text, 0 * w, x), 0)

  @pytest.mark.slow
  def test_calibrated_on_a_model_and_stored_in_int8(self):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    params = {'stack': {'kernel': draw(3, 16, 16)}, 'out': {'kernel': draw(2, 8, 24)}}

    def fn(params, x):
      x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params['stack']['kernel'])
      return jnp.einsum('bhk,hkd->bd', x.reshape(-1, 2, 8), params['out']['kernel'])

    x = draw(32, 16)
    stats = jsp.calibrate(fn, params, [x], jsp.gram)
    for text, exact in (('svd_llm(8)', True), ("quantize('int8') | svd_llm(8)", False)):
      transform = jsp.parse(text)
      latents, state = transform.init(params, stats=stats)
      effective = jsp.densify(transform.apply(latents, state))
      packed = transform.pack(latents, state)
      np.testing.assert_allclose(jax.jit(jsp.dispatch(fn))(packed, x), fn(effective, x), atol=1e-4)
      count = 8 * (3 * (16 + 16) + 16 + 24)
      scales = 0 if exact else 4 * (3 * (8 + 16) + 8 + 24)
      self.assertEqual(jsp.nbytes(packed), count * (4 if exact else 1) + scales)
    made, _ = jsp.one_shot(jsp.svd_llm(8), fn, params, [x])
    self.assertEqual(made['stack']['kernel'].u.shape, (3, 16, 8))

  def test_low_rank_and_a_sparse_residual(self):
    rng = np.random.default_rng(0)
    low = rng.normal(size=(24, 3)) @ rng.normal(size=(3, 24))
    sparse = np.where(rng.random((24, 24)) < 0.05, 8 * rng.normal(size=(24, 24)), 0)
    w = {'w': jnp.asarray(low + sparse, jnp.float32)}
    error = {}
    for text in ('lora(3, base=magnitude(0.94), start=loftq(20))', 'low_rank(3)', 'magnitude(0.94)',
                 'lora(3, base=magnitude(0.94), start=loftq(1))'):
      transform = jsp.parse(text)
      latents, state = jax.jit(transform.init)(w)
      error[text] = float(jnp.linalg.norm(
          jsp.densify(transform.apply(latents, state))['w'] - w['w']))
      if 'lora' in text:
        packed = transform.pack(latents, state)
        self.assertLess(jsp.nbytes(packed), 4 * (2 * 24 * 3 + 0.07 * 24 * 24) + 24 * 24 / 8)
    alternating, low_alone, sparse_alone, once = error.values()
    self.assertLess(alternating, 0.5 * min(low_alone, sparse_alone))
    self.assertLess(alternating, once)

  @parameterized.parameters(
      ('svd_llm(0)', 'a rank must be'), ('svd_llm(1.5)', 'a rank must be'),
      ('asvd(True)', 'a rank must be'), ('svd_llm(2, damping=0)', 'damping must be above zero'),
      ('svd_llm(2, damping=2)', 'damping must be'), ('asvd(2, alpha=-1)', 'alpha must be'))
  def test_bad_arguments(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      jsp.parse(text)

  def test_bad_statistics(self):
    params = {'dense': {'kernel': jnp.ones((4, 6))}}
    for factory in (jsp.svd_llm, jsp.asvd):
      for stats, message in ((None, 'no statistics'), ({}, 'no statistics'),
                             ({'dense/kernel': jnp.eye(5)}, 'does not fit'),
                             ({'dense/kernel': jnp.eye(4) * jnp.nan}, 'NaN or infinite')):
        with self.assertRaisesRegex(ValueError, f'dense/kernel: .*{message}'):
          factory(2).init(params, stats=stats)
    with self.assertRaisesRegex(ValueError, 'grouped convolution'):
      jsp.svd_llm(2).init(params, stats={'dense/kernel': jnp.ones((2, 4, 4))})


if __name__ == '__main__':
  absltest.main()
