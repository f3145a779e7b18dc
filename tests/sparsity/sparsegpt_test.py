"""SparseGPT against a slow NumPy oracle of algorithm 1, and the size of its program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def oracle(w, x, sparsity, *, block, damping=0.01, m=None):
  """Algorithm 1 in float64, with the paper's shapes: W `[outputs, inputs]`, one entry at a time."""
  w, hessian = w.T.astype(np.float64), 2 * x.T.astype(np.float64) @ x.astype(np.float64)
  outputs, inputs = w.shape
  hessian += damping * np.diag(hessian).mean() * np.eye(inputs)
  upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
  mask, errors = np.ones(w.shape, bool), np.zeros(w.shape)
  gone = 0
  for start in range(0, inputs, block):
    end = min(start + block, inputs)
    if not m:
      scores = w[:, start:end]**2 / np.diag(upper)[start:end]**2
      total = round(end * outputs * sparsity)
      # In the order of our matrix, rows of inputs: ties go from the end.
      worst = np.argsort(scores.T.ravel(), kind='stable')[:total - gone]
      gone = total
      part = np.ones(scores.T.shape, bool)
      part.ravel()[worst] = False
      mask[:, start:end] = part.T
    for i in range(start, end):
      if m and i % m == 0:
        scores = w[:, i:i + m]**2 / np.diag(upper)[i:i + m]**2
        worst = np.argsort(scores, axis=1, kind='stable')[:, :round(m * sparsity)]
        np.put_along_axis(mask[:, i:i + m], worst, False, axis=1)
      errors[:, i] = np.where(mask[:, i], 0, w[:, i]) / upper[i, i]
      w[:, i:end] -= np.outer(errors[:, i], upper[i, i:end])
    w[:, end:] -= errors[:, start:end] @ upper[start:end, end:]
  return np.where(mask, w, 0).T, mask.T


def sample(rows=40, columns=12, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(80, rows)) @ rng.normal(size=(rows, rows))
  return rng.normal(size=(rows, columns)).astype(np.float32), x.astype(np.float32)


def run(transform, w, x):
  params, state = transform.init({'kernel': w}, stats={'kernel': jnp.asarray(x.T @ x)})
  return transform.apply(params, state)['kernel'], jsp.masks(state)['kernel']


class SparseGptTest(parameterized.TestCase):

  @parameterized.product(block=(8, 16, 64), sparsity=(0.3, 0.5, 0.8), seed=(0, 1))
  def test_equals_the_oracle(self, block, sparsity, seed):
    w, x = sample(seed=seed)
    found, mask = run(jsp.sparsegpt(sparsity, block=block), w, x)
    expected, expected_mask = oracle(w, x, sparsity, block=block)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)

  @parameterized.parameters((2, 4, 8), (1, 4, 128), (4, 8, 8), (3, 5, 20))
  def test_n_of_m_equals_the_oracle(self, n, m, block):
    w, x = sample()
    found, mask = run(jsp.sparsegpt(pattern=jsp.n_m(n, m), block=block, damping=0.05), w, x)
    expected, expected_mask = oracle(w, x, 1 - n / m, block=block, m=m, damping=0.05)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)
    self.assertTrue((np.asarray(mask).reshape(-1, m, 12).sum(1) == n).all())

  @parameterized.parameters((7, 5, 0.5), (40, 1, 0.9), (1, 6, 0.5), (33, 3, 0.0), (5, 1, 0.99))
  @pytest.mark.sampled(2)
  def test_the_count_is_exact_whatever_the_blocks(self, rows, columns, sparsity):
    w, x = sample(rows, columns)
    for block in (4, 16):
      found, mask = run(jsp.sparsegpt(sparsity, block=block), w, x)
      self.assertEqual(int(mask.sum()), max(w.size - round(w.size * sparsity), 1))
      self.assertTrue((found[~mask] == 0).all())
    if not sparsity:
      np.testing.assert_array_equal(found, w)

  def test_the_program_does_not_grow_with_the_rows(self):
    def lines(rows):
      shape = jax.ShapeDtypeStruct((rows, 8), jnp.float32)
      gram = jax.ShapeDtypeStruct((rows, rows), jnp.float32)
      init = lambda w, g: jsp.sparsegpt(0.5, block=16).init({'kernel': w}, stats={'kernel': g})
      return len(jax.jit(init).lower(shape, gram).as_text().splitlines())
    self.assertEqual(lines(32), lines(512))

  def test_a_second_init_changes_nothing(self):
    w, x = sample()
    for transform in (jsp.sparsegpt(0.6, block=16), jsp.sparsegpt(pattern=jsp.n_m(2, 4))):
      once, mask = run(transform, w, x)
      twice, again = run(transform, once, x)
      np.testing.assert_array_equal(twice, once)
      np.testing.assert_array_equal(again, mask)

  def test_then_quantized_or_trained(self):
    w, x = sample()
    stats = {'kernel': jnp.asarray(x.T @ x)}
    for text in ("sparsegpt(0.5) | fake_quantize('int8')", 'sparsegpt(0.5) | nf4(group=8)'):
      transform = jsp.parse(text)
      params, state = transform.init({'kernel': w}, stats=stats)
      out = jsp.densify(transform.apply(params, state))['kernel']
      self.assertGreaterEqual(float((out == 0).mean()), 0.5)
    transform = jsp.sparsegpt(0.5)
    params, state = transform.init({'kernel': w}, stats=stats)
    trained = jax.tree.map(lambda p: p + 1, params)
    out = transform.apply(trained, transform.update(trained, state))['kernel']
    self.assertEqual(float((out == 0).mean()), 0.5)

  def test_spelled_and_refused(self):
    for text, canonical in (
        ('sparsegpt()', 'sparsegpt(0.5)'),
        ('sparsegpt(pattern=n_m(2, 4), block=64, damping=0.1)',
         'sparsegpt(0.5, pattern=n_m(2, 4), block=64, damping=0.1)')):
      self.assertEqual(jsp.spell(jsp.parse(text)), canonical)
    for text, message in (
        ('sparsegpt(0.9, pattern=n_m(2, 4))', 'conflicting targets'),
        ('sparsegpt(1.0)', r'in \[0, 1\), got'), ('sparsegpt(0.5, block=0)', 'positive integer'),
        ('sparsegpt(0.5, damping=2)', r'damping must be .* in \[0, 1\], got 2'),
        ('sparsegpt(0.5, pattern=channel())', 'prunes single entries'),
        ('sparsegpt(0.5, pattern=3)', 'must be a pattern')):
      with self.assertRaisesRegex(ValueError, message):
        jsp.parse(text)
    w, x = sample()
    with self.assertRaisesRegex(ValueError, 'kernel: block must be a multiple of m=4, got 6'):
      run(jsp.sparsegpt(pattern=jsp.n_m(2, 4), block=6), w, x)


if __name__ == '__main__':
  absltest.main()
