"""The table of pruning qualities: its grid, its arithmetic, and (slow) its claims on real runs."""

import pytest

import jaxsparse as jsp
from experiments import images
from experiments import packaged
from experiments.benchmarks import pruning_quality as quality

_RIGL, _STATIC = (quality.spelled(m, 0.95) for m in ('RigL, ERK', 'static, ERK'))


def _csv(folder, rows):
  lines = ['name,status,transform,seed,accuracy']
  lines += [f'"run","{s}","{jsp.spell(jsp.parse(t))}",{k},{a}' for s, t, k, a in rows]
  path = folder / 'results.csv'
  path.write_text('\n'.join(lines) + '\n')
  return quality.Results(quality.accuracies(path))


def test_every_cell_is_one_spelled_transform():
  cells = [quality.spelled(m, s) for m in quality.METHODS for s in quality.SPARSITIES]
  cells += quality.PATTERNED.values()
  canonical = {jsp.spell(jsp.parse(cell)) for cell in cells}
  assert len(canonical) == len(cells) and len(quality.METHODS) >= 12
  assert all(repr(cell) in quality.grid() or f'"{cell}"' in quality.grid() for cell in cells)


def test_table_holds_mean_and_deviation_of_finished_runs(tmp_path):
  rows = [('finished', quality.DENSE, seed, 0.95 + 0.01 * seed) for seed in quality.SEEDS]
  rows += [('finished', _RIGL, 0, 0.9), ('failed', _RIGL, 1, '')]
  lines = quality.table(_csv(tmp_path, rows)).split('\n')
  assert len(lines) == 3 + len(quality.METHODS) + len(quality.PATTERNED)
  assert lines[2].startswith('| dense | 96.0 ± 1.0 |')
  assert '| RigL, ERK | - | - | - | 90.0 (1 seed) |' in lines
  assert {line.count('|') for line in lines} == {2 + len(quality.SPARSITIES)}


def test_claims_compare_means_and_pairs(tmp_path):
  rows = [('finished', quality.DENSE, seed, 0.97) for seed in quality.SEEDS]
  for method, sparsity, accuracy in (
    ('RigL, ERK', 0.9, 0.966), ('gradual magnitude, uniform', 0.95, 0.95),
    ('2:4 straight-through', 0.5, 0.968),
  ):  # fmt: skip
    cell = quality.spelled(method, sparsity)
    rows += [('finished', cell, seed, accuracy) for seed in quality.SEEDS]
  with pytest.raises(ValueError, match='pairs'):
    quality.claims(_csv(tmp_path, rows))
  rows += [('finished', _RIGL, seed, 0.95) for seed in quality.PAIRED]
  rows += [('finished', _STATIC, seed, 0.94 - 0.01 * (seed % 2)) for seed in quality.PAIRED]
  (rigl, magnitude, two_four, gain) = quality.claims(_csv(tmp_path, rows)).values()
  assert rigl == (pytest.approx(0.4), 0.5) and two_four == (pytest.approx(0.2), 0.3)
  assert magnitude == (pytest.approx(2.0), 1.0)
  # Differences 1, 2, 1, 2, 1: mean 1.4, variance 0.3, standard error sqrt(0.3 / 5).
  assert gain == (pytest.approx(1.4), pytest.approx(2 * 0.06**0.5))


def test_a_claim_needs_all_its_seeds(tmp_path):
  results = _csv(tmp_path, [('finished', quality.DENSE, 0, 0.97)])
  with pytest.raises(ValueError, match=r'identity\(\): 1 seeds have finished, expected 3'):
    quality.claims(results)


@pytest.mark.slow
def test_claims_hold(tmp_path):
  try:
    images.load('mnist')
  except packaged.MissingError as error:
    pytest.skip(str(error))
  grid = quality.claims_grid()
  assert quality.sweep(tmp_path / 'sweep', workers=2, grid=grid) == 0
  results = quality.Results(quality.accuracies(tmp_path / 'sweep' / 'results.csv'))
  *losses, (gain, least) = quality.claims(results).values()
  assert all(lost <= most for lost, most in losses), losses
  assert gain >= least > 0
