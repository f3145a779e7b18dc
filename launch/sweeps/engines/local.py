"""Points on this machine, through executorlib: a bounded pool, a fresh process a point.

A worker of the pool starts `launch.run` as a process of its own, so that no point sees what another
left in JAX, and waits for it. Workers watch this process: when it is gone, so are they and theirs.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence

from launch.sweeps import keeper

_ROOT = str(pathlib.Path(__file__).resolve().parents[3])


class Pool:
  """The running pool; made by `start`."""

  def __init__(self, executor, jobs):
    self._futures = {job.name: executor.submit(keeper.keep, job) for job in jobs}

  def lost(self) -> dict[str, str]:
    """Returns why, for every point whose worker failed and will not say how the point ended."""
    ended = {name: f for name, f in self._futures.items() if f.done() and not f.cancelled()}
    return {
      name: f'its worker failed: {type(future.exception()).__name__}: {future.exception()}'
      for name, future in ended.items()
      if future.exception() is not None
    }


@contextlib.contextmanager
def start(jobs: Sequence[keeper.Job], *, workers: int) -> Iterator[Pool]:
  """Runs jobs until the block ends; those not started by then are dropped, the others waited for.

  Args:
    jobs: at least one.
    workers: the most points at a time.

  Raises:
    ValueError: executorlib is not installed.
  """
  try:
    import executorlib
  except ImportError as error:
    message = "--engine=local needs executorlib: pip install '.[launch]'."
    raise ValueError(message) from error
  with _importable(), _loopback():
    executor = executorlib.SingleNodeExecutor(
      max_workers=min(workers, len(jobs)),
      block_allocation=True,  # without it executorlib spins on a core while points wait
      disable_dependencies=True,
      hostname_localhost=True,
      init_function=functools.partial(keeper.leash, os.getpid()),
      restart_limit=len(jobs),
    )
    try:
      yield Pool(executor, jobs)
    finally:
      executor.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _importable():
  """Workers find this package wherever the sweep was started."""
  before = os.environ.get('PYTHONPATH')
  os.environ['PYTHONPATH'] = os.pathsep.join([_ROOT, *filter(None, [before])])
  try:
    yield
  finally:
    if before is None:
      del os.environ['PYTHONPATH']
    else:
      os.environ['PYTHONPATH'] = before


@contextlib.contextmanager
def _loopback():
  """Keeps the pool's sockets off the network.

  executorlib binds every interface and unpickles what arrives; its workers are all on this machine.
  """
  from executorlib.standalone.interactive import communication

  def bind(self):
    return self._socket.bind_to_random_port('tcp://127.0.0.1')

  before = communication.SocketInterface.bind_to_random_port
  communication.SocketInterface.bind_to_random_port = bind
  try:
    yield
  finally:
    communication.SocketInterface.bind_to_random_port = before
