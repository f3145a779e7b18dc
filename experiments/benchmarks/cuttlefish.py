"""Question: does Cuttlefish find ranks that nobody tuned, at less cost than training dense?

The run loop trains a task dense, with `cuttlefish()`, and at fixed ranks from the start. Every run
is whole: profiling, looks at the spectrum, SVD and the second compilation count. CPU time is that
of all threads of the process, so it can be taken beside other work. Prints a markdown table, means
over seeds with the standard error of the paired difference to dense, then the claims.

`profile` compares the leading layers that Cuttlefish's profile keeps whole with timing every
choice, and `products` times factors of a quarter of the rank, forward and backward, over the whole
weight.

Command: python -m experiments.benchmarks.cuttlefish vision digits-mlp 5
         python -m experiments.benchmarks.cuttlefish language '' 1
         python -m experiments.benchmarks.cuttlefish profile vision digits-mlp
         python -m experiments.benchmarks.cuttlefish products
Peer: fixed ranks, tuned by hand. Limit: FLOPs at the ranks found.
Paper: Wang et al., "Cuttlefish" (arXiv:2305.02538): 5.6 times smaller, 1.2 times faster.
"""

import functools
import importlib
import inspect
import itertools
import pathlib
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

import jaxsparse as jsp
from experiments.benchmarks import block_sparse
from launch.runs import loop
from launch.runs import overlay
from launch.runs import stages

FIXED = (0.5, 0.25, 0.125)
CUTTLEFISH = 'cuttlefish()'


class Run(NamedTuple):
  """What one run was.

  Attributes:
    accuracy: on held-out data, a fraction.
    loss: on held-out data, in the task's own unit.
    parameters: trained numbers at the end.
    compressed: those of the weights that the experiment's pattern names.
    seconds: CPU time from fresh weights to the last step.
    step_seconds: CPU time of a step at the end of the run, median over segments.
    switch: steps done before the factorization; None without one.
    capped: whether the cap brought it.
    looks: share of CPU time that looking at the spectrum took.
    profile: CPU seconds of profiling.
    ranks: by weight.
    losses: by step.
  """

  accuracy: float
  loss: float
  parameters: int
  compressed: int
  seconds: float
  step_seconds: float
  switch: int | None
  capped: bool
  looks: float
  profile: float
  ranks: dict[str, int]
  losses: dict[int, float]


class _Silent:
  """A watch that nobody asks to stop, a pulse that nobody hears, and metrics kept in memory."""

  def __init__(self):
    self.losses = {}

  def reached(self, step):
    del step
    return False

  def at(self, step, phase):
    pass

  def write(self, step, values):
    self.losses[step] = values['loss']

  def flush(self):
    pass

  def close(self):
    pass


def timed(transform: jsp.Transform, spent: dict[str, list[float]]) -> jsp.Transform:
  """Returns the transform, with the CPU time of what it is asked between steps written down."""
  ask = transform.spec.next_stage
  if ask is None:
    return transform

  def next_stage(params, state, course):
    jax.block_until_ready((params, state))  # steps under way are not the question's cost
    started = time.process_time()
    turn = ask(params, state, course)
    kind = 'profile' if course.count == 0 else 'looks'
    spent[kind].append(time.process_time() - started)
    return turn

  return transform._replace(spec=transform.spec._replace(next_stage=next_stage))


def measure(module: Any, config: Any, spelled: str) -> Run:
  """Trains one task under one transform, through the run loop."""
  task = module.build(config)
  spent, events, marks, silent = {'profile': [], 'looks': []}, [], {}, _Silent()
  transform = timed(overlay.recipe(spelled, task.weights), spent)
  with (
    tempfile.TemporaryDirectory() as folder,
    jsp.CheckpointStore(pathlib.Path(folder, 'checkpoints'), transform) as store,
  ):
    program = loop.program(task, transform, loop.make_mesh({'data': -1, 'model': 1}))
    runner = loop.Loop(
      program,
      seed=config.seed,
      store=store,
      open_metrics=lambda after: silent,
      settings=loop.Settings(checkpoint_every=task.steps, log_every=1),
      watch=silent,
      pulse=silent,
      event=lambda name, **facts: events.append({'event': name, **facts}),
      advance=lambda step: marks.update({step: time.process_time()}),
    )
    started = time.process_time()
    ts = runner.run()
  found = next((e for e in events if e['event'] == 'stage'), {})
  names = jsp.label({task.weights: 'yes', '.*': 'no'})
  named = jax.tree.leaves(names(jax.eval_shape(task.init)))
  # Latents hang below their weight, in the same order.
  whole, is_weight = jax.tree.structure(jax.eval_shape(task.init)), iter(named)
  size = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  parts = [(size(part), next(is_weight)) for part in whole.flatten_up_to(ts.params)]
  scores = task.evaluate(runner.program.transform.pack(ts.params, ts.state))
  return Run(
    accuracy=scores['accuracy'],
    loss=scores['bits_per_byte'] if 'bits_per_byte' in scores else scores['loss'],
    parameters=size(ts.params),
    compressed=sum(n for n, kind in parts if kind == 'yes'),
    seconds=marks[task.steps] - started,
    step_seconds=_median_step(marks, task.steps),
    switch=found.get('step') if found.get('recipe') else None,
    capped=bool(found.get('capped')),
    looks=sum(spent['looks']) / (marks[task.steps] - started),
    profile=sum(spent['profile']),
    ranks=dict(found.get('ranks', {})),
    losses=silent.losses,
  )


def _median_step(marks, steps):
  """CPU seconds of a step in the last quarter; segments of ten, as steps run ahead of the host."""
  marked = [marks[s] for s in range(steps - steps // 4, steps - 1, 10)]
  return statistics.median(b - a for a, b in itertools.pairwise(marked)) / 10


def paired(values: Sequence[float], dense: Sequence[float]) -> tuple[float, float]:
  """Returns the mean difference and its standard error, nan for one pair.

  Example:
    >>> paired([2.0, 4.0], [1.0, 1.0])
    (2.0, 1.0)
  """
  differences = [a - b for a, b in zip(values, dense)]
  error = float('nan')
  if len(differences) > 1:
    error = statistics.stdev(differences) / len(differences) ** 0.5
  return statistics.fmean(differences), error


def table(runs: dict[str, list[Run | None]]) -> str:
  """Returns the markdown table; the first transform is dense, and None a run that diverged."""
  head = ['transform', 'parameters', 'compressed weights', 'accuracy, %', 'difference ± s.e.',
          'loss',
          'switch', 'CPU s', 'ms a step after', 'looks, %', 'profile, s']  # fmt: skip
  lines, dense = [head, ['---'] * len(head)], next(iter(runs.values()))
  mean = lambda found, pick: statistics.fmean(map(pick, found))
  for name, found in runs.items():
    if None in found:
      said = f'diverged at {found.count(None)} of {len(found)} seeds'
      lines.append([f'`{name}`', said, *[''] * (len(head) - 2)])
      continue
    difference, error = paired([100 * r.accuracy for r in found], [100 * r.accuracy for r in dense])
    switches = [f'{r.switch}{" (cap)" if r.capped else ""}' for r in found if r.switch]
    lines.append([
      f'`{name}`',
      f'{mean(found, lambda r: r.parameters):,.0f}',
      f'{mean(found, lambda r: r.compressed):,.0f}',
      f'{100 * mean(found, lambda r: r.accuracy):.2f}',
      f'{difference:+.2f} ± {error:.2f}',
      f'{mean(found, lambda r: r.loss):.4f}',
      ', '.join(switches) or '-',
      f'{mean(found, lambda r: r.seconds):.1f}',
      f'{1e3 * mean(found, lambda r: r.step_seconds):.1f}',
      f'{100 * mean(found, lambda r: r.looks):.2f}',
      f'{mean(found, lambda r: r.profile):.2f}',
    ])  # fmt: skip
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def claims(runs: dict[str, list[Run]], steps: int) -> dict[str, tuple[float, str]]:
  """Returns `{claim: (figure, what the issue asks for)}` of Cuttlefish against dense."""
  dense, found = runs['identity()'], runs[CUTTLEFISH]
  ratio = lambda pick: statistics.fmean(pick(a) / pick(b) for a, b in zip(dense, found))
  difference, _ = paired([100 * r.accuracy for r in found], [100 * r.accuracy for r in dense])
  switches = [r.switch or steps for r in found]
  middle = statistics.fmean(switches)
  spike = max((_spike(r) for r in found if r.switch), default=float('nan'))
  return {
    'parameters, times fewer': (ratio(lambda r: r.parameters), '>= 2.5 on images'),
    'compressed weights, times fewer': (ratio(lambda r: r.compressed), '>= 1.3 on language'),
    'accuracy, points': (difference, '>= -0.5'),
    'held-out loss over dense': (1 / ratio(lambda r: r.loss), '<= 1.01 on language'),
    'CPU time of the run, times less': (ratio(lambda r: r.seconds), '>= 1.15'),
    'CPU time of a step after, times less': (ratio(lambda r: r.step_seconds), '>= 1.3'),
    'latest switch, share of the run': (max(switches) / steps, '<= 0.5'),
    'switches, largest deviation from their mean': (
      max(abs(s - middle) for s in switches) / middle, '<= 0.2'),
    'looks, largest share of CPU time': (max(r.looks for r in found), '<= 0.02'),
    'loss within 100 steps of the switch, over before': (spike, '<= 1.05'),
  }  # fmt: skip


def _spike(run):
  """The mean loss of steps 50 to 100 after the switch over that of the 50 before it."""
  mean = lambda low, high: statistics.fmean(x for s, x in run.losses.items() if low < s <= high)
  return mean(run.switch + 50, run.switch + 100) / mean(run.switch - 50, run.switch)


def compare(experiment: str, size: str, seeds: int, say: Callable[[str], None]) -> str:
  """Runs everything and returns table and claims; `say` hears of every run."""
  module = importlib.import_module(f'experiments.{experiment}')
  transforms = ['identity()', CUTTLEFISH, *(f'low_rank({ratio})' for ratio in FIXED)]
  runs: dict[str, list[Run | None]] = {name: [] for name in transforms}
  for seed in range(seeds):
    config = overlay.replace(module.get_config(size), {'seed': seed})
    for name in transforms:
      try:
        run = measure(module, config, name)
      except loop.Diverged as stop:
        if name in ('identity()', CUTTLEFISH):
          raise  # without them there is nothing to compare
        runs[name].append(None)
        say(f'seed {seed} {name}: diverged. {stop}')
        continue
      runs[name].append(run)
      say(f'seed {seed} {name}: accuracy {run.accuracy:.4f}, {run.parameters:,} parameters, '
          f'{run.seconds:.1f} CPU s, switch {run.switch}, ranks {run.ranks}')  # fmt: skip
  lines = [f'- {claim}: {figure:.3f} ({wanted})'
           for claim, (figure, wanted) in claims(runs, config.steps).items()]  # fmt: skip
  return '\n'.join([table(runs), '', *lines])


def profiled(experiment: str, size: str, ratio: float = 0.25, least: float = 1.5) -> str:
  """Returns which leading layers the profile keeps whole, beside a timing of every choice.

  A choice keeps the first k of the layers that may be factored whole and the others at `ratio` of
  their rank. Exhaustive are the median of five timings of each layer, and a whole forward and
  backward pass of each choice.
  """
  module = importlib.import_module(f'experiments.{experiment}')
  task = module.build(module.get_config(size))
  weights, batch = jax.eval_shape(task.init), task.batch(0)
  loss = lambda params, batch, key: task.loss(params, batch, key)[0]
  named, order = jsp.label({task.weights: 'yes', '.*': 'no'})(weights), stages.order(task, weights)
  keep = inspect.signature(jsp.cuttlefish).parameters['keep'].default
  matched = {name for name, kind in _named(named) if kind == 'yes'}
  layers = [n for n in order[1:-1] if n in matched and not re.fullmatch(keep, n)]
  measure = lambda **more: jsp.factor_speedups(
    loss, weights, batch, jax.random.key(0), ratio=ratio, names=layers, **more
  )
  leading = lambda found: len([*itertools.takewhile(lambda n: found[n] < least, layers)])
  once, often = measure(until=least), [measure() for _ in range(5)]
  often = {name: statistics.median(found[name] for found in often) for name in layers}
  step = jax.jit(jax.value_and_grad(jsp.dispatch(loss)))
  axes = jsp.axes_of(task.apply, weights, task.inputs)
  runs = {'dense': functools.partial(step, task.init(), batch, jax.random.key(0))}
  for kept in range(len(layers) + 1):
    chosen = dict.fromkeys(layers[kept:], ratio)
    transform = jsp.low_rank(chosen)
    factors = jax.jit(lambda t=transform: t.pack(*t.init(task.init(), axes=axes)))
    runs[str(kept)] = functools.partial(step, factors(), batch, jax.random.key(0))
  times = block_sparse.ratios(runs, time.process_time)
  shown = lambda found: ', '.join(f'{name} {x:.2f}' for name, x in found.items())
  return '\n'.join([
    f'- the profile, until a layer is {least} times faster: {shown(once)}; keeps {leading(once)}',
    f'- medians of five timings of every layer: {shown(often)}; keep {leading(often)}',
    *(f'- forward and backward, the first {kept} of {len(layers)} whole: '
      f'{times[str(kept)]:.3f} of dense' for kept in range(len(layers) + 1)),
  ])  # fmt: skip


def _named(tree):
  """`(name, leaf)` of each leaf."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    yield '/'.join(str(getattr(key, 'key', getattr(key, 'name', key))) for key in path), leaf


def products(widths: Sequence[int] = (1024, 2048), rows: Sequence[int] = (128, 512)) -> str:
  """Returns the time of factors of a quarter of the rank over the whole weight's, both passes."""
  lines = ['| width | rows | factored over dense (<= 0.6) |', '| --- | --- | --- |']
  for width in widths:
    for n in rows:
      w, x = (jax.ShapeDtypeStruct(shape, 'float32') for shape in ((width, width), (n, width)))
      found = jsp.factor_speedups(lambda p, x: x @ p['w'], {'w': w}, x)
      lines.append(f'| {width} | {n} | {1 / found["w"]:.3f} |')
  return '\n'.join(lines)


def main():
  """Prints what was asked for."""
  match sys.argv[1:]:
    case ['products']:
      print(products())
      return
    case ['profile', experiment, size]:
      print(profiled(experiment, size))
      return
  if len(sys.argv) != 4:
    raise SystemExit('Usage: python -m experiments.benchmarks.cuttlefish EXPERIMENT SIZE SEEDS, '
                     'profile EXPERIMENT SIZE, or products')  # fmt: skip
  print(compare(sys.argv[1], sys.argv[2], int(sys.argv[3]), lambda line: print(line, flush=True)))


if __name__ == '__main__':
  main()
