"""Joins the processes of a run through `jax.distributed`, or says in a sentence why not.

What goes wrong in a pod must be one error with a sentence and an exit code, never N single hosts
that each believe to be the whole run.
"""

import contextlib
import functools
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import jax
from absl import logging

from launch import exits
from launch.hosts import surroundings

MODES = ('auto', 'on', 'off')

leave = exits.leave

_FINISH_SECONDS = 60

# What the runtime says of peers, for whichever rank is gone: connections of the collectives, then
# heartbeats and barriers of the coordination service.
_OF_PEERS = re.compile(
  r'gloo|connection (reset|closed|refused)|reset by peer|broken pipe|socket closed|heartbeat'
  r'|coordination (service|agent)|barrier timed out|^(unavailable|aborted|cancelled)\b'
  r'|tasks? (has|have|is|are)? ?(failed|unhealthy|dead)|peer',
  re.IGNORECASE,
)
_STATUS = re.compile(r'[A-Z]+(_[A-Z]+)*: ')


class Unreachable(RuntimeError):
  """The processes of the run did not come together: exit with PEER_LOST."""


def start(
  mode: str,
  coordinator: str | None = None,
  process_count: int | None = None,
  process_id: int | None = None,
  *,
  heartbeat_seconds: int = 30,
  start_seconds: int = 300,
) -> None:
  """Calls `jax.distributed.initialize` where there are peers; before any other use of JAX.

  Args:
    mode: 'on' joins or fails; 'off' never joins; 'auto' is one host only when no flag and nothing
      in the environment indicates a pod, a Slurm step or an Open MPI job, and 'on' otherwise.
    coordinator: `host:port` of process 0; default: what JAX finds in the environment.
    process_count: processes of the run; likewise.
    process_id: this process, 0 to process_count - 1; likewise.
    heartbeat_seconds: a peer silent for as long ends every process, with SIGABRT: the runtime's
      own last resort where no supervisor is at work.
    start_seconds: time for all processes to appear. After it this process is ended with PEER_LOST
      and a sentence: the runtime itself would end it with SIGABRT, which no caller can catch.

  Raises:
    ValueError: flags that contradict, or 'on' without a coordinator.
    Unreachable: the coordinator cannot listen or refuses this process.
  """
  given = {
    '--coordinator': coordinator,
    '--process_count': process_count,
    '--process_id': process_id,
  }
  given = {name: value for name, value in given.items() if value is not None}
  _check(mode, given)
  if mode == 'off':
    return
  sign = ' and '.join(given) or surroundings.signs_of_a_pod(os.environ)
  chips = not sign and surroundings.has_tpu_chips(os.environ)
  if mode == 'auto' and not sign and not chips:
    return
  where = f'--distributed={mode}' + (f' with {sign}' if sign else '')
  if process_id == 0 and coordinator:
    _check_port(coordinator)
  try:
    give_up = functools.partial(_give_up, start_seconds, where, coordinator, process_id)
    with _deadline(start_seconds, give_up):
      # With everything given there is nothing to detect, and detection asks cloud services.
      jax.distributed.initialize(
        coordinator,
        process_count,
        process_id,
        cluster_detection_method='deactivate' if len(given) == 3 else None,
        initialization_timeout=start_seconds + 60,
        heartbeat_timeout_seconds=heartbeat_seconds,
        shutdown_timeout_seconds=_FINISH_SECONDS + 30,
      )
      jax.devices()  # exchanges the topology, so it waits for peers too
  except ValueError as error:
    if mode == 'auto' and chips:
      return  # a TPU machine that JAX knows to be alone
    raise ValueError(
      f'{where} found no pod to join ({error}) Give --coordinator=host:port, --process_count and '
      '--process_id, or start it with srun or on a TPU slice; --distributed=off runs one host.'
    ) from error
  except (jax.errors.JaxRuntimeError, OSError) as error:
    raise Unreachable(f'{where}: the processes did not come together: {error}') from error
  logging.info('Process %d of %d, %s', jax.process_index(), jax.process_count(), where)


def finish(code: int = exits.DONE) -> None:
  """Leaves the run together with all peers; call it where every process ends the same way.

  It waits for the peers, so that process 0, which coordinates, is not the first to go. A process
  that ends alone calls `leave`.

  Args:
    code: exit code of the process should a peer not come: the runtime's SIGABRT would hide it.
  """
  if jax.distributed.is_initialized():
    with _deadline(_FINISH_SECONDS, lambda: exits.leave(code)):
      jax.distributed.shutdown()


def is_peer_loss(error: BaseException) -> bool:
  """Whether an error of the loop means that a peer is gone, so that PEER_LOST is the exit code.

  Looks through causes, as a failed save wraps the runtime's error. False with one process.

  Example:
    >>> is_peer_loss(ValueError('peer'))
    False
  """
  if not jax.distributed.is_initialized():
    return False
  while error is not None:
    text = str(error)
    # The runtime's statuses arrive as JaxRuntimeError, or, some of them, as bare ValueError.
    is_status = isinstance(error, jax.errors.JaxRuntimeError) or _STATUS.match(text)
    if is_status and _OF_PEERS.search(text):
      return True
    error = error.__cause__ or error.__context__
  return False


def _check(mode, given):
  if mode not in MODES:
    raise ValueError(f"--distributed is one of {', '.join(MODES)}, got '{mode}'.")
  if mode == 'off' and given:
    raise ValueError(f'--distributed=off never joins, but {" and ".join(given)} is given.')
  coordinator = given.get('--coordinator')
  count, rank = given.get('--process_count'), given.get('--process_id')
  if coordinator is not None and not re.fullmatch(r'\S+:[0-9]{1,5}', coordinator):
    raise ValueError(f"--coordinator is host:port, got '{coordinator}'.")
  if count is not None and count < 1:
    raise ValueError(f'--process_count is at least 1, got {count}.')
  if rank is not None and not 0 <= rank < (count or rank + 1):
    raise ValueError(f'--process_id is 0 to --process_count - 1, got {rank} of {count}.')


def _check_port(coordinator):
  """Looks whether the coordinator can listen: the runtime ends in SIGSEGV where it cannot."""
  port = int(coordinator.rpartition(':')[2])
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    # Reused as the runtime does it, so that what the last run left behind does not count.
    options = dict(family=family, dualstack_ipv6=both, reuse_port=True)
    socket.create_server(('', port), **options).close()
  except OSError as error:
    raise Unreachable(f'--coordinator={coordinator}: {error.strerror}.') from error


def _give_up(seconds, where, coordinator, rank) -> NoReturn:
  at = coordinator or os.environ.get('JAX_COORDINATOR_ADDRESS') or 'the coordinator it found'
  told = 'process 0 is there' if rank else 'every other process was started'
  print(
    f'{where}: not all processes of the run came together at {at} within {seconds} s. See '
    f'whether {told} with the same command and can reach it; --distributed=off runs one host.',
    file=sys.stderr,
  )
  exits.leave(exits.PEER_LOST)


@contextlib.contextmanager
def _deadline(seconds, act) -> Iterator[None]:
  """Acts when the block takes longer: it waits in C++, and ends in SIGABRT rather than raise."""
  timer = threading.Timer(seconds, act)
  timer.daemon = True
  timer.start()
  try:
    yield
  finally:
    timer.cancel()
