"""The optimal brain surgeon against its definition in NumPy."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from tests.sparsity import sparsegpt_test


def oracle(w, x, kept, m=None):
  """One column at a time, the inverse of what is left computed anew at each step, in float64."""
  w, hessian = w.astype(np.float64), x.T.astype(np.float64) @ x.astype(np.float64)
  hessian += 0.01 * np.diag(hessian).mean() * np.eye(len(w))
  out, mask = np.zeros_like(w), np.zeros(w.shape, bool)
  for column in range(w.shape[1]):
    left, v = list(range(len(w))), w[:, column].copy()
    while len(left) > kept:
      inverse = np.linalg.inv(hessian[np.ix_(left, left)])
      cost = v[left]**2 / np.diag(inverse)
      if m:
        full = [sum(r // m == row // m for r in left) <= m * kept // len(w) for row in left]
        cost = np.where(full, np.inf, cost)
      p = int(np.argmin(cost))
      v[left] -= inverse[:, p] * v[left][p] / inverse[p, p]
      v[left.pop(p)] = 0
    out[:, column], mask[left, column] = v, True
  return out, mask


class OptimalBrainTest(parameterized.TestCase):

  @parameterized.parameters((0.5, None), (0.8, None), (None, (2, 4)), (None, (1, 4)))
  def test_equals_the_definition(self, sparsity, n_m):
    w, x = sparsegpt_test.sample(16, 5)
    pattern = n_m and jsp.n_m(*n_m)
    found, mask = sparsegpt_test.run(jsp.optimal_brain(sparsity, pattern=pattern), w, x)
    kept = 16 * n_m[0] // n_m[1] if n_m else 16 - round(16 * sparsity)
    expected, expected_mask = oracle(w, x, kept, n_m and n_m[1])
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)

  def test_what_stays_is_the_best_there_is_on_its_places(self):
    w, x = sparsegpt_test.sample(24, 4)
    found, mask = sparsegpt_test.run(jsp.optimal_brain(0.5), w, x)
    gram = x.T.astype(np.float64) @ x
    gram += 0.01 * np.diag(gram).mean() * np.eye(24)
    for column in range(4):
      places = np.flatnonzero(mask[:, column])
      best = np.linalg.solve(gram[np.ix_(places, places)], gram[places] @ w[:, column])
      np.testing.assert_allclose(np.asarray(found)[places, column], best, rtol=2e-3, atol=2e-3)

  def test_methods_in_the_order_of_what_they_know(self):
    w, x = sparsegpt_test.sample(64, 16)
    gram = {'kernel': jnp.asarray(x.T @ x)}
    for methods in (
        ('sparsegpt(0.5, block=16)', 'optimal_brain(0.5)'),
        ('nm(2, 4)', 'sparsegpt(pattern=n_m(2, 4))', 'optimal_brain(pattern=n_m(2, 4))')):
      errors = []
      for text in methods:
        transform = jsp.parse(text)
        out = transform.apply(*transform.init({'kernel': w}, stats=gram))['kernel']
        errors.append(np.linalg.norm(x @ (out - w)))
      self.assertEqual(errors, sorted(errors, reverse=True), methods)


if __name__ == '__main__':
  absltest.main()
