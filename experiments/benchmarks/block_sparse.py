"""Question: does a product with block panels cost its density, and a training step with them?

Products `[batch, n] x [n, n]` in float32 against XLA's dense product of the same shape, with a
masked dense product and `jax.experimental.sparse`'s BCOO (of the same blocks, at the smallest batch
alone: it is slow) beside it. Processor time is that of a process pinned to one core, wall time that
of all cores; sides take turns, and a figure is the median over rounds of the ratio to dense.

Command: python -m experiments.benchmarks.block_sparse [cpu|wall|training ...] [--draw=FILE.png]
Everything takes about 12 minutes; --draw plots the `cpu` part beside y = x.
Peers: masked dense, BCOO. Limits of processor time, blocks of 128: 0.70, 0.36, 0.20 at densities
1/2, 1/4, 1/8; blocks of 32: 0.20 at 1/10; a training step 0.40 and 0.20 at 1/4 and 1/8. Of wall
time on two cores: 0.62 and 0.38 at 1/4 and 1/8. `top_kast` trains twice the density that it uses,
so its products are 4/3 of those of `packed_blocks` of the density alone.
"""

import json
import os
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import sparse

import jaxsparse as jsp

_ROUNDS, _SECONDS = 21, 0.004
_SIZES, _BATCHES = (1024, 2048), (32, 128, 512)
_CASES = ((128, 1 / 2), (128, 1 / 4), (128, 1 / 8), (32, 1 / 10))
_LIMITS = {
  'cpu': {(128, 1 / 2): 0.70, (128, 1 / 4): 0.36, (128, 1 / 8): 0.20, (32, 1 / 10): 0.20},
  'wall': {(128, 1 / 4): 0.62, (128, 1 / 8): 0.38},
  'training': {(128, 1 / 4): 0.40, (128, 1 / 8): 0.20},
}


def ratios(sides: dict, clock) -> dict[str, float]:
  """{name: median ratio to the first side}, of functions without arguments."""
  calls = {}
  for name, run in sides.items():
    jax.block_until_ready(run())
    start = clock()
    jax.block_until_ready(run())
    calls[name] = max(1, min(100, int(_SECONDS / max(clock() - start, 1e-6))))
  times = {name: [] for name in sides}
  for _ in range(_ROUNDS):
    for name, run in sides.items():
      start = clock()
      for _ in range(calls[name]):
        out = run()
      jax.block_until_ready(out)
      times[name].append((clock() - start) / calls[name])
  first = next(iter(times.values()))
  return {name: statistics.median(a / b for a, b in zip(t, first)) for name, t in times.items()}


def packed(size: int, block: int, density: float):
  """A pruned weight: `(dense, mask, format)`."""
  w = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
  transform = jsp.magnitude(1 - density, pattern=jsp.balanced_blocks(block, block))
  params, state = transform.init({'w': w})
  return w, jsp.masks(state)['w'], transform.pack(params, state)['w']


def bcoo(w, mask):
  """The same entries in coordinates, transposed: it multiplies from the left."""
  return sparse.BCOO.fromdense(jnp.where(mask, w, 0).T, nse=int(mask.sum()))


def products(kind: str) -> list[dict]:
  """Prints and returns one row a shape, batch, block and density."""
  clock = time.process_time if kind == 'cpu' else time.perf_counter
  rows = []
  print(f'{kind}: size batch block density | panels masked bcoo | limit', flush=True)
  for size in _SIZES:
    for block, density in _CASES:
      w, mask, stored = packed(size, block, density)
      for batch in _BATCHES:
        x = jnp.asarray(np.random.default_rng(1).normal(size=(batch, size)), jnp.float32)
        sides = _sides(x, w, mask, stored)
        found = ratios(sides, clock)
        row = {'size': size, 'batch': batch, 'block': block, 'panels': found['panels']}
        row |= {'density': float(mask.mean()), 'masked': found['masked'], 'bcoo': None}
        row['limit'] = _LIMITS[kind].get((block, density))
        if batch == _BATCHES[0]:
          row['bcoo'] = _once(sides['dense'], bcoo(w, mask), x, clock)
        rows.append(row)
        print(kind, *(_cell(row[k]) for k in ('size', 'batch', 'block', 'density')), '|',
              *(_cell(row[k]) for k in ('panels', 'masked', 'bcoo')), '|', _cell(row['limit']),
              flush=True)
  return rows


def _sides(x, w, mask, stored) -> dict:
  dense, masked = jax.jit(jnp.matmul), jax.jit(lambda x, w, m: x @ jnp.where(m, w, 0))
  panels = jax.jit(jsp.block_sparse_matmul)
  return {
    'dense': lambda: dense(x, w),
    'panels': lambda: panels(x, stored.data, stored.kidx),
    'masked': lambda: masked(x, w, mask),
  }


def _once(dense, matrix, x, clock):
  """Ratio of one BCOO product to the mean of ten dense ones."""
  run = jax.jit(lambda m, x: (m @ x.T).T)
  jax.block_until_ready(run(matrix, x))
  start = clock()
  jax.block_until_ready(run(matrix, x))
  taken, start = clock() - start, clock()
  for _ in range(10):
    jax.block_until_ready(dense())
  return 10 * taken / (clock() - start)


def _cell(value) -> str:
  return '-' if value is None else f'{value:.3f}' if isinstance(value, float) else str(value)


def loss_fn(params, x):
  """Mean square of a network of three layers without biases."""
  for name in sorted(params):
    x = jax.nn.relu(x @ params[name]['kernel'])
  return jnp.mean(x * x)


def training() -> list[dict]:
  """Prints and returns one row a batch and density: SGD on three layers 1024 wide."""
  rng, tx = np.random.default_rng(0), optax.sgd(1e-3)
  make = lambda: jnp.asarray(rng.normal(size=(1024, 1024)) * 0.03, jnp.float32)
  params = {f'layer_{i}': {'kernel': make()} for i in range(3)}
  rows = []
  print('training: batch block density | packed_blocks top_kast masked | limit', flush=True)
  for batch in (128, 512):
    x = jnp.asarray(rng.normal(size=(batch, 1024)), jnp.float32)
    for block, density in ((128, 1 / 4), (128, 1 / 8), (64, 1 / 4), (64, 1 / 8)):
      pattern = jsp.balanced_blocks(block, block)
      masked = jsp.rigl(1 - density, every=10**6, end=10**6, pattern=pattern)
      sides = {'dense': (jsp.identity(), True), 'masked': (masked, True)}
      sides['packed'] = (jsp.packed_blocks(masked), False)
      wider = jsp.top_kast(1 - density, backward=1 - 2 * density, every=10**6, pattern=pattern)
      sides['top_kast'] = (jsp.packed_blocks(wider), False)
      found = ratios({n: _stepper(*how, tx, params, x) for n, how in sides.items()},
                     time.process_time)
      limit = _LIMITS['training'].get((block, density))
      rows.append({'batch': batch, 'block': block, 'density': density, 'limit': limit, **found})
      print('training', batch, block, _cell(density), '|',
            *(_cell(found[side]) for side in ('packed', 'top_kast', 'masked')), '|', _cell(limit),
            flush=True)
  return rows


def _stepper(transform, dense, tx, params, x):
  held = [jsp.TrainState.create(transform, tx, params)]
  step = jsp.train_step(jsp.dispatch(loss_fn), tx, transform, dense=dense)

  def run():
    held[0], *_ = step(held[0], x)
    return held[0].params

  run()   # the first step may choose masks, in a program of its own
  return run


def draw(rows: list[dict], path: str) -> None:
  """Plots time against density, both over dense, with the line y = x."""
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(figsize=(6, 5))
  for size in _SIZES:
    for batch in _BATCHES:
      line = sorted((r['density'], r['panels']) for r in rows
                    if (r['size'], r['batch'], r['block']) == (size, batch, 128))
      axes.plot(*zip(*line), marker='o', label=f'{size} x {size}, batch {batch}')
  axes.plot([0, 0.55], [0, 0.55], color='black', linestyle='--', label='y = x')
  axes.set(xlabel='density, blocks of 128', ylabel='processor time over dense', xlim=(0, 0.55),
           ylim=(0, 0.75))
  axes.legend()
  figure.savefig(path, dpi=120)


def main(words: list[str]) -> None:
  """Runs each part in a process of its own: the number of threads is fixed when jax starts."""
  plots = [w.removeprefix('--draw=') for w in words if w.startswith('--draw=')]
  parts = [w for w in words if not w.startswith('--')] or ['cpu', 'wall', 'training']
  if '--here' not in words:
    for part in parts:
      command = [sys.executable, '-m', 'experiments.benchmarks.block_sparse', part, '--here']
      subprocess.run(command + [f'--draw={p}' for p in plots if part == 'cpu'], check=True)
    return
  (part,) = parts
  if part != 'wall' and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  rows = training() if part == 'training' else products(part)
  for path in plots:
    draw(rows, path)
  worst = {f'{r["block"]}, {r["density"]:.3f}': 0.0 for r in rows}
  for r in rows:
    key = f'{r["block"]}, {r["density"]:.3f}'
    worst[key] = max(worst[key], r['packed' if part == 'training' else 'panels'])
  print(part, 'worst ratio by block and density', json.dumps(worst))


if __name__ == '__main__':
  main(sys.argv[1:])
