"""Question: how much work is a product with block panels on a TPU, by its compiler's schedule?

Nothing runs: libtpu compiles `[512, 4096] x [4096, 4096]` in bfloat16, dense by XLA and as panels
by the Pallas kernel, and writes down the instruction bundles of both. A figure is bundles times
steps of the kernel's loop over the same of the dense product. It sees neither memory stalls nor the
cost of a step, and the flags that ask for it are undocumented.

Command: python -m experiments.benchmarks.tpu_bundles [v5e:2x2 v6e:2x2 ...]
Two minutes. Needs the `tpu` extra (libtpu). Limits, in densities: v5e 1.05; v6e 1.2 at 1/2 and
1.4 at 1/4.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
from jax.experimental import topologies

import jaxsparse as jsp

_ROWS, _SIZE, _BLOCK = 512, 4096, 256
_DENSITIES = (0.5, 0.25)
_LIMITS = {'v5e': {0.5: 1.05, 0.25: 1.05}, 'v6e': {0.5: 1.2, 0.25: 1.4}}
_SETTINGS = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'JAX_PLATFORMS': 'cpu', 'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8', 'TPU_WORKER_HOSTNAMES': 'localhost',
}


def compile_for(topology: str, density: float) -> None:
  """Compiles one product for one chip of a topology; density 1 is XLA's dense one."""
  device = topologies.get_topology_desc(topology, platform='tpu').devices[0]
  place = jax.sharding.SingleDeviceSharding(device)
  shape = lambda s, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(s, dtype, sharding=place)
  x, panels, slots = shape((_ROWS, _SIZE)), _SIZE // _BLOCK, round(density * _SIZE / _BLOCK)
  if density == 1:
    jax.jit(jnp.matmul).lower(x, shape((_SIZE, _SIZE))).compile()
    return
  run = lambda x, data, kidx: jsp.block_sparse_matmul(x, data, kidx, backend='pallas_tpu')
  data, kidx = shape((panels, slots * _BLOCK, _BLOCK)), shape((panels, slots), jnp.int32)
  jax.jit(run).lower(x, data, kidx).compile()


def scheduled(topology: str, density: float) -> int:
  """Bundles of the product's kernel times the steps of its loop."""
  with tempfile.TemporaryDirectory() as folder:
    flags = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    subprocess.run(
      [sys.executable, '-m', 'experiments.benchmarks.tpu_bundles', '--one', topology, str(density)],
      env=os.environ | _SETTINGS | {'LIBTPU_INIT_ARGS': flags}, check=True, capture_output=True)
    word = 'fusion' if density == 1 else 'panels'
    (analysis,) = pathlib.Path(folder).glob(f'*-{word}*schedule-analysis_final_bundles.txt')
    (bundles,) = (path for path in pathlib.Path(folder).glob(f'*-{word}*final_bundles.txt')
                  if 'analysis' not in path.name)
    count = int(re.search(r'non empty scheduled bundles:\s*(\d+)', analysis.read_text())[1])
    test = r'scmp\.ge\.s32\.totalorder \S+, (\d+) /\* loop exit test'
    loops = re.findall(test, bundles.read_text())
  # The loop runs two steps more, to fetch the first window and to write the last.
  (bound,) = loops
  return count * (int(bound) - 2)


def main(chips: list[str]) -> None:
  """Prints one line a chip and density."""
  for topology in chips or ['v5e:2x2', 'v6e:2x2']:
    dense = scheduled(topology, 1)
    for density in _DENSITIES:
      ratio = scheduled(topology, density) / dense
      limit = _LIMITS.get(topology.split(':')[0], {}).get(density)
      print(json.dumps({'topology': topology, 'block': _BLOCK, 'density': density,
                        'ratio': round(ratio, 3), 'over_density': round(ratio / density, 3),
                        'limit_over_density': limit}), flush=True)


if __name__ == '__main__':
  if sys.argv[1:2] == ['--one']:
    compile_for(sys.argv[2], float(sys.argv[3]))
  else:
    main(sys.argv[1:])
