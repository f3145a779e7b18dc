"""Question: what does each way of pruning cost in accuracy, at which sparsity?

LeNet-300-100 learns 4,000 images of MNIST under each method, 1,000 are held out. Everything but
the transform is the same in every run: optimizer, rate, steps, batches. Prints a markdown table of
accuracies, mean and standard deviation over three seeds, and the claims that follow from it.

Command: python -m experiments.benchmarks.pruning_quality runs/pruning 2
That is `launch.sweep` of `grid()` in runs/pruning, two runs at a time; the same command goes on
where it was stopped. A run of RigL took 19 CPU-seconds, imports and compilation included.

Expected of `claims` (2 shared x86_64 cores, 2026-11-25), in points: dense is at 95.9 %, RigL with
ERK at 90 % loses 0.3, gradual magnitude at 95 % 0.3, straight-through 2:4 0.1; RigL gains 1.3 over
static at 95 %, standard error 0.1 over 5 pairs. Images are not moved here: with `shift=1`, 600
steps and a rate of 3e-3 (one seed) dense reached 97.1 % and RigL at 90 % 93.9 %.

Schedules are shares of the 800 steps: dynamic sparse training until three quarters (Evci et al.,
"Rigging the Lottery", arXiv:1911.11134), gradual pruning from an eighth to three quarters.
"""

import csv
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

import jaxsparse as jsp

DENSE = 'identity()'
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
SEEDS = (0, 1, 2)
PAIRED = (0, 1, 2, 3, 4)  # seeds of the paired comparison
_RAMP = 'cubic({s}, start=100, end=600, every=25)'
_MOVES = 'every=25, end=600'
METHODS = {
  'magnitude at init': 'magnitude({s})',
  'magnitude once, at half time': 'magnitude(at_step(400, {s}))',
  'gradual magnitude, uniform': f'magnitude({_RAMP})',
  'gradual magnitude, ERK': f'magnitude({_RAMP}, distribution=erk)',
  'gradual magnitude, pooled': f'magnitude({_RAMP}, distribution=pooled)',
  'gradual random': f"prune('random', schedule={_RAMP})",
  'SNIP after one step, pooled': "prune('snip', schedule=at_step(1, {s}), distribution=pooled)",
  'movement': f'movement({_RAMP})',
  'static, ERK': 'static({s}, distribution=erk)',
  'SET, ERK': f'sparse_evolution({{s}}, {_MOVES}, distribution=erk)',
  'SNFS, ERK': f'snfs({{s}}, {_MOVES}, distribution=erk)',
  'RigL, uniform': f'rigl({{s}}, {_MOVES})',
  'RigL, ERK': f'rigl({{s}}, {_MOVES}, distribution=erk)',
  'Top-KAST, ERK': 'top_kast({s}, every=25, distribution=erk)',
  'straight-through': 'straight_through({s}, every=10)',
  'AC/DC': 'ac_dc({s}, start=100, every=50, end=600)',
}
PATTERNED = {  # sparsity is the pattern's
  '2:4 at init': 'nm(2, 4)',
  '2:4 straight-through': 'straight_through(0.5, pattern=n_m(2, 4), every=10)',
  '2:4 SR-STE': 'sr_ste(2, 4, every=10)',
}
_PAIR = ('RigL, ERK', 'static, ERK')
_LOSSES = {  # the most that may be lost against dense, in points
  ('RigL, ERK', 0.9): 0.5,
  ('gradual magnitude, uniform', 0.95): 1.0,
  ('2:4 straight-through', 0.5): 0.3,
}


def spelled(method: str, sparsity: float) -> str:
  """Returns the transform of a cell of the table.

  Example:
    >>> spelled('RigL, ERK', 0.9)
    'rigl(0.9, every=25, end=600, distribution=erk)'
  """
  if method in PATTERNED:
    return PATTERNED[method]
  return METHODS[method].format(s=sparsity)


def grid() -> str:
  """Returns every run, in the language of `launch.sweep`; what `claims` needs comes first."""
  cells = [spelled(method, s) for method in METHODS for s in SPARSITIES]
  rest = [cell for cell in (*PATTERNED.values(), *cells) if cell not in _claimed()]
  return f'{claims_grid()} + seed={list(SEEDS)} * transform={rest}'


def claims_grid() -> str:
  """Returns only the runs that `claims` needs."""
  pair, more = [spelled(m, 0.95) for m in _PAIR], list(PAIRED[len(SEEDS) :])
  return f'seed={list(SEEDS)} * transform={_claimed()} + seed={more} * transform={pair}'


def _claimed():
  return [DENSE, *(spelled(m, s) for m, s in (*_LOSSES, *((m, 0.95) for m in _PAIR)))]


def accuracies(path: pathlib.Path) -> dict[tuple[str, int], float]:
  """Returns `{(canonical transform, seed): accuracy in percent}` of a sweep's results.csv."""
  with open(path, encoding='utf-8', newline='') as file:
    return {
      (row['transform'], int(row['seed'])): 100 * float(row['accuracy'])
      for row in csv.DictReader(file)
      if row['status'] == 'finished'
    }


class Results:
  """The accuracies of a sweep by cell.

  Args:
    found: from `accuracies`.
  """

  def __init__(self, found: Mapping[tuple[str, int], float]):
    self._found = found

  def of(self, transform: str, seeds: Sequence[int] = SEEDS) -> list[float]:
    """Accuracies of a transform, in percent, of those seeds that have finished."""
    name = jsp.spell(jsp.parse(transform))
    return [self._found[name, seed] for seed in seeds if (name, seed) in self._found]

  def mean(self, transform: str) -> float:
    """Mean over `SEEDS`.

    Raises:
      ValueError: a seed has not finished.
    """
    values = self.of(transform)
    if len(values) < len(SEEDS):
      raise ValueError(f'{transform}: {len(values)} seeds have finished, expected {len(SEEDS)}.')
    return statistics.fmean(values)


def table(results: Results) -> str:
  """Returns the markdown table, a method a line; a cell with too few seeds says how many."""
  head = ['accuracy, %', *(f'{100 * s:g} %' for s in SPARSITIES)]
  lines = [head, ['---'] * len(head), ['dense', _cell(results.of(DENSE)), '', '', '']]
  for method in METHODS:
    lines.append([method, *(_cell(results.of(spelled(method, s))) for s in SPARSITIES)])
  for method, transform in PATTERNED.items():
    lines.append([method, _cell(results.of(transform)), '', '', ''])
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _cell(values):
  if not values:
    return '-'
  if len(values) < 2:
    return f'{values[0]:.1f} (1 seed)'
  short = '' if len(values) == len(SEEDS) else f' ({len(values)} seeds)'
  return f'{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}{short}'


def paired(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
  """Returns the mean of the paired differences and its standard error.

  Raises:
    ValueError: unequal lengths, or fewer than two pairs.

  Example:
    >>> paired([3.0, 4.0], [1.0, 2.0])
    (2.0, 0.0)
  """
  if len(first) != len(second) or len(first) < 2:
    raise ValueError(f'Found {len(first)} and {len(second)} values, expected pairs, at least two.')
  differences = [a - b for a, b in zip(first, second)]
  return statistics.fmean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def claims(results: Results) -> dict[str, tuple[float, float]]:
  """Returns `{claim: (points, bound)}`: a loss and the most it may be, or a gain and the least.

  Raises:
    ValueError: a run that a claim needs has not finished.
  """
  dense = results.mean(DENSE)
  made = {}
  for (method, sparsity), most in _LOSSES.items():
    lost = dense - results.mean(spelled(method, sparsity))
    made[f'{method} at {100 * sparsity:g} % loses'] = (lost, most)
  pair = [results.of(spelled(method, 0.95), PAIRED) for method in _PAIR]
  gain, error = paired(*pair)
  made[f'RigL over static, ERK, at 95 %, {len(pair[0])} pairs, gains'] = (gain, 2 * error)
  return made


def sweep(workdir: pathlib.Path, workers: int, *, grid: str) -> int:
  """Runs or resumes the sweep; returns its exit code."""
  command = [
    sys.executable, '-m', 'launch.sweep', '--experiment=vision', '--size=mnist-mlp',
    f'--workers={workers}', f'--workdir={workdir}', f'--grid={grid}',
    '--options=checkpoint_every=800, log_every=100, tensorboard=False',
  ]  # fmt: skip
  return subprocess.run(command, check=False).returncode


def main():
  """Runs the sweep in a directory, prints the table and the claims."""
  if len(sys.argv) not in (2, 3) or sys.argv[1].startswith('-'):
    raise SystemExit('Usage: python -m experiments.benchmarks.pruning_quality WORKDIR [WORKERS]')
  workdir = pathlib.Path(sys.argv[1])
  code = sweep(workdir, int(sys.argv[2]) if len(sys.argv) == 3 else 1, grid=grid())
  results = Results(accuracies(workdir / 'results.csv'))
  print(table(results) + '\n')
  for claim, (points, bound) in claims(results).items():
    print(f'{claim} {points:.2f} points; bound {bound:.2f}')
  raise SystemExit(code)


if __name__ == '__main__':
  main()
