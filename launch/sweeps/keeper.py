"""Keeps one point of a sweep: starts it, watches the clock, tries again, says how it ended.

Every engine runs `keep` where the point is to run. It imports the standard library, `exits` and
`documents` alone, for it starts once a point and must work where jax does not. What it says is a
small JSON file beside the runs, so that nothing of a sweep's state is ever unpickled.
"""

import contextlib
import ctypes
import fcntl
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from launch import documents
from launch import exits

_FINAL = {exits.BAD_INPUT, exits.DIVERGED}  # the same again would end the same
_REQUEUES = 20  # preemptions a point survives in one sweep
_LOCK_SECONDS = 20.0
_TAIL_BYTES, _TAIL_LINES = 8192, 6
_PDEATHSIG = 1  # of Linux's prctl
_LIBC = ctypes.CDLL(None) if sys.platform == 'linux' else None
_FINISHED = {'status': 'finished', 'code': 0, 'reason': '', 'step': None}
_groups: set[int] = set()


class Job(NamedTuple):
  """One point as an engine sees it; plain values only.

  Attributes:
    name: of the point.
    command: argv.
    run: run directory.
    log: file that takes the output.
    state: JSON file that says how the point is doing.
    lock: file that every process of the point holds locked.
    stop: file whose presence asks the run to save and end.
    seconds: a try may take.
    grace: seconds between SIGTERM, after which a run saves, and SIGKILL.
    retries: tries after the first that crashed or took too long.
    environment: variables set for the command.
  """

  name: str
  command: tuple[str, ...]
  run: str
  log: str
  state: str
  lock: str
  stop: str
  seconds: float
  grace: float
  retries: int
  environment: Mapping[str, str]


def finished(run: str | os.PathLike) -> dict[str, Any] | None:
  """Returns the result of a finished run, or None where it is absent or damaged."""
  result = documents.read(pathlib.Path(run) / 'result.json')
  intact = result is not None and result.get('status') == 'finished'
  return result if intact and isinstance(result.get('record'), dict) else None


def leash(parent: int) -> dict[str, Any]:
  """Ends this process and what it keeps as soon as its parent is gone; returns at once."""

  def watch():
    while os.getppid() == parent:
      time.sleep(0.5)
    for group in tuple(_groups):
      _signal_group(group, signal.SIGKILL)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()
  return {}


class Keeper:
  """Runs one job; `stop` may be called by a signal handler meanwhile."""

  def __init__(self, job: Job):
    self._job = job
    self._process = None
    self._stopping = False

  def stop(self) -> None:
    """Asks the run to save and end; no other try follows."""
    self._stopping = True

  def stop_and_wait(self) -> None:
    """The same, from a signal handler that may not return before the run has saved."""
    self.stop()
    if self._process is None:
      return
    _signal_group(self._process.pid, signal.SIGTERM)
    deadline = time.monotonic() + self._job.grace
    while not self._gone() and time.monotonic() < deadline:
      time.sleep(0.1)

  def _gone(self):
    # Popen's own wait takes a lock that the interrupted code may hold.
    try:
      flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
      return os.waitid(os.P_PID, self._process.pid, flags) is not None
    except ChildProcessError:
      return True

  def run(self) -> dict[str, Any]:
    """Returns how the point ended, which is also in its state file.

    Returns:
      `status` ('finished', 'failed' or 'stopped'), `code`, `reason`, `step`, `attempts`, `seconds`.
    """
    started = time.time()
    with _locked(self._job.lock) as lock:
      if lock is None:
        outcome = _failed(None, f'another process of this point is at work: {self._job.lock}')
      else:
        outcome = self._tries(lock)
    outcome['seconds'] = round(time.time() - started, 3)
    documents.write(self._job.state, outcome)
    return outcome

  def _tries(self, lock):
    job, attempt, failures, preemptions = self._job, 0, 0, 0
    while True:
      if finished(job.run) is not None:
        return {**_FINISHED, 'attempts': attempt}
      if self._stopping or os.path.exists(job.stop):
        outcome = _failed(exits.PREEMPTED, 'the sweep was stopped')
        return {**outcome, 'status': 'stopped', 'attempts': attempt}
      attempt += 1
      _clear(job.run)
      code, late = self._once(lock, attempt)
      outcome = {**_verdict(job, code, late), 'attempts': attempt}
      if self._stopping and outcome['status'] != 'finished':
        saved = {'reason': 'told to stop; saved'} if code == exits.PREEMPTED else {}
        return {**outcome, **saved, 'status': 'stopped'}
      if outcome['status'] == 'finished' or (code in _FINAL and not late):
        return outcome
      preempted = code == exits.PREEMPTED and not late
      preemptions, failures = preemptions + preempted, failures + (not preempted)
      if failures > job.retries or preemptions > _REQUEUES:
        return outcome

  def _once(self, lock, attempt):
    """One try; returns its exit code and whether time ran out."""
    job, parent = self._job, os.getpid()
    with open(job.log, 'ab', opener=_no_link) as log:
      log.write(f'--- try {attempt} ---\n'.encode())
      log.flush()
      self._process = subprocess.Popen(
        job.command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **job.environment},
        start_new_session=True,
        pass_fds=(lock,),
        preexec_fn=lambda: _die_with(parent),
      )
    pid = self._process.pid
    _groups.add(pid)
    try:
      documents.write(
        job.state, {'status': 'running', 'attempts': attempt, 'pid': pid, 'keeper': parent}
      )
      return self._wait()
    finally:
      # Whatever the run started goes with it.
      _signal_group(pid, signal.SIGKILL)
      self._process.wait()
      _groups.discard(pid)

  def _wait(self):
    process, job = self._process, self._job
    deadline = time.monotonic() + job.seconds
    asked = None  # when it was asked to end
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=0.2), asked is not None and not self._stopping
      now = time.monotonic()
      self._stopping = self._stopping or os.path.exists(job.stop)
      if asked is None and (self._stopping or now > deadline):
        asked = now
        _signal_group(process.pid, signal.SIGTERM)
      if asked is not None and now > asked + job.grace:
        _signal_group(process.pid, signal.SIGKILL)


def keep(job: Job) -> dict[str, Any]:
  """Runs one job; SIGTERM lets the run save and ends it. Returns what `Keeper.run` does."""
  return attend(Keeper(job))


def attend(keeper: Keeper) -> dict[str, Any]:
  """Runs a keeper under the signals of its process; returns what `Keeper.run` does."""
  if threading.current_thread() is not threading.main_thread():
    return keeper.run()
  handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    signal.signal(signal.SIGTERM, lambda *_: keeper.stop())
    # Control-C reaches the whole foreground group; the sweep tells its keepers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return keeper.run()
  finally:
    for number, handler in handlers.items():
      signal.signal(number, handler)


def _verdict(job, code, late):
  """How a try ended, in the run's own words where it left any."""
  if finished(job.run) is not None:
    return dict(_FINISHED)
  said = documents.read(pathlib.Path(job.run) / 'failure.json') or {}
  step = said.get('step') if isinstance(said.get('step'), int) else None
  if late:
    return _failed(code, f'took longer than {job.seconds:.6g} s and was ended', step)
  if isinstance(said.get('reason'), str) and said['reason'].strip():
    return _failed(code, said['reason'][:2000], step)
  how = exits.describe(code) if code else 'ended with code 0 and left no intact result.json'
  lines = tail(job.log)
  if not lines:
    return _failed(code, how, step)
  return _failed(code, '\n'.join([f'{how}; its log ends: {lines[-1].strip()}', *lines]), step)


def _failed(code, reason, step=None):
  return {'status': 'failed', 'code': code, 'reason': reason, 'step': step, 'attempts': 0}


def tail(path: str | os.PathLike) -> list[str]:
  """Returns the last lines of a log, none where there is none."""
  try:
    with open(path, 'rb') as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
      text = file.read().decode('utf-8', 'replace')
  except OSError:
    return []
  lines = [line for line in text.splitlines() if line.strip() and not line.startswith('--- try ')]
  return [line[:400] for line in lines[-_TAIL_LINES:]]


def _clear(run):
  """What an earlier try left must not be taken for this one's: its failure, a damaged result."""
  (pathlib.Path(run) / 'failure.json').unlink(missing_ok=True)
  set_aside(run)


def set_aside(run: str | os.PathLike) -> None:
  """Renames a result that is none, so that its run is not taken for finished."""
  run = pathlib.Path(run)
  with contextlib.suppress(FileNotFoundError):
    os.replace(run / 'result.json', run / f'result.json.damaged-{time.time_ns()}')


@contextlib.contextmanager
def _locked(path) -> Iterator[int | None]:
  """The lock's descriptor, or None while others hold it.

  Every process of the point inherits it, so the lock is free only when none of them is left: not
  even one whose keeper was killed can write beside its successor.
  """
  with open(path, 'ab', opener=_no_link) as file:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        break
      except BlockingIOError:
        if time.monotonic() > deadline:
          yield None
          return
        time.sleep(0.1)
    yield file.fileno()


def _no_link(path, flags):
  return os.open(path, flags | os.O_NOFOLLOW, 0o644)


def _die_with(parent):
  """In the child: ask the kernel to be killed with the keeper."""
  # Slurm's warning goes to every process of a step; the keeper answers it, with SIGTERM.
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)
  if _LIBC is not None:
    _LIBC.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
      os._exit(1)


def _signal_group(group, number):
  with contextlib.suppress(ProcessLookupError, PermissionError):
    os.killpg(group, number)
