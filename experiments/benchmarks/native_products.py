"""Question: how much of a dense product's time does each native CPU kernel take?

For each kernel, shape, batch and density: CPU time over that of XLA's dense float32 product of the
same shape, the same of libraries that do the same job, and the limit. The process is pinned to one
core; rounds interleave all candidates, and figures are medians over rounds of ratios.

Command: python -m experiments.benchmarks.native_products [kernels] [shapes such as 1024x1024]
Peers: `BCOO` of jax, SciPy's CSR, and PyTorch's kernels where torch is installed. Kernels: those of
`_CASES`; all of them, and 1024x1024, where none is said.
"""

import importlib.util
import os
import re
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse

import jaxsparse as jsp

_BATCHES = (1, 8, 32, 128, 512)
_ROUNDS, _SECONDS = 15, 0.004
# A kernel: the transform that packs its weights at a density, and the density's limits.
_CASES = {
  'vectors': (
    lambda d: jsp.magnitude(1 - d, pattern=jsp.block(1, 64)),
    {0.25: 0.30, 0.1: 0.16, 0.05: 0.11},
  ),
  'columns': (lambda d: jsp.magnitude(1 - d), {0.25: 0.72, 0.1: 0.36}),
  'int8_tiles': (
    lambda d: jsp.chain(jsp.magnitude(1 - d, pattern=jsp.block(4, 16)), jsp.quantize('int8')),
    {0.25: 0.15},
  ),
  'int8': (lambda d: jsp.quantize('int8'), {1.0: 0.48}),
  'int4': (lambda d: jsp.quantize('int4', group=128), {1.0: 0.33}),
  'float32': (None, {1.0: None}),  # one row times a dense matrix
}
_COLUMNS_FROM = 32  # rows from which compressed columns have a limit


def native(kernel, density, w):
  """`x -> x @ w` by the kernel, the dense weight it has, and the kernel's name as chosen."""
  if kernel == 'float32':
    held = jnp.asarray(w)
    return lambda x, _: jsp.kernels.vector_matrix(x, held), w, kernel
  transform = _CASES[kernel][0](density)
  params = jsp.prepare(transform.pack(*transform.init({'kernel': jnp.asarray(w)})))
  fn = jsp.dispatch(lambda params, x: x @ params['kernel'])
  # Of plain arrays, so that a call's cost is not that of comparing trees in Python.
  leaves, tree = jax.tree.flatten(params)
  product = jax.jit(lambda leaves, x: fn(jax.tree.unflatten(tree, leaves), x))
  chosen = getattr(params['kernel'], 'kernel', 'none')
  return lambda x, _: product(leaves, x), np.asarray(jsp.densify(params)['kernel']), chosen


def peers(kernel, w):
  """Products by other libraries with the same matrix: `(x of jax, x of numpy) -> result`."""
  import scipy.sparse

  has_torch = importlib.util.find_spec('torch') is not None
  if has_torch:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
  if kernel in ('vectors', 'columns'):
    bcoo, product = sparse.BCOO.fromdense(jnp.asarray(w)), jax.jit(lambda x, m: x @ m)
    rows = scipy.sparse.csr_matrix(w.T)
    found = {'BCOO': lambda x, _: product(x, bcoo), 'SciPy': lambda _, x: rows @ x.T}
    if has_torch:
      theirs = torch.from_numpy(w.T.copy()).to_sparse_csr()
      found['torch'] = lambda _, x: theirs @ torch.from_numpy(x).T
    return found
  if kernel in ('int8', 'int8_tiles') and has_torch:
    linear = torch.nn.Linear(*w.shape, bias=False)
    linear.weight = torch.nn.Parameter(torch.from_numpy(w.T.copy()))
    model = torch.nn.Sequential(linear)
    theirs = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear})
    return {'torch': lambda _, x: theirs(torch.from_numpy(x))}
  return {}


def timed(f, x, x_numpy, calls):
  """CPU seconds a call."""
  started = time.process_time()
  for _ in range(calls):
    out = f(x, x_numpy)
  jax.block_until_ready(out)
  return (time.process_time() - started) / calls


def ratios(candidates, x):
  """Medians over rounds of each candidate's time over that of `dense`."""
  x_jax, calls = jnp.asarray(x), {}
  for name, f in candidates.items():
    timed(f, x_jax, x, 1)
    calls[name] = max(1, int(_SECONDS / max(timed(f, x_jax, x, 2), 1e-7)))
  rounds = [
    {name: timed(f, x_jax, x, min(calls[name], 500)) for name, f in candidates.items()}
    for _ in range(_ROUNDS)
  ]
  return {n: statistics.median(r[n] / r['dense'] for r in rounds) for n in candidates}


def row(kernel, density, shape, batch, w, x):
  """One line of the table."""
  ours, effective, chosen = native(kernel, density, w)
  product = jax.jit(lambda x, w: x @ w)
  dense = jnp.asarray(effective)
  candidates = {'dense': lambda x, _: product(x, dense), 'native': ours, **peers(kernel, effective)}
  found = ratios(candidates, x)
  limit = _CASES[kernel][1][density]
  if kernel == 'columns' and batch < _COLUMNS_FROM:
    limit = None
  others = '  '.join(f'{n} {found[n]:6.2f}' for n in found if n not in ('dense', 'native'))
  verdict = '' if limit is None else f'{limit:.2f} {"ok" if found["native"] <= limit else "ABOVE"}'
  name = kernel if chosen == kernel else f'{kernel} (as {chosen})'
  return (
    f'{name:12s} {shape:10s} batch {batch:4d}  d {density:<5}  native {found["native"]:5.3f}'
    f'  limit {verdict or "-":11s} {others}'
  )


def call_microseconds():
  """CPU microseconds that one native call adds to a jitted program: a chain of small ones."""
  calls = 200
  w = jnp.eye(16)

  def chain(product):
    def many(x):
      for _ in range(calls):
        x = product(x, w)
      return x

    return jax.jit(many)

  sides = {
    'native': chain(jsp.kernels.vector_matrix),
    'dense': chain(lambda x, w: jnp.tanh(x @ w)),
    'none': jax.jit(lambda x: x + 1),
  }
  x = jnp.ones((1, 16))
  for f in sides.values():
    jax.block_until_ready(f(x))
  rounds = [
    {n: timed(lambda x, _, f=f: f(x), x, None, 50) for n, f in sides.items()}
    for _ in range(_ROUNDS)
  ]
  cost = lambda name: statistics.median((r[name] - r['none']) / calls * 1e6 for r in rounds)
  return {name: cost(name) for name in ('native', 'dense')}


def main(arguments):
  """Prints one line a kernel, shape, batch and density."""
  shapes = [a for a in arguments if re.fullmatch(r'\d+x\d+', a)] or ['1024x1024']
  kernels = [a for a in arguments if a in _CASES] or list(_CASES)
  unknown = set(arguments) - set(shapes) - set(kernels)
  if unknown:
    raise SystemExit(f'{sorted(unknown)} are neither shapes nor kernels: {", ".join(_CASES)}.')
  if hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
  print(jsp.backends(), flush=True)
  took = call_microseconds()
  print(
    f'a call in a jitted program: {took["native"]:.3f} microseconds with its product of 16 x 16, '
    f'limit 0.2; a dense product of that size and tanh: {took["dense"]:.3f}'
  )
  for shape in shapes:
    depth, outputs = map(int, shape.split('x'))
    rng = np.random.default_rng(0)
    w = rng.normal(size=(depth, outputs)).astype(np.float32)
    for kernel in kernels:
      for density in _CASES[kernel][1]:
        for batch in _BATCHES if kernel != 'float32' else (1,):
          x = rng.normal(size=(batch, depth)).astype(np.float32)
          print(row(kernel, density, shape, batch, w, x), flush=True)


if __name__ == '__main__':
  main(sys.argv[1:])
