"""Overlap and churn against counts by hand and by RigL, and the pictures of masks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse import reports
from jaxsparse.reports import mask_charts


def mask(text):
  return np.array([c == 'x' for c in text])


def copied(state):
  # A step donates its state, so a snapshot is a copy.
  return {name: np.array(m) for name, m in jsp.masks(state).items()}


class OverlapTest(parameterized.TestCase):

  @parameterized.parameters(
      ('xx..', 'x.x.', 0.5, 1 / 3), ('xxxx', 'xxxx', 0.0, 1.0), ('....', '....', 0.0, 1.0),
      ('xx..', '..xx', 1.0, 0.0), ('x', '.', 1.0, 0.0))
  def test_by_hand(self, a, b, hamming, iou):
    found = reports.mask_overlap({'w': mask(a)}, {'w': jnp.asarray(mask(b))})['w']
    self.assertEqual((found.hamming, found.iou), (hamming, iou))

  def test_churn_by_hand(self):
    found = reports.churn([{'w': mask(m)} for m in ('xxxx....', 'xx..xx..', 'xx......')])
    self.assertEqual([tuple(c) for c in found['w']], [(0.5, 0.5), (0.5, 0.0)])
    self.assertEqual(reports.churn([{'w': mask('x')}]), {'w': []})
    self.assertEqual(reports.churn([]), {})

  def test_churn_of_rigl_is_its_drop_fraction(self):
    params = {'kernel': jax.random.normal(jax.random.key(0), (20, 50))}
    transform, tx = jsp.rigl(0.9, every=1, end=100), optax.sgd(0.1)
    ts = jsp.TrainState.create(transform, tx, params)
    step = jsp.train_step(lambda p, x: jnp.square(x @ p['kernel'] - 1).mean(), tx, transform)
    snapshots = [copied(ts.state)]
    for i in range(4):
      ts, _, _ = step(ts, jax.random.normal(jax.random.key(i), (8, 20)))
      snapshots.append(copied(ts.state))
    # As many come as go, and no update drops more than 0.3 of the 100 kept.
    changes = reports.churn(snapshots)['kernel']
    self.assertTrue(any(c.dropped > 0 for c in changes))
    for c in changes:
      self.assertEqual(c.dropped, c.grown)
      self.assertLessEqual(c.dropped, 0.3)

  def test_matrix_is_over_all_weights_together(self):
    snapshots = [{'a': mask('xx'), 'b': mask('x...')}, {'a': mask('xx'), 'b': mask('.x..')}]
    iou = reports.overlap_matrix(snapshots)
    np.testing.assert_allclose(iou, [[1, 0.5], [0.5, 1]])
    hamming = reports.overlap_matrix(snapshots, measure='hamming')
    np.testing.assert_allclose(hamming, [[0, 1 / 3], [1 / 3, 0]])

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, 'other weights'):
      reports.mask_overlap({'a': mask('x')}, {'b': mask('x')})
    with self.assertRaisesRegex(ValueError, 'w: found bool of shape .2,. and bool of shape .1,.'):
      reports.mask_overlap({'w': mask('xx')}, {'w': mask('x')})
    with self.assertRaisesRegex(ValueError, 'w: found float64'):
      reports.mask_overlap({'w': np.ones(2)}, {'w': mask('xx')})
    with self.assertRaisesRegex(ValueError, 'measure is one of hamming, iou'):
      reports.overlap_matrix([{'w': mask('x')}], measure='jaccard')
    with self.assertRaisesRegex(ValueError, 'no snapshots'):
      reports.overlap_matrix([])


class PooledTest(parameterized.TestCase):

  @parameterized.parameters((7, 5, 4), (300, 10, 96), (96, 96, 96), (1, 1_000, 96))
  def test_the_part_kept_of_each_cell(self, rows, columns, most):
    values = np.random.default_rng(0).random((rows, columns)) < 0.3
    found = mask_charts.pooled(values, most)
    self.assertEqual(found.shape, (min(rows, most), min(columns, most)))
    edges = [np.linspace(0, n, m + 1).astype(int) for n, m in zip(values.shape, found.shape)]
    for i, j in ((0, 0), (found.shape[0] - 1, found.shape[1] - 1)):
      cell = values[edges[0][i]:edges[0][i + 1], edges[1][j]:edges[1][j + 1]]
      self.assertAlmostEqual(found[i, j], cell.mean())

  def test_other_ranks(self):
    self.assertEqual(mask_charts.pooled(np.ones((3, 3, 2, 4), bool)).shape, (18, 4))
    self.assertEqual(mask_charts.pooled(np.ones(4, bool)).shape, (1, 4))
    with self.assertRaisesRegex(ValueError, 'bool array with entries'):
      mask_charts.pooled(np.ones((2, 2)))


class PicturesTest(absltest.TestCase):

  def _snapshots(self, n):
    rng = np.random.default_rng(0)
    return [{'dense/kernel': rng.random((40, 30)) < 1 - i / (n + 1),
             'conv': rng.random((3, 3, 2, 4)) < 0.5} for i in range(n)]

  def _size(self, data):
    self.assertEqual(data[:8], b'\x89PNG\r\n\x1a\n')
    return int.from_bytes(data[16:20], 'big'), int.from_bytes(data[20:24], 'big')

  def test_pictures_are_png_and_grow_with_what_they_show(self):
    few, many = self._snapshots(4), self._snapshots(30)
    narrow, wide = (self._size(reports.masks_png(s)) for s in (few, many))
    self.assertLess(narrow[0], wide[0])
    self.assertEqual(narrow[1], wide[1])
    # Of thirty snapshots ten are drawn, so that the picture stays readable.
    self.assertEqual(wide, self._size(reports.masks_png(many[:10], steps=range(0, 100, 10))))
    one, two = ({k: few[0][k] for k in keys} for keys in (['conv'], ['conv', 'dense/kernel']))
    self.assertLess(self._size(reports.sparsity_png(one))[1],
                    self._size(reports.sparsity_png(two))[1])
    self._size(reports.overlap_png(few, steps=[0, 10, 20, 30]))

  def test_refuses(self):
    with self.assertRaisesRegex(ValueError, '0 snapshots'):
      reports.masks_png([])
    with self.assertRaisesRegex(ValueError, '2 snapshots and 1 steps'):
      reports.masks_png(self._snapshots(2), steps=[1])
    with self.assertRaisesRegex(ValueError, 'at least two'):
      reports.overlap_png(self._snapshots(1))
    with self.assertRaisesRegex(ValueError, 'no masks'):
      reports.sparsity_png({})


class NotebookTest(absltest.TestCase):

  def test_states_and_plans_read_well_in_treescope(self):
    try:
      import treescope
    except ImportError:
      self.skipTest('treescope, a dependency of flax, is not installed')
    params = {'dense': {'kernel': jnp.arange(4_096.0).reshape(64, 64)}}
    transform = jsp.magnitude(0.75)
    _, state = transform.init(params)
    text = treescope.render_to_text(state)
    self.assertIn("'dense/kernel': MaskState(", text)
    self.assertIn('true:1_024 false:3_072', text)
    # A mask of thousands of entries is a summary, not its entries.
    self.assertLess(len(text), 1_000)
    self.assertIn('MaskState', treescope.render_to_html(state, compressed=False))
    self.assertIn("scheme='magnitude(0.75)'", treescope.render_to_text(jsp.plan(transform, params)))

  def test_the_library_imports_neither_treescope_nor_matplotlib(self):
    code = ('import sys, jaxsparse, jaxsparse.reports; '
            'print(sorted({"treescope", "matplotlib"} & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    self.assertEqual(done.stdout.strip(), '[]')


if __name__ == '__main__':
  absltest.main()
