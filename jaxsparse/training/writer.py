"""Writes steps behind the training loop, commits each when all hosts have, and says why it did not.

With several processes Orbax alone answers a host which cannot write with a timeout on all others,
ten minutes later and without the cause. Here the hosts agree, before anything is written, that
each has the room; Orbax's own background barriers are left as soon as a host reports a failure.
"""

import contextlib
import os
import re
import threading
import time
from typing import Any

import orbax.checkpoint as ocp

from jaxsparse.training import directories
from jaxsparse.training import hosts
from jaxsparse.training import leaves
from jaxsparse.training import manifest

_POLL_SECONDS = 0.1
_MOST_LETTERS = 600
_OS_ERROR = re.compile(r"\[os_error_code='([0-9]+)'\]")


class SaveError(RuntimeError):
  """A save came to nothing; what was committed before is whole, and a later save may succeed."""


class Writer:
  """Writes one step at a time.

  Args:
    places: where to.
    peers: the processes that write together.
    keep: newest committed steps to keep; None keeps all.
    timeout_seconds: how long the slowest process may take.
  """

  def __init__(self, places: directories.StepDirectories, peers: hosts.Hosts, keep: int | None,
               timeout_seconds: float):
    self._places, self._peers, self._keep = places, peers, keep
    self._timeout = timeout_seconds
    self._checkpointer = None
    self._thread = None
    self._failure = None
    self._attempts, self._attempt = 0, ''
    self._told = None   # the attempt whose failure was reported

  def start(self, step: int, about: dict[str, Any], arrays: dict[str, Any], digest: str) -> None:
    """Starts writing; returns when the arrays are no longer needed. `join` comes before.

    Args:
      step: its number.
      about: the manifest, but for the files.
      arrays: for Orbax.
      digest: of the values; all processes must have the same.

    Raises:
      ValueError: the step exists.
    """
    self._attempts += 1
    self._attempt = f'save-{self._attempts}'
    wrong = self._agree_to_write(step, leaves.local_bytes(arrays, self._peers.rank), digest)
    if wrong:
      self._report(step, wrong)
      return
    error = ''
    try:
      self._orbax().save(self._places.writing(step), args=ocp.args.PyTreeSave(arrays))
    except Exception as e:  # Orbax and TensorStore raise what they like
      error = reason(e)
      self._tell(step, error)
    self._thread = threading.Thread(
        target=self._finish, args=(step, about, error), name=f'commit-{step}')
    self._thread.start()

  def join(self) -> None:
    """Waits until the last step started is committed or has failed."""
    thread, self._thread = self._thread, None
    if thread is not None:
      thread.join()

  def failure(self) -> SaveError | None:
    """What went wrong since the last call."""
    found, self._failure = self._failure, None
    return found

  def close(self) -> None:
    """Waits, and lets go of Orbax's threads."""
    self.join()
    self._drop_orbax()

  def _orbax(self):
    if self._checkpointer is None:
      several = self._peers.count > 1
      self._checkpointer = ocp.AsyncCheckpointer(
          # Compression would save 7 % of a state of float32 and cost as much CPU as all the rest.
          ocp.PyTreeCheckpointHandler(use_compression=False),
          async_options=ocp.options.AsyncOptions(
              timeout_secs=max(1, int(self._timeout)),
              barrier_sync_fn=self._barrier if several else None),
          # A barrier that a failed save left behind must not meet one of the next.
          multiprocessing_options=ocp.options.MultiprocessingOptions(
              barrier_sync_key_prefix=f'jaxsparse-{self._attempt}' if several else None))
    return self._checkpointer

  def _drop_orbax(self):
    checkpointer, self._checkpointer = self._checkpointer, None
    if checkpointer is not None:
      with contextlib.suppress(Exception):  # all it has to say was said
        checkpointer.close()

  def _report(self, step, wrong):
    """Once an attempt: the first to know says it."""
    if self._told != self._attempt:
      self._told = self._attempt
      self._failure = SaveError(f'Step {step} was not saved: {wrong}')

  def _tell(self, step, error):
    """What this process met, here and to the others."""
    self._report(step, self._peers.named(self._peers.rank, error))
    self._peers.tell(f'{self._attempt}/failed', error)

  def _agree_to_write(self, step, size, digest):
    """Returns what keeps any process from writing; then none of them does."""
    error, exists = '', False
    try:
      if self._peers.rank == 0:
        exists = step in self._places.found()
        self._places.clear()
      self._places.reserve(step, self._peers.rank, size)
    except OSError as e:
      error = reason(e)
    said = self._peers.gather(f'{self._attempt}/room', [error, exists, step, digest])
    wrong = []
    for rank, (error, exists, *state) in enumerate(x or ['says nothing', False] for x in said):
      if exists:
        raise ValueError(f'{self._places.root}: step {step} exists already.')
      if not error and state != [step, digest]:
        error = f'has another step or other values to save than host {self._peers.rank}'
      if error:
        wrong.append(self._peers.named(rank, error))
    return '; '.join(wrong)

  def _finish(self, step, about, error):
    """Runs in a thread of its own."""
    try:
      error = self._commit(step, about, error or self._written(step))
      if error:
        self._drop_orbax()
        if self._peers.rank == 0:
          self._places.clear()
    except Exception as e:  # nobody else would ever see it
      error = reason(e)
    if error:
      self._report(step, error)

  def _written(self, step):
    """Waits for Orbax; returns what this process met. What others met is reported meanwhile."""
    met = []

    def wait():
      try:
        self._checkpointer.wait_until_finished()
      except BaseException as e:  # as above
        met.append(reason(e))

    if self._peers.count == 1:
      wait()
      return ''.join(met)
    thread = threading.Thread(target=wait, name=f'orbax-{step}')
    thread.start()
    while thread.is_alive():
      thread.join(_POLL_SECONDS)
      heard = self._peers.heard(f'{self._attempt}/failed')
      if heard:
        self._report(step, '; '.join(f'host {k}: {text}' for k, text in sorted(heard.items())))
    if met and self._told != self._attempt:
      self._tell(step, met[0])
    return ''.join(met)

  def _barrier(self, key, timeout_ms):
    """Orbax's barriers in the background: like JAX's, but left as soon as a host has failed."""
    deadline = time.monotonic() + timeout_ms / 1000
    self._peers.tell(f'{self._attempt}/{key}', '')
    while len(self._peers.heard(f'{self._attempt}/{key}')) < self._peers.count:
      if self._peers.heard(f'{self._attempt}/failed'):
        raise RuntimeError('another host failed')
      if time.monotonic() > deadline:
        raise TimeoutError(f'not all hosts were done after {timeout_ms / 1000} seconds')
      time.sleep(_POLL_SECONDS)

  def _commit(self, step, about, error):
    """Each process hashes its share of the files, process 0 commits; returns what is wrong."""
    path, hashes = self._places.writing(step), {}
    if not error:
      try:
        share = sorted(manifest.files(path))[self._peers.rank::self._peers.count]
        hashes = manifest.hash_files(path, share, sync=True)
      except (OSError, manifest.Damaged) as e:
        error = reason(e)
    said = self._peers.gather(f'{self._attempt}/written', [error, hashes])
    said = [x or ['says nothing', {}] for x in said]
    wrong = '; '.join(self._peers.named(k, error) for k, (error, _) in enumerate(said) if error)
    if self._peers.rank == 0 and not wrong:
      files = {name: value for _, part in said for name, value in part.items()}
      try:
        # A network file system may show other hosts an older listing.
        if files.keys() != manifest.files(path).keys():
          raise OSError(f'not all hosts see the same files in {path}')
        self._places.commit(step, {**about, 'files': files}, self._keep)
      except (OSError, manifest.Damaged) as e:
        wrong = self._peers.named(0, reason(e))
    verdict = self._peers.gather(f'{self._attempt}/committed', wrong)[0]
    return self._peers.named(0, 'says nothing') if verdict is None else verdict


def reason(e: BaseException) -> str:
  """An exception in one line, its cause first: number and text of the operating system's error."""
  lines = [line.strip() for line in str(e).splitlines() if line.strip()]
  text = lines[0] if lines else ''
  if isinstance(e, OSError) and text:
    return text[:_MOST_LETTERS]
  # TensorStore adds pages about its own state, and at their end what had gone wrong.
  code = _OS_ERROR.search(text)
  cause = f'[Errno {code[1]}] {os.strerror(int(code[1]))}: ' if code else ''
  return f'{cause}{type(e).__name__}: {text.partition(" [tensorstore_spec=")[0]}'[:_MOST_LETTERS]
