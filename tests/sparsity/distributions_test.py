"""Sparsity a layer, against a numpy version and by hand."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest
from absl.testing import parameterized

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

  @parameterized.parameters(distributions.uniform, distributions.pooled)
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
