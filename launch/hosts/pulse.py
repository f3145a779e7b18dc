"""Signs of life: each process says twice a second that it lives, and how far its loop has come.

A thread of its own writes them, so a process asleep in its data function still beats while its step
stands still: that is what tells a stuck process from a dead one. The file is written over in place,
in one small write: with a new file each time a full disk would look like a dead host.

Under a supervisor (environment variables, set by `launch.supervise`) the files of an attempt lie in
a folder of their own, and a process whose supervisor is gone ends itself: nobody could end it any
more, and a restarted run would meet it in the same directory.
"""

import faulthandler
import json
import os
import pathlib
import signal
import socket
import threading
from typing import NamedTuple

from absl import logging

from launch import exits

SUPERVISOR = 'JAXSPARSE_SUPERVISOR'  # its pid
ATTEMPT = 'JAXSPARSE_ATTEMPT'  # number of the attempt
BEAT_SECONDS = 'JAXSPARSE_BEAT_SECONDS'

# Phases by how far they are into a step: of processes that wait for each other, the least far is
# the one waited for.
PHASES = {
  phase: order
  for order, phase in enumerate(
    ('start', 'data', 'compile', 'step', 'wait', 'save', 'evaluate', 'done')
  )
}
_SIZE = 512


class Beat(NamedTuple):
  """What a pulse file says.

  Attributes:
    rank: number of the process.
    count: processes of the run.
    host: name of its machine.
    pid: there.
    beat: how many beats so far.
    step: where its loop is.
    phase: one of `PHASES`.
    moves: how often it called `at`.
    closed: whether it has said that it is done.
  """

  rank: int
  count: int
  host: str
  pid: int
  beat: int
  step: int
  phase: str
  moves: int
  closed: bool


class Pulse:
  """Beats from its creation to `close`, and dumps the stacks of all threads on SIGUSR1.

  Args:
    directory: folder `hosts` of the run directory; None does nothing.
    rank: number of this process.
    count: processes of the run.

  Example:
    >>> with Pulse(None, 0) as pulse:
    ...   pulse.at(3, 'data')
  """

  def __init__(self, directory: str | os.PathLike | None, rank: int, *, count: int = 1):
    self._at = (0, 'start', 0)
    self._thread = None
    if directory is None:
      return
    folder = pathlib.Path(directory)
    if attempt := os.environ.get(ATTEMPT):
      folder = attempt_folder(folder, int(attempt))
    folder.mkdir(parents=True, exist_ok=True)
    self._path = pulse_file(folder, rank)
    self._who = (rank, count, socket.gethostname(), os.getpid())
    self._supervisor = int(os.environ.get(SUPERVISOR, '0'))
    self._period = float(os.environ.get(BEAT_SECONDS, '0.5'))
    # Dumped in C: also while the main thread sits in a collective and Python runs nowhere.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    self._stacks = os.open(stacks_file(folder, rank), flags, 0o644)
    faulthandler.register(signal.SIGUSR1, file=self._stacks, all_threads=True)
    self._end = threading.Event()
    self._beats = 0
    self._write(closed=False)
    self._thread = threading.Thread(target=self._run, name='pulse', daemon=True)
    self._thread.start()

  def at(self, step: int, phase: str) -> None:
    """Notes where the loop is; costs nanoseconds, so call it at every turn.

    Args:
      step: the step at work.
      phase: one of 'data', 'compile' (a step that compiles), 'step', 'wait', 'save', 'evaluate',
        'done'; 'start', 'compile', 'save', 'evaluate' and 'done' may take long.
    """
    self._at = (step, phase, self._at[2] + 1)  # one assignment: the thread sees all or nothing

  def close(self) -> None:
    """Says that this process is done, and stops beating."""
    if self._thread is None:
      return
    self._end.set()
    self._thread.join()
    self._thread = None
    self._write(closed=True)
    faulthandler.unregister(signal.SIGUSR1)
    os.close(self._stacks)

  def __enter__(self) -> 'Pulse':
    return self

  def __exit__(self, kind, *_) -> None:
    # After an error the process is not done: it is for the supervisor to see how it ended.
    if kind is None:
      self.close()

  def _run(self):
    told = False
    while not self._end.wait(self._period):
      if self._supervisor and os.getppid() != self._supervisor:
        logging.error('The supervisor is gone, and nobody else could end this process: leaving.')
        exits.leave(exits.PEER_LOST)
      try:
        self._write(closed=False)
      except OSError as error:
        if not told:
          logging.warning('No sign of life can be written: %s', error)
        told = True

  def _write(self, closed):
    step, phase, moves = self._at
    self._beats += 1
    beat = Beat(*self._who, self._beats, int(step), phase, moves, closed)
    line = json.dumps(beat._asdict()).ljust(_SIZE - 1)[: _SIZE - 1] + '\n'
    # Opened and closed each time: a network file system shows it to other hosts on close.
    descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
      os.pwrite(descriptor, line.encode(), 0)
    finally:
      os.close(descriptor)


def attempt_folder(directory: pathlib.Path, attempt: int) -> pathlib.Path:
  """Folder of an attempt within `hosts`."""
  return directory / f'attempt-{attempt}'


def pulse_file(folder: pathlib.Path, rank: int) -> pathlib.Path:
  """File that a process beats into."""
  return folder / f'rank-{rank}.json'


def stacks_file(folder: pathlib.Path, rank: int) -> pathlib.Path:
  """File that its stacks are dumped into."""
  return folder / f'rank-{rank}.stacks'


def read(path: pathlib.Path) -> Beat | None:
  """Returns the beat in a file; None where there is none, or not a whole one at this moment."""
  try:
    beat = Beat(**json.loads(path.read_bytes()[:_SIZE]))
  except (OSError, ValueError, TypeError):
    return None
  kinds = (int, int, str, int, int, int, str, int, bool)
  fits = all(type(value) is kind for value, kind in zip(beat, kinds)) and beat.phase in PHASES
  return beat if fits else None
