"""Sparsity a layer, against a numpy version and by hand."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.numerics import axes
from jaxsparse.sparsity import distributions

D = axes.DimensionNumbers


def erk(kernels, copies, sparsity):
  """Densities by the rule of rigl's `get_sparsities_erdos_renyi`: dense layers, then the rest."""
  size = np.array([np.prod(k) * n for k, n in zip(kernels, copies)], float)
  raw = np.array([sum(k) / np.prod(k) for k in kernels])
  dense = np.zeros(len(kernels), bool)
  while not dense.all():
    ones = (size - np.floor(sparsity * size)).sum()
    epsilon = (ones - size[dense].sum()) / (raw * size)[~dense].sum()
    # The reference adds the layer that is furthest above one first.
    worst = np.where(dense, -np.inf, raw * epsilon)
    if worst.max() <= 1:
      break
    dense |= worst == worst.max()
  return np.where(dense, 1.0, raw * epsilon), size


def layout(shape, batch=0):
  """A kernel whose last axis is produced and whose `batch` leading axes are neither."""
  n = len(shape)
  return axes.Layout(shape, 'float32', D(tuple(range(batch, n - 1)), (n - 1,)))


class DistributionsTest(parameterized.TestCase):

  def test_by_hand(self):
    # Raw densities 20/100 and 200/10000; epsilon solves 100 * 0.2 e + 10000 * 0.02 e = 2020.
    found = distributions.erk({'a': layout((10, 10)), 'b': layout((100, 100))}, 0.8)
    self.assertEqual(found['a'], 0.0)   # 0.2 e = 1.84 > 1, so it stays dense
    self.assertAlmostEqual(found['b'], 1 - (2020 - 100) / 10000)

  @hypothesis.settings(max_examples=40)
  @hypothesis.given(
      kernels=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4), min_size=1, max_size=5),
      copies=st.integers(1, 3), sparsity=st.floats(0.0, 0.98))
  def test_erk_like_numpy(self, kernels, copies, sparsity):
    names = [f'w{i}' for i in range(len(kernels))]
    layouts = {n: layout((copies, *k), 1) for n, k in zip(names, kernels)}
    found = distributions.erk(layouts, sparsity)
    density, size = erk(kernels, [copies] * len(kernels), sparsity)
    np.testing.assert_allclose([1 - found[n] for n in names], density, atol=1e-6)
    total = sum((1 - found[n]) * s for n, s in zip(names, size))
    np.testing.assert_allclose(total, (size - np.floor(sparsity * size)).sum(), rtol=1e-6)
    self.assertTrue(all(0 <= s < 1 for s in found.values()))

  def test_a_kernel_counts_its_window(self):
    # 3 x 3 x 16 x 16 has raw density 38 / 2304, 1 x 1 x 16 x 16 has 34 / 256.
    found = distributions.erk({'a': layout((3, 3, 16, 16)), 'b': layout((1, 1, 16, 16))}, 0.9)
    ratio = (1 - found['a']) / (1 - found['b'])
    self.assertAlmostEqual(ratio, (38 / 2304) / (34 / 256))

  @hypothesis.settings(max_examples=40)
  @hypothesis.given(kernels=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1,
                                     max_size=5), tenths=st.integers(0, 9))
  def test_erk_like_jaxpruner_where_its_zeros_are_whole(self, kernels, tenths):
    # Its rule: zeros are floor(s N) a kernel, and all kernels of the largest p become dense.
    kernels = [(10 * a, b) for a, b in kernels]
    size = np.array([a * b for a, b in kernels], float)
    zeros = np.array([tenths * a * b // 10 for a, b in kernels], float)
    p, dense = np.array([(a + b) / (a * b) for a, b in kernels]), np.zeros(len(kernels), bool)
    while not dense.all():
      epsilon = ((size - zeros)[~dense].sum() - zeros[dense].sum()) / (p * size)[~dense].sum()
      if epsilon * p[~dense].max() <= 1:
        break
      dense |= p == p[~dense].max()
    expected = np.where(dense, 0.0, 1 - epsilon * p)
    layouts = {f'w{i}': layout(k) for i, k in enumerate(kernels)}
    for rule in (distributions.erk, distributions.er):   # the same on plain matrices
      found = rule(layouts, tenths / 10)
      np.testing.assert_allclose([found[k] for k in layouts], expected, atol=1e-6)

  def test_er_by_matrix_rows_and_columns(self):
    # Rows 3 * 3 * 16 = 144 and 16, columns 16: (144 + 16) / 2304 and (16 + 16) / 256.
    found = distributions.er({'a': layout((3, 3, 16, 16)), 'b': layout((1, 1, 16, 16))}, 0.9)
    self.assertAlmostEqual((1 - found['a']) / (1 - found['b']), (160 / 2304) / (32 / 256))
    total = 2304 * (1 - found['a']) + 256 * (1 - found['b'])
    self.assertAlmostEqual(total, 231 + 26)   # of each layer what 90 %, rounded down, leaves

  @parameterized.parameters(('float32', 0.5), ('bfloat16', 0.8), ('float32', 0.0))
  def test_pooled_normalized_like_numpy(self, dtype, sparsity):
    rng = np.random.default_rng(0)
    params = {'a': jnp.asarray(100 * rng.normal(size=(5, 7)), dtype),
              'b': jnp.asarray(rng.normal(size=(2, 6, 4)), dtype), 'c': jnp.zeros((3, 3), dtype)}
    transform = jsp.parse(f'magnitude({sparsity}, distribution=pooled_normalized)')
    found = jsp.masks(transform.init(params)[1])
    scores = {k: np.abs(np.asarray(w, 'f')) for k, w in params.items()}
    flat = np.concatenate([(s / (np.linalg.norm(s) + 1e-8)).ravel() for s in scores.values()])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind='stable')[:flat.size - round(flat.size * sparsity)]] = True
    np.testing.assert_array_equal(np.concatenate([found[k].ravel() for k in params]), kept)

  def test_what_pools_scores_says_so_where_there_are_none(self):
    for word in ('static', 'rigl'):
      with self.assertRaisesRegex(ValueError, f'{word} draws .*pooled_normalized'):
        jsp.parse(f'{word}(0.5, distribution=pooled_normalized)')
    with self.assertRaisesRegex(ValueError, 'pooled_normalized ranks single entries'):
      jsp.magnitude(0.5, pattern=jsp.channel(), distribution=jsp.pooled_normalized)

  @parameterized.parameters(distributions.uniform, *distributions.POOLED)
  def test_same_everywhere(self, distribution):
    self.assertEqual(distribution({'a': layout((2, 2)), 'b': layout((3, 3))}, 0.3),
                     {'a': 0.3, 'b': 0.3})

  def test_nothing(self):
    self.assertEqual(distributions.erk({}, 0.5), {})

  def test_one_layer_has_what_was_asked(self):
    # In whole entries: 29 zeros of 35.
    self.assertAlmostEqual(distributions.erk({'a': layout((7, 5))}, 0.83)['a'], 29 / 35)


if __name__ == '__main__':
  absltest.main()
