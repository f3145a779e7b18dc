"""Question: what does pruning add to a training step, ordinary or with a mask update?

Every side runs Adam on the same model and batch, on one core; time is CPU time of the process.
Sides take turns in a new random order each round, and a figure is the median over rounds of the
ratio to the dense step of the same round; so is the CPU time of compiling an ordinary step. Beside
it stands what causes it: conditionals, sorts and temporary bytes of the compiled step.

Command: python -m experiments.benchmarks.pruning_overhead [mlp|cnn|transformer ...]
Peer: JaxPruner, where `import jaxpruner` works (it is on no registry: put a checkout on the path).
Limits: an ordinary step 1.00 to 1.01 (one read of the mask), a mask update about 1.5 (MLP), 1.02
(CNN) and 1.1 (transformer).
"""

import functools
import importlib
import math
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxsparse as jsp
from experiments.benchmarks import pruned_models

_ROUNDS, _SECONDS = 15, 0.15
_COMPILATIONS = 7
_TX = optax.adam(1e-3)
_METHODS = {
  'magnitude': 'magnitude(cubic(0.8, end=1000000))',
  'magnitude pooled': 'magnitude(cubic(0.8, end=1000000), distribution=pooled)',
  'magnitude 2:4': 'magnitude(at_step(0, 0.5), pattern=n_m(2, 4))',
  'static': 'static(0.8)',
  'SET': 'sparse_evolution(0.8)',
  'rigl': 'rigl(0.8)',
  'snfs': 'snfs(0.8)',
  'ac_dc': 'ac_dc(0.8)',
  'movement': 'movement(cubic(0.8, end=1000000))',
  'top_kast': 'top_kast(0.8)',
  'STE': 'straight_through(0.8)',
  'STE 2:4': 'straight_through(0.5, pattern=n_m(2, 4))',
  'SR-STE': 'sr_ste(2, 4)',
  'soft_threshold': 'soft_threshold()',
  'l0 channels': "l0(unit='output')",
}


class Side(NamedTuple):
  """One program under the clock: `step(*carry, *batch) -> (*carry, loss)`, carry donated."""

  lowered: jax.stages.Lowered
  step: Callable
  carry: tuple
  conditionals: int
  sorts: int
  temporary_bytes: int


def side(step: Callable, carry: tuple, batch: tuple) -> Side:
  """Returns a step compiled by itself, with what its program holds.

  Args:
    step: pure.
    carry: what it hands on, donated.
    batch: arrays.
  """
  carry = jax.tree.map(jnp.copy, carry)
  lowered = jax.jit(step, donate_argnums=tuple(range(len(carry)))).lower(*carry, *batch)
  compiled = lowered.compile()
  text = compiled.as_text()
  count = lambda word: len(re.findall(rf'\s{word}\(', text))
  temporary = compiled.memory_analysis().temp_size_in_bytes
  return Side(lowered, compiled, carry, count('conditional'), count('sort'), temporary)


def dense(case: pruned_models.Case) -> Side:
  """Returns the step without pruning."""

  def step(params, opt_state, *batch):
    loss, grads = jax.value_and_grad(case.loss)(params, *batch)
    updates, opt_state = _TX.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss

  return side(step, (case.params, _TX.init(case.params)), case.batch)


def ours(case: pruned_models.Case, text: str, *, refresh: bool) -> Side:
  """Returns the ordinary step of a method, or the one with a mask update."""
  in_fours = 'n_m(2, 4)' in text or 'sr_ste(2, 4)' in text
  transform = jsp.at(case.fours if in_fours else case.weights, jsp.parse(text))
  step = jsp.train_step(case.loss, _TX, transform)
  ts = jsp.TrainState.create(transform, _TX, case.params)

  def run(params, state, opt_state, *batch):
    return step.compiled.__wrapped__(refresh, params, state, opt_state, *batch)[:4]

  return side(run, ts[:3], case.batch)


def peers(case: pruned_models.Case) -> dict[str, Side]:
  """Returns JaxPruner's steps by name; none where it is not installed."""
  if not hasattr(jax, 'tree_map'):
    jax.tree_map = jax.tree.map  # removed from jax in 0.6, called by the peer everywhere
  try:
    peer = importlib.import_module('jaxpruner')
  except ImportError as error:
    print(f'JaxPruner is left out: {error}')
    return {}
  # Leaves without a mask stop its RigL on today's jax, so biases are pruned too.
  every_leaf = functools.partial(
    peer.sparsity_distributions.uniform, sparsity=0.8, filter_fn=lambda path, param: True
  )
  periodic = functools.partial(peer.sparsity_schedules.PeriodicSchedule, update_end_step=10**9)
  schedules = {
    '': periodic(update_freq=10**6, update_start_step=1),
    ', update': periodic(update_freq=1, update_start_step=0),
  }
  algorithms = {'magnitude': 'MagnitudePruning', 'rigl': 'RigL', 'STE': 'SteMagnitudePruning'}
  found = {}
  for word, algorithm in algorithms.items():
    for when, schedule in schedules.items():
      updater = getattr(peer, algorithm)(
        sparsity_distribution_fn=every_leaf, scheduler=schedule, rng_seed=jax.random.PRNGKey(0)
      )
      tx = updater.wrap_optax(_TX)

      def step(params, opt_state, *batch, updater=updater, tx=tx):
        forward = updater.pre_forward_update(params, opt_state)
        loss, grads = jax.value_and_grad(case.loss)(forward, *batch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return updater.post_gradient_update(params, opt_state), opt_state, loss

      try:
        start = (case.params, tx.init(case.params))
        found[f'JaxPruner {word}{when}'] = side(step, start, case.batch)
      except (AttributeError, TypeError, ValueError) as error:
        print(f'JaxPruner {word}{when} does not run: {str(error)[:120]}')
  return found


def measure(sides: dict[str, Side], batch: tuple) -> dict[str, float]:
  """Returns each side's median ratio of CPU time to the dense step of the same round."""
  carries = {name: s.carry for name, s in sides.items()}

  def spend(name, times):
    started = time.process_time()
    for _ in range(times):
      *carry, _ = sides[name].step(*carries[name], *batch)
      carries[name] = jax.block_until_ready(tuple(carry))
    return (time.process_time() - started) / times

  steps = {name: max(1, round(_SECONDS / min(spend(name, 1), spend(name, 2)))) for name in sides}
  return in_turns(sides, lambda name: spend(name, steps[name]), _ROUNDS)


def compiling(sides: dict[str, Side]) -> dict[str, float]:
  """Returns each ordinary step's median ratio of CPU time to compile to the dense step's."""

  def spend(name):
    started = time.process_time()
    sides[name].lowered.compile()
    return time.process_time() - started

  return in_turns([n for n in sides if not n.endswith(', update')], spend, _COMPILATIONS)


def in_turns(names: Iterable[str], spend: Callable[[str], float], rounds: int) -> dict[str, float]:
  """Returns the median over rounds of each one's seconds over 'dense' in the same round."""
  names, turns = list(names), random.Random(0)
  ratios = {name: [] for name in names}
  for _ in range(rounds):
    seconds = {name: spend(name) for name in turns.sample(names, len(names))}
    for name in names:
      ratios[name].append(seconds[name] / seconds['dense'])
  return {name: statistics.median(found) for name, found in ratios.items()}


def choosing() -> list[str]:
  """Returns lines on choosing the mask of one million weights, beside an argsort of them."""
  w = jax.random.normal(jax.random.key(0), (1024, 1024))
  pruned = lambda text: lambda w: jsp.masks(jsp.parse(text).init({'kernel': w})[1])['kernel']
  programs = {
    'argsort': lambda w: jnp.argsort(-jnp.abs(w), axis=None),
    'unstructured': pruned('magnitude(0.8)'),
    '2:4': pruned('nm(2, 4)'),
  }
  programs = {name: jax.jit(run) for name, run in programs.items()}
  seconds = {name: [] for name in programs}
  for round_ in range(_ROUNDS + 1):
    for name, run in programs.items():
      started = time.process_time()
      jax.block_until_ready(run(w))
      if round_:  # the first one compiles
        seconds[name].append(time.process_time() - started)
  medians = {name: statistics.median(found) for name, found in seconds.items()}
  return [
    f'mask of 2^20 weights, {name}: {medians[name] * 1e3:.2f} ms, '
    f'{medians["argsort"] / medians[name]:.0f} times faster than an argsort'
    for name in ('unstructured', '2:4')
  ]


def main():
  """Prints a table a model."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # before the backend makes its threads
  for model in sys.argv[1:] or pruned_models.CASES:
    case = pruned_models.CASES[model]()
    sides = {'dense': dense(case)}
    for name, text in _METHODS.items():
      sides[name] = ours(case, text, refresh=False)
      if jsp.parse(text).spec.due is not jsp.identity().spec.due:
        sides[f'{name}, update'] = ours(case, text, refresh=True)
    sides |= peers(case)
    compile_ratios = compiling(sides)
    ratios = measure(sides, case.batch)
    least = sides['dense']
    print(f'\n{model}: CPU time of a step over the dense one; its program')
    print(f'{"":28}  time  compile  temporaries  conditionals  sorts')
    for name, s in sides.items():
      print(
        f'{name:28}  {ratios[name]:4.2f}  {compile_ratios.get(name, math.nan):7.2f}  '
        f'{s.temporary_bytes / least.temporary_bytes:11.3f}  {s.conditionals:12d}  {s.sorts:5d}'
      )
  print('\n'.join(['', *choosing()]))


if __name__ == '__main__':
  main()
