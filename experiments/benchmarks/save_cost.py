"""Question: what does a checkpoint cost, in CPU time of all threads, beside Orbax's own manager?

Both save the same 100 arrays of 48 kB to the same disk, one after the other, and wait. Ours also
hashes every file, takes a fingerprint of every leaf and refuses what is not finite.

Command: python -m experiments.benchmarks.save_cost
Peer: `orbax.checkpoint.CheckpointManager`, asynchronous, three steps kept.
"""

import pathlib
import statistics
import tempfile
import time

import jax.numpy as jnp
import orbax.checkpoint as ocp

import jaxsparse as jsp

_LEAVES, _SIDE, _ROUNDS = 100, 110, 9


def main():
  """Prints the medians of interleaved saves, and their ratio."""
  tree = {f'w{k}': jnp.full((_SIDE, _SIDE), k, jnp.float32) for k in range(_LEAVES)}
  with tempfile.TemporaryDirectory() as folder:
    options = ocp.CheckpointManagerOptions(max_to_keep=3)
    with (
      jsp.CheckpointStore(pathlib.Path(folder, 'ours')) as store,
      ocp.CheckpointManager(pathlib.Path(folder, 'peer'), options=options) as manager,
    ):
      saves = {
        'ours': lambda step: (store.save(step, tree), store.wait()),
        'peer': lambda step: (
          manager.save(step, args=ocp.args.StandardSave(tree)),
          manager.wait_until_finished(),
        ),
      }
      costs = {name: [] for name in saves}
      for step in range(_ROUNDS + 1):
        for name, save in saves.items():
          began = time.process_time()
          save(step)
          costs[name].append(time.process_time() - began)
  # The first save of a process compiles and imports.
  ours, peer = (statistics.median(found[1:]) for found in costs.values())
  print(
    f'{_LEAVES} leaves, {_LEAVES * _SIDE**2 * 4 / 1e6:.1f} MB: {1e3 * ours:.0f} ms of CPU a save, '
    f"Orbax's manager {1e3 * peer:.0f} ms, ratio {ours / peer:.2f}"
  )


if __name__ == '__main__':
  main()
