"""Timing programs against each other on a machine that does other things too."""

import statistics
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 9
_SECONDS = 2e-3   # of one measurement at least, as clocks go


def noise(seed: int, abstract: jax.ShapeDtypeStruct) -> jax.Array:
  """Normal numbers of NumPy; those of jax would be a program to compile for each shape."""
  drawn = np.random.default_rng(seed).standard_normal(abstract.shape, np.float32)
  return jnp.asarray(drawn, abstract.dtype)


def interleaved(runs: Mapping[str, Callable]) -> dict[str, tuple[float, float]]:
  """Runs programs in turns; the first is what the others are compared with.

  On CPUs time is that of the process on all its cores, so other processes disturb little;
  elsewhere it is the clock's.

  Args:
    runs: compiled programs of no arguments.

  Returns:
    `{name: (median seconds a call, median over rounds of the ratio to the first)}`.
  """
  clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter

  def seconds(run, repeats):
    started = clock()
    for _ in range(repeats):
      out = run()
    jax.block_until_ready(out)
    return max(clock() - started, 1e-9) / repeats

  repeats = {}
  for name, run in runs.items():
    seconds(run, 1)   # compiles
    repeats[name] = 1 + int(_SECONDS / max(seconds(run, 1), 1e-7))
  found = {name: [] for name in runs}
  for _ in range(_ROUNDS):
    for name, run in runs.items():
      found[name].append(seconds(run, repeats[name]))
  first = next(iter(found.values()))
  return {name: (statistics.median(times), statistics.median(t / f for t, f in zip(times, first)))
          for name, times in found.items()}
