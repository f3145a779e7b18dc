"""A process of the store's tests: `python -m tests.training.store_worker SCENARIO DIRECTORY ...`.

Prints one JSON line a fact, and ends by itself whatever happens.
"""

import faulthandler
import json
import os
import pathlib
import resource
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as jsp
from tests.launch import processes

_MOST_SECONDS = 110


def start(scenario, directory, logs, *, count=1, devices=1, **facts):
  """Starts the processes of a scenario; returns them, by rank."""
  port = processes.free_port()
  flags = f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0'
  call = [scenario, str(directory), str(count), str(port), json.dumps(facts)]
  return [
    processes.Started(
      'tests.training.store_worker',
      str(rank),
      *call,
      log=pathlib.Path(logs) / f'{scenario}-{count}-{rank}.log',
      XLA_FLAGS=flags,
      JAX_ENABLE_COMPILATION_CACHE='false',
    )
    for rank in range(count)
  ]


def said(started):
  """The JSON lines of a process, also of one still running."""
  lines = started.text.splitlines(keepends=True)
  return [json.loads(line) for line in lines if line.startswith('{') and line.endswith('\n')]


def state(step):
  """What the back-to-back writer saves: every element a function of the step."""
  return {
    'count': step,
    'large': jnp.full((300, 1000), step, jnp.float32),
    'small': jnp.full((300,), step, jnp.int32),
  }


def tree(mesh, seed):
  """Leaves split both ways, one way, not at all; large and small; on the mesh and on the host."""
  weight = np.random.default_rng(seed).normal(size=(512, 1024)).astype('float32')
  leaves = {
    'codes': ((weight[:8] * 4).astype('int8').astype(jnp.int4), P(None, 'model')),
    'key': (np.asarray([seed, 7], 'uint32'), P()),
    'large': (weight, P('data', 'model')),
    'mask': (weight[:64] > 0, P('model', 'data')),
    'rows': (weight[:, :8].astype(jnp.bfloat16), P('data')),
    'scale': (weight[0], P()),
  }
  placed = {
    name: jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda i, x=x: x[i])
    for name, (x, spec) in leaves.items()
  }
  return {**placed, 'count': seed, 'cursor': np.int64(seed), 'local': jnp.float32(seed)}


def _mesh(rows):
  return Mesh(np.array(jax.devices()).reshape(rows, -1), ('data', 'model'))


def _say(**facts):
  # In one write and on a line of its own: Gloo and asyncio write to the same file.
  os.write(1, f'\n{json.dumps(facts)}\n'.encode())


def _save_for_ever(directory):
  """Donates and saves without a pause, until killed."""
  bump = jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)
  with jsp.CheckpointStore(directory, keep=2) as store:
    step = max(store.steps(), default=0)
    arrays = state(step)
    del arrays['count']
    while True:
      step, arrays = step + 1, bump(arrays)
      store.save(step, {**arrays, 'count': step})
      _say(step=step, failure=str(store.failure()))


def _save(directory):
  with jsp.CheckpointStore(directory, timeout_seconds=30) as store:
    for step in (1, 2):
      store.save(step, tree(_mesh(2), step), extra={'step': step})
    store.wait()
    _say(steps=store.steps(), digest=jsp.digest(tree(_mesh(2), 2)))


def _restore(directory):
  with jsp.CheckpointStore(directory, timeout_seconds=30) as store:
    like = tree(_mesh(4), 0)
    found = store.restore(like)
    arrays = [
      x for x in zip(*map(jax.tree.leaves, (found.tree, like))) if hasattr(x[1], 'sharding')
    ]
    _say(
      step=found.step,
      digest=jsp.digest(found.tree),
      skipped=found.skipped,
      placed=all(x.sharding == y.sharding for x, y in arrays),
    )


def _full(directory, *, late):
  """Step 2 meets a limit on the last host, before (or just after) it began; step 3 does not."""
  mesh = _mesh(2)
  free = resource.getrlimit(resource.RLIMIT_FSIZE)

  def limit():
    if jax.process_index() == jax.process_count() - 1:
      resource.setrlimit(resource.RLIMIT_FSIZE, (4096, free[1]))

  with jsp.CheckpointStore(directory, timeout_seconds=30) as store:
    store.save(1, tree(mesh, 1))
    store.wait()
    began = time.monotonic()
    _ = late or limit()
    store.save(2, tree(mesh, 2))
    _ = late and limit()
    while (failure := store.failure()) is None and time.monotonic() < began + 60:
      time.sleep(0.02)
    seconds = time.monotonic() - began
    store.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, free)
    _say(failure=str(failure), seconds=seconds, steps=store.steps())
    store.save(3, tree(mesh, 3))
    store.wait()
    _say(steps=store.steps(), names=sorted(os.listdir(directory)))


def _unequal(directory):
  """The hosts disagree on a value that is not on the mesh."""
  with jsp.CheckpointStore(directory, timeout_seconds=30) as store:
    store.save(1, {'count': jax.process_index()})
    _say(failure=str(store.failure()), steps=store.steps())


_SCENARIOS = {f.__name__[1:]: f for f in (_save_for_ever, _save, _restore, _full, _unequal)}


def main(rank, scenario, directory, count, port, facts):
  """Runs one process of a scenario."""
  faulthandler.dump_traceback_later(_MOST_SECONDS, exit=True)
  logging.set_verbosity(logging.FATAL)
  if int(count) > 1:
    jax.distributed.initialize(
      f'localhost:{port}', int(count), int(rank), initialization_timeout=60
    )
  _SCENARIOS[scenario](directory, **json.loads(facts))
  if int(count) > 1:
    jax.distributed.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
