"""Wanda against a slow NumPy oracle of its formula."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp


def oracle(w, x, sparsity, m=None):
  """Equation 1 in float64: column by column, group by group; ties keep the lower row."""
  scores = np.abs(w.astype(np.float64)) * np.linalg.norm(x.astype(np.float64), axis=0)[:, None]
  mask = np.ones(w.shape, bool)
  size = m or len(w)
  for column in range(w.shape[1]):
    for start in range(0, len(w), size):
      group = scores[start:start + size, column]
      for row in np.argsort(-group, kind='stable')[size - round(size * sparsity):]:
        mask[start + row, column] = False
  return mask


def sample(rows=32, columns=9, seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(50, rows)) * rng.exponential(size=rows)
  return rng.normal(size=(rows, columns)).astype(np.float32), x.astype(np.float32)


class WandaTest(parameterized.TestCase):

  @parameterized.product(sparsity=(0.3, 0.5, 0.9), seed=(0, 1))
  def test_equals_the_oracle(self, sparsity, seed):
    w, x = sample(seed=seed)
    stats = jsp.calibrate(lambda p, x: x @ p['kernel'], {'kernel': w}, [x[:20], x[20:]],
                          jsp.input_norm)
    params, state = jsp.wanda(sparsity).init({'kernel': w}, stats=stats)
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], oracle(w, x, sparsity))
    np.testing.assert_array_equal(params['kernel'], w)

  @parameterized.parameters((1, 4), (2, 4), (4, 8))
  def test_n_of_m_equals_the_oracle(self, n, m):
    w, x = sample()
    transform = jsp.wanda(pattern=jsp.n_m(n, m))
    _, state = transform.init({'kernel': w}, stats={'kernel': jnp.linalg.norm(x, axis=0)})
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], oracle(w, x, 1 - n / m, m))

  def test_the_gram_says_the_same_as_the_norms(self):
    w, x = sample()
    masks = [jsp.masks(jsp.wanda(0.5).init({'kernel': w}, stats={'kernel': s})[1])['kernel']
             for s in (jnp.linalg.norm(x, axis=0), jnp.asarray(x.T @ x))]
    np.testing.assert_array_equal(*masks)

  def test_by_eye(self):
    w = jnp.asarray([[4.0, 1.0], [3.0, 9.0], [2.0, 2.0], [1.0, 3.0]])
    stats = {'kernel': jnp.asarray([1.0, 1.0, 10.0, 0.0])}
    for transform, expected in (
        (jsp.wanda(0.5), [[1, 0], [0, 1], [1, 1], [0, 0]]),
        (jsp.wanda(pattern=jsp.n_m(1, 2)), [[1, 0], [0, 1], [1, 1], [0, 0]]),
        (jsp.wanda(0.5, pattern=jsp.unstructured()), [[1, 0], [0, 1], [1, 1], [0, 0]]),
        (jsp.wanda(0.75, pattern=jsp.channel('reduction')), [[0, 0], [0, 0], [1, 1], [0, 0]])):
      _, state = transform.init({'kernel': w}, stats=stats)
      self.assertEqual(jsp.masks(state)['kernel'].astype(int).tolist(), expected)

  def test_columns_compete_by_themselves(self):
    w = jnp.asarray([[9.0, 1.0], [8.0, 2.0]])
    stats = {'kernel': jnp.ones(2)}
    for transform, expected in ((jsp.wanda(0.5), [[1, 0], [0, 1]]),
                                (jsp.wanda(0.5, pattern=jsp.unstructured()), [[1, 0], [1, 0]])):
      _, state = transform.init({'kernel': w}, stats=stats)
      self.assertEqual(jsp.masks(state)['kernel'].astype(int).tolist(), expected)

  def test_as_many_groups_as_rows_are_not_a_gram(self):
    # A convolution with two groups of two rows: each column has its group's norms.
    w = jnp.ones((1, 2, 2))
    axes = {'kernel': jsp.DimensionNumbers((0, 1), (2,))}
    norms = jnp.asarray([[1.0, 2.0], [4.0, 3.0]])
    _, state = jsp.wanda(0.5).init({'kernel': w}, stats={'kernel': norms}, axes=axes)
    self.assertEqual(jsp.masks(state)['kernel'][0].astype(int).tolist(), [[0, 1], [1, 0]])

  def test_spelled(self):
    for text, canonical in (
        ('wanda(0.5)', 'wanda(0.5)'), ('wanda()', 'wanda(0.5)'),
        ('wanda(pattern=n_m(1, 4))', 'wanda(0.75, pattern=n_m(1, 4))'),
        ('wanda(0.5) | fake_quantize("int8")', "wanda(0.5) | fake_quantize('int8')")):
      self.assertEqual(jsp.spell(jsp.parse(text)), canonical)
      self.assertEqual(jsp.spell(jsp.parse(canonical)), canonical)


if __name__ == '__main__':
  absltest.main()
