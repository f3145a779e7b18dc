"""Question: do ragged experts cost what their rows cost, however the rows are spread?

Rows `[M, K]` sorted by expert, times 8 matrices `[K, N]`, in float32, against one dense product
`[M, K] x [K, N]`: as many multiply-adds. The busiest expert has 1.7 times the mean of rows, the
others what chance gives. Processor time of a process pinned to one core; sides take turns, and a
figure is the median over rounds of the ratio to dense.

Command: python -m experiments.benchmarks.grouped_products [ROWS ...]
About 3 minutes. Rows are those of all experts together; 1024 and 4096 unless given.
Peer: `jax.lax.ragged_dot`. Limits: 1.45 forward, 1.55 with both gradients; 4 times faster than the
peer.
"""

import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from experiments.benchmarks import block_sparse

_EXPERTS, _BUSIEST = 8, 1.7
_SHAPES = ((512, 2048), (1024, 1024), (2048, 512))
_LIMITS = {'forward': 1.45, 'with gradients': 1.55}


def group_sizes(rows: int, seed: int = 0) -> np.ndarray:
  """int32 `[8]`: one expert has 1.7 times the mean, chance gives the others the rest."""
  rng = np.random.default_rng(seed)
  most = round(_BUSIEST * rows / _EXPERTS)
  others = np.full(_EXPERTS - 1, most + 1)
  while others.max() > most:
    others = rng.multinomial(rows - most, rng.dirichlet(np.full(_EXPERTS - 1, 8.0)))
  return rng.permutation(np.append(others, most)).astype(np.int32)


def measure(rows: int, inner: int, outputs: int) -> list[dict]:
  """One row of the table for each pass."""
  rng = np.random.default_rng(1)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, dy = normal(rows, inner), normal(rows, outputs)
  w = normal(_EXPERTS, inner, outputs)
  sizes = jnp.asarray(group_sizes(rows))
  products = {
    'dense': (lambda x, w: x @ w, w[0]),
    'grouped': (lambda x, w: jsp.grouped_matmul(x, w, sizes), w),
    'ragged_dot': (lambda x, w: jax.lax.ragged_dot(x, w, sizes), w),
  }
  passes = {
    'forward': lambda f: jax.jit(f),
    'with gradients': lambda f: jax.jit(lambda x, w: jax.vjp(f, x, w)[1](dy)),
  }
  found = []
  for name, make in passes.items():
    runs = {}
    for side, (product, weight) in products.items():
      runs[side] = lambda run=make(product), weight=weight: run(x, weight)
    ratios = block_sparse.ratios(runs, time.process_time)
    row = {'rows': rows, 'inner': inner, 'outputs': outputs, 'pass': name, **ratios}
    found.append(row)
    print(rows, inner, outputs, name, '|', f'{row["grouped"]:.2f}', f'{row["ragged_dot"]:.2f}',
          f'{row["ragged_dot"] / row["grouped"]:.1f}', '|', _LIMITS[name], flush=True)
  return found


def main(words: list[str]) -> None:
  """Prints the table and the worst ratio of each pass."""
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  print('rows inner outputs pass | grouped ragged_dot, of dense; ragged_dot over grouped | limit')
  found = [row for rows in map(int, words or ('1024', '4096')) for shape in _SHAPES
           for row in measure(rows, *shape)]
  for name, limit in _LIMITS.items():
    mine = [row for row in found if row['pass'] == name]
    print(f'{name}: worst {max(r["grouped"] for r in mine):.2f} of dense (limit {limit}), at least '
          f'{min(r["ragged_dot"] / r["grouped"] for r in mine):.1f} times faster than ragged_dot')


if __name__ == '__main__':
  main(sys.argv[1:])
