"""Processes of a test: started with captured output, awaited with a limit, never left behind."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Started:
  """A process, and what it said.

  Attributes:
    process: its handle.
    log: file with its stdout and stderr.
  """

  def __init__(self, module, *args, log, before=(), **environ):
    self.log = pathlib.Path(log)
    given = {'JAX_PLATFORMS': 'cpu', 'PYTHONUNBUFFERED': '1', **environ}
    with open(self.log, 'a', encoding='utf-8') as file:
      self.process = subprocess.Popen(
        [*before, sys.executable, '-m', module, *args],
        cwd=ROOT,
        env={**clean(os.environ), **given},
        stdin=subprocess.DEVNULL,
        stdout=file,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )

  @property
  def text(self):
    """What it said so far."""
    return self.log.read_text(encoding='utf-8')

  def code(self, seconds=120):
    """Its exit code, once it ends; an AssertionError with its output when it does not."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      raise AssertionError(f'still running after {seconds} s:\n{self.text}') from None

  def kill(self):
    """Ends it and its group."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self.process.pid, signal.SIGKILL)
    self.process.wait()


@contextlib.contextmanager
def ended(*started):
  """Whatever the block does, these processes are gone after it."""
  try:
    yield
  finally:
    for one in started:
      one.kill()


def clean(environ):
  """Variables without those that would tell a process that it is in a pod or supervised."""
  prefixes = ('SLURM_', 'TPU_', 'MEGASCALE_', 'OMPI_', 'JAXSPARSE_', 'JAX_COORDINATOR')
  return {name: value for name, value in environ.items() if not name.startswith(prefixes)}


def until(condition, seconds=120, *, of=None):
  """Waits for a condition and returns its value; by what is seen, never by the clock."""
  limit = time.monotonic() + seconds
  while not (found := condition()):
    said = of.text if of else ''
    assert time.monotonic() < limit, f'not within {seconds} s\n{said}'
    assert of is None or of.process.poll() is None, f'ended early\n{said}'
    time.sleep(0.05)
  return found


def free_port():
  """A TCP port of this machine that nobody listens on."""
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def is_running(pid):
  """Whether there is such a process, and it is no zombie."""
  try:
    return pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
  except FileNotFoundError:
    return False
