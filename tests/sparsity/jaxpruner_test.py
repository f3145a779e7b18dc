"""Our rules against JaxPruner's recorded answers; and, where we depart, against slow numpy.

`tests/golden/jaxpruner_record.py` made the record. How a case of theirs is said here:

- an N:M `axis`, a channel axis: that axis is the reduction (output) axis, given as roles;
- blocks are over their first two axes, with the others pooled: as a matrix `[H, W * rest]` with
  blocks of `bh` x `bw * rest`; a maximum in place of the mean is a criterion of one's own;
- their polynomial counts from `t + 1`: it is `cubic(start=start - 1, end=end - 1)`;
- their loop chooses masks before a step, ours after it: a count earlier;
- their RigL and SET skip the optimizer where masks move: call `update` and `realign` without it.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from jaxsparse.core import axes
from jaxsparse.core import schedules
from jaxsparse.numerics import select
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import regrowth
from tests.sparsity import oracles


@functools.cache
def record():
  path = pathlib.Path(__file__).parents[1] / 'golden' / 'jaxpruner.npz'
  arrays = dict(np.load(path))
  cases = json.loads(arrays.pop('cases').tobytes())
  return cases, arrays, np.unpackbits(arrays.pop('masks')).astype(bool)


def mask_of(case):
  size = int(np.prod(case['shape']))
  return record()[2][case['at']:case['at'] + size].reshape(case['shape'])


def cases_of(group):
  cases, arrays, _ = record()
  return [(c, arrays[f'scores/{c["scores"]}']) for c in cases[group]]


# Compiled once for a shape; operation by operation takes several times as long.
_top_k_mask, _top_k_masks = jax.jit(select.top_k_mask), jax.jit(select.top_k_masks)


def half(units, sparsity):
  """Whether rounding may go either way: there the two differ by one at most."""
  return abs(units * (1 - sparsity) % 1 - 0.5) < 1e-4


def check_count(units, sparsity, theirs, case):
  ours = masking.kept_of(units, sparsity)
  assert abs(ours - theirs) <= half(units, sparsity), (ours, theirs, case)


def check_all(pattern, found):
  """[(scores [R, O], kept, expected)] in one call per shape, as a batch of matrices."""
  for shape in {s.shape for s, _, _ in found}:
    same = [f for f in found if f[0].shape == shape]
    scores, kept, expected = (np.stack(x) for x in zip(*same))
    ours = jax.jit(pattern.mask)(scores, np.asarray(kept, np.int32)[:, None, None])
    np.testing.assert_array_equal(ours, expected)


class RulesTest(parameterized.TestCase):

  def test_unstructured(self):
    found = []
    for case, scores in cases_of('unstructured'):
      expected = mask_of(case)
      check_count(scores.size, case['sparsity'], expected.sum(), case)
      flat = lambda x: x.reshape(1, -1)
      found.append((flat(scores), expected.sum(), flat(expected)))
    self.assertGreaterEqual(len(found), 108)
    check_all(jsp.unstructured(), found)

  def test_n_m_without_ties_along_any_axis(self):
    for case, scores in cases_of('n_m'):
      axis, others = case['axis'], [a for a in range(scores.ndim) if a != case['axis']]
      layout = axes.Layout(scores.shape, 'float32', axes.DimensionNumbers((axis,), tuple(others)))
      pattern = jsp.n_m(case['n'], case['m'])
      matrix = layout.to_matrix(scores)
      expected = layout.to_matrix(mask_of(case))
      if case['scores'] == 'ties':   # theirs go to the higher index, ours to the lower
        expected = oracles.n_of_m(matrix, case['n'], case['m'])
      np.testing.assert_array_equal(pattern.mask(jnp.asarray(matrix), case['n']), expected)

  def test_blocks(self):
    groups, wrong = {}, 0
    for case, scores in cases_of('block'):
      height, width = scores.shape[:2]
      rest = scores.size // (height * width)
      rows, columns = case['rows'], case['columns'] * rest
      blocks = -(-height // rows) * -(-width // case['columns'])
      matrix, expected = scores.reshape(height, -1), mask_of(case)
      pooled = matrix if case['mean'] else _maxima(matrix, rows, columns)
      kept = masking.kept_of(blocks, case['sparsity'])
      if expected.shape == scores.shape:
        expected, slow = expected.reshape(height, -1), _blocks(matrix, case, rows, columns, kept)
        if half(blocks, case['sparsity']) and (expected != slow).any():
          kept += 1   # the two counts differ by one
          if (expected != _blocks(matrix, case, rows, columns, kept)).any():
            kept -= 2
      else:   # they pad by the remainder in place of what is missing
        wrong += 1
        expected = _blocks(matrix, case, rows, columns, kept)
      groups.setdefault((rows, columns), []).append((pooled, kept, expected))
    self.assertGreater(wrong, 20)
    for (rows, columns), found in groups.items():
      check_all(jsp.block(rows, columns, pad=True), found)

  def test_channels(self):
    found = []
    for case, scores in cases_of('channel'):
      others = tuple(a for a in range(scores.ndim) if a != case['axis'])
      layout = axes.Layout(scores.shape, 'float32', axes.DimensionNumbers(others, (case['axis'],)))
      expected = layout.to_matrix(mask_of(case))
      check_count(expected.shape[1], case['sparsity'], expected[0].sum(), case)
      found.append((layout.to_matrix(scores), expected[0].sum(), expected))
    check_all(jsp.channel(), found)

  def test_erk(self):
    for case in record()[0]['erk']:
      layouts = {k: _kernel(case['shapes'][k]) for k in case['found']}
      ours = distributions.erk(layouts, case['sparsity'])
      for key, theirs in case['found'].items():
        self.assertAlmostEqual(ours[key], theirs, delta=1e-6, msg=case)

  def test_trees(self):
    cases, arrays, _ = record()
    for case in cases['tree']:
      get = lambda kind: {k: arrays[f'{case["tree"]}/{kind}/{k}'] for k in case['masks']}
      ws, grads = get('w'), get('g')
      expected = {k: mask_of(c) for k, c in case['masks'].items()}
      score = getattr(criteria, case['score'])
      names = sorted(ws)
      if case['score'] == 'magnitude':
        scores = {k: np.abs(w) for k, w in ws.items()}
      else:
        scores = {k: np.abs(w * grads[k]) for k, w in ws.items()}
      if case['rule'] == 'pooled_normalized':
        scores = {k: s / (np.linalg.norm(s) + np.float32(1e-8)) for k, s in scores.items()}
      if case['rule'].startswith('pooled'):
        check_count(sum(w.size for w in ws.values()), case['sparsity'],
                    sum(m.sum() for m in expected.values()), case)
        ours = dict(zip(names, _top_k_masks([scores[k] for k in names],
                                            sum(m.sum() for m in expected.values()))))
      else:
        shares = getattr(distributions, case['rule'])(
            {k: _kernel(w.shape) for k, w in ws.items()}, case['sparsity'])
        for k, w in ws.items():
          check_count(w.size, shares[k], expected[k].sum(), case)
        ours = {k: _top_k_mask(scores[k], expected[k].sum()) for k in names}
      for k in names:
        np.testing.assert_array_equal(ours[k], expected[k], str((case['rule'], k)))
      if case['tree'] == 'conv' and case['sparsity'] == 0.8 and case['rule'] != 'pooled_normalized':
        nested = lambda tree: {k: {'kernel': jnp.asarray(v)} for k, v in tree.items()}
        transform = jsp.prune(score, schedule=0.8,
                              distribution=getattr(distributions, case['rule']))
        _, state = transform.init(nested(ws), grads=nested(grads))
        for k in names:
          np.testing.assert_array_equal(jsp.masks(state)[f'{k}/kernel'], expected[k])

  def test_drop_and_grow(self):
    cases, arrays, _ = record()
    for i, case in enumerate(cases['drop_grow']):
      matrix = lambda x: x.reshape(-1, x.shape[-1])
      (w, growth), old = map(matrix, arrays[f'drop_grow/{i}']), matrix(mask_of(case['old']))
      active, new = int(old.sum()), matrix(mask_of(case['new']))
      counts = {round(case['fraction'] * active)}
      if half(active, case['fraction']):
        counts |= {int(case['fraction'] * active), int(case['fraction'] * active) + 1}
      agree = []
      for count in counts:
        # By rows it would be another selection: theirs is over all entries.
        flat = lambda x: jnp.asarray(x.reshape(1, -1))
        ours = regrowth.drop_and_grow(*map(flat, (w, old, growth)), active, count / active)
        agree.append((np.asarray(ours) == new.reshape(1, -1)).all())
      self.assertTrue(any(agree), (case, active))

  def test_schedules(self):
    for case in record()[0]['schedule']:
      start, end, every = case['start'], case['end'], case['every']
      shape = {1: schedules.linear, 3: schedules.cubic}[case['power']]
      ours = shape(case['target'], start=max(start - 1, 0), end=end - 1, every=1)
      if start:   # theirs begins a step before count 0
        values = [ours.value(t) for t in range(len(case['values']))]
        np.testing.assert_allclose(values, case['values'], atol=1e-6)
      due = [t for t in schedules.every(every, -(-start // every) * every, end).steps()
             if t % every == 0]
      self.assertEqual(due, case['due'])


def _kernel(shape):
  return axes.Layout(tuple(shape), 'float32',
                     axes.DimensionNumbers((0,), tuple(range(1, len(shape)))))


def _tiles(matrix, rows, columns):
  return [(slice(r, r + rows), slice(c, c + columns))
          for r in range(0, matrix.shape[0], rows) for c in range(0, matrix.shape[1], columns)]


def _maxima(matrix, rows, columns):
  out = np.empty_like(matrix)
  for tile in _tiles(matrix, rows, columns):
    out[tile] = matrix[tile].max()
  return out


def _blocks(matrix, case, rows, columns, kept):
  """Slow: tile by tile, ties to the first."""
  tiles = _tiles(matrix, rows, columns)
  pool = np.mean if case['mean'] else np.max
  chosen = oracles.largest([pool(matrix[tile].astype(np.float64)) for tile in tiles], kept)
  out = np.zeros(matrix.shape, bool)
  for tile, keep in zip(tiles, chosen):
    out[tile] = keep
  return out


OPTIMIZERS = {'sgd': optax.sgd(0.1), 'momentum': optax.sgd(0.1, momentum=0.9),
              'adam': optax.adam(0.05), 'adamw': optax.adamw(0.05, weight_decay=0.1)}
SNAPSHOTS = (2, 5, 8, 13)
UPDATES = (3, 6, 9)


class TrajectoriesTest(parameterized.TestCase):
  """The recorded gradients do not depend on the weights: the loss is `sum(w' g_t)`."""

  def recorded(self, method, optimizer):
    cases, arrays, _ = record()
    case, = [c for c in cases['trajectory']
             if c['method'] == method and c['optimizer'] == optimizer]
    return case, mask_of(case['masks']), arrays[f'trajectory/{method}/{optimizer}'], arrays

  @parameterized.product(method=['magnitude', 'straight_through', 'static'],
                         optimizer=list(OPTIMIZERS))
  def test_through_the_train_step(self, method, optimizer):
    case, masks, weights, arrays = self.recorded(method, optimizer)
    tx = OPTIMIZERS[optimizer]
    if method == 'static':
      first = jnp.asarray(mask_of(case['first']), jnp.float32)
      transform = jsp.prune(lambda w: first, schedule=0.5)
    elif method == 'magnitude':
      transform = jsp.magnitude(jsp.schedule(lambda c: 0.75 * (1 - (1 - c / 9) ** 3), start=2,
                                             end=8, every=3))
    else:
      transform = jsp.straight_through(0.75)
    ts = jsp.TrainState.create(transform, tx, {'kernel': jnp.asarray(arrays['trajectory/start'])})
    step = jsp.train_step(lambda p, g: (p['kernel'] * g).sum(), tx, transform)
    for t, g in enumerate(arrays['trajectory/grads']):
      np.testing.assert_array_equal(jsp.masks(ts.state)['kernel'], masks[t], f'step {t}')
      ts, _, _ = step(ts, jnp.asarray(g))
      if t in SNAPSHOTS:
        seen = np.asarray(ts.params['kernel'])
        expected = weights[SNAPSHOTS.index(t)]
        if method != 'straight_through':   # ours are masked by the next masks already
          seen, expected = (np.where(masks[min(t + 1, 13)], x, 0) for x in (seen, expected))
        np.testing.assert_allclose(seen, expected, atol=3e-5)

  @parameterized.product(method=['rigl', 'rigl_cosine', 'sparse_evolution'],
                         optimizer=list(OPTIMIZERS))
  def test_with_the_optimizer_skipped_where_masks_move(self, method, optimizer):
    case, masks, weights, arrays = self.recorded(method, optimizer)
    tx = OPTIMIZERS[optimizer]
    transform = (jsp.rigl(0.5, every=3, end=11, alpha=0.5) if method == 'rigl_cosine' else
                 jsp.rigl(0.5, every=3, end=10**6, alpha=0.3))
    params, state = transform.init({'kernel': jnp.asarray(arrays['trajectory/start'])})
    first = state.weights['kernel']._replace(mask=jnp.asarray(mask_of(case['first'])))
    state.weights['kernel'] = first
    opt_state = tx.init(params)
    for t, g in enumerate(arrays['trajectory/grads']):
      if t in UPDATES:
        score = arrays['trajectory/draws'][UPDATES.index(t)] if method == 'sparse_evolution' else g
        new = transform.update(params, state, grads={'kernel': jnp.asarray(score)}, refresh=True)
        params, opt_state = jsp.realign(tx, params, opt_state, state, new)
        state = new
      else:
        seen = {'kernel': jnp.where(state.weights['kernel'].mask, g, 0)}
        updates, opt_state = tx.update(seen, opt_state, params)
        params = optax.apply_updates(params, updates)
        state = transform.update(params, state, grads={'kernel': jnp.asarray(g)}, refresh=False)
      np.testing.assert_array_equal(state.weights['kernel'].mask, masks[t], f'step {t}')
      if t in SNAPSHOTS:
        view = transform.apply(params, state)['kernel']
        np.testing.assert_allclose(view, weights[SNAPSHOTS.index(t)], atol=3e-5)


class DeparturesTest(parameterized.TestCase):

  def test_n_m_is_on_the_reduction_axis_and_the_lower_row_wins(self):
    w = np.random.default_rng(0).integers(-2, 3, (12, 5)).astype(np.float32)
    _, state = jsp.nm(2, 4).init({'kernel': jnp.asarray(w)})
    np.testing.assert_array_equal(jsp.masks(state)['kernel'], oracles.n_of_m(np.abs(w), 2, 4))

  @parameterized.parameters((0.9, 10, 99, 20), (0.5, 3, 17, 5), (0.8, 7, 8, 9))
  def test_the_phase_starts_at_start_and_the_end_is_forced(self, target, start, end, every):
    expected = [t for t in range(end + 5)
                if start <= t <= end and ((t - start) % every == 0 or t == end)]
    schedule = schedules.cubic(target, start=start, end=end, every=every)
    steps, sparsities = schedule.table()
    self.assertEqual(steps.tolist(), expected)
    slow = [target * (1 - (1 - (t - start) / (end - start)) ** 3) for t in expected]
    np.testing.assert_allclose(sparsities, [0, *slow])
    self.assertEqual(sparsities[-1], target)

  def test_all_zeros_is_an_error_and_one_always_stays(self):
    with self.assertRaisesRegex(ValueError, r'in \[0, 1\), got 1.0'):
      jsp.magnitude(1.0)
    _, state = jsp.magnitude(0.999).init({'kernel': jnp.ones((2, 3))})
    self.assertEqual(int(jsp.masks(state)['kernel'].sum()), 1)


if __name__ == '__main__':
  absltest.main()
