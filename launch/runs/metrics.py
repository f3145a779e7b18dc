"""What a run logs: one JSON line a logged step, and the same scalars for TensorBoard.

`metrics.jsonl` is the record of truth and holds nothing that depends on the clock: after any number
of kills and resumes it is byte for byte that of an uninterrupted run.
"""

import contextlib
import importlib.util
import json
import math
import os
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from absl import logging

from jaxsparse import reports

_MISSING = "TensorBoard files need tensorboardX: pip install '.[launch]', or --notensorboard."


class Damaged(Exception):
  """Lines that cannot be written again are damaged; the message says which."""


class Metrics:
  """Writes the metrics of a run, from a step on.

  Args:
    workdir: the run directory.
    after: the step the run continues from; lines of later steps are what a killed process wrote
      and its successor writes again, so they go.
    tensorboard: whether TensorBoard files are written too.

  Raises:
    ValueError: TensorBoard files are wanted and tensorboardX is not installed.
    Damaged: a line before `after` is damaged.
  """

  def __init__(self, workdir: pathlib.Path, *, after: int, tensorboard: bool):
    if tensorboard:
      require_tensorboard()
    self._path = workdir / 'metrics.jsonl'
    if os.path.lexists(self._path):
      reports.write_whole(self._path, ''.join(_until(self._path, after)))
    self._file = open(self._path, 'ab', buffering=0)  # noqa: SIM115 (closed by `close`)
    self._whole, self._lines = os.fstat(self._file.fileno()).st_size, b''
    self._board = _Board(workdir / 'tensorboard', after) if tensorboard else None

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs the scalars of a step; NaN and infinities become null, which JSON can say."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._lines += (json.dumps({'step': step, **finite}, allow_nan=False) + '\n').encode()
    if self._board is not None:
      self._board.write(step, values)

  def flush(self) -> None:
    """Puts everything logged on disk: called before the checkpoint of the same step.

    Raises:
      OSError: it is not there, and the next call tries again.
    """
    # A part that a full disk took is written over.
    os.ftruncate(self._file.fileno(), self._whole)
    rest = self._lines
    while rest:
      rest = rest[self._file.write(rest) :]
    os.fsync(self._file.fileno())
    self._whole, self._lines = self._whole + len(self._lines), b''
    if self._board is not None:
      self._board.flush()

  def close(self) -> None:
    """Flushes, as far as the disk allows, and closes the files."""
    try:
      self.flush()
    except OSError as error:  # a run that ends for it has said so, and keeps its own reason
      logging.warning('The last lines of %s are not written: %s', self._path.name, error)
    self._file.close()
    if self._board is not None:
      self._board.close()


class NoMetrics:
  """What processes other than the first log: nothing."""

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Ignores them."""

  def flush(self) -> None:
    """Has nothing to flush."""

  def close(self) -> None:
    """Has nothing to close."""


def require_tensorboard() -> None:
  """Checks that TensorBoard files can be written.

  Raises:
    ValueError: tensorboardX is not installed.
  """
  if importlib.util.find_spec('tensorboardX') is None:
    raise ValueError(_MISSING)


def _until(path: pathlib.Path, step: int) -> Iterable[str]:
  """The whole lines up to a step; the rest is torn or about to be written again."""
  try:
    lines = path.read_bytes().splitlines(keepends=True)
  except IsADirectoryError as error:
    raise Damaged(f'{path} is a directory.') from error
  for number, line in enumerate(lines, 1):
    if not line.endswith(b'\n'):
      return  # torn by a kill
    try:
      text = line.decode()
      if json.loads(text)['step'] > step:
        return
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise Damaged(f'{path}, line {number} is damaged: {error}.') from error
    yield text


class _Board:
  """TensorBoard's files, written by this thread.

  tensorboardX's own thread ends on a full disk, and then a run waits for it for ever. Nothing is
  decided by these files, so a failure costs them and not the run.
  """

  def __init__(self, folder, after):
    from tensorboardX import record_writer
    from tensorboardX import summary
    from tensorboardX.proto import event_pb2

    self._scalar, self._pb = summary.scalar, event_pb2
    self._file = None
    try:
      folder.mkdir(exist_ok=True)
      # Two files of one second would have one name, and the second would empty the first.
      number = sum(1 for _ in folder.iterdir())
      name = f'events.out.tfevents.{int(time.time())}.{number}'
      self._file = record_writer.RecordWriter(str(folder / name))
    except OSError as error:
      self._give_up(error)
    self._put(event_pb2.Event(file_version='brain.Event:2'))
    if after:  # hides what a killed process logged after the checkpoint it is resumed from
      log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
      self._put(event_pb2.Event(step=after + 1, session_log=log))

  def write(self, step, values):
    for name, value in values.items():
      self._put(self._pb.Event(step=step, summary=self._scalar(name, value)))

  def flush(self):
    self._try(lambda file: file.flush())

  def close(self):
    self._try(lambda file: file.close())

  def _put(self, event):
    event.wall_time = time.time()
    self._try(lambda file: file.write(event.SerializeToString()))

  def _try(self, act):
    if self._file is None:
      return
    try:
      act(self._file)
    except OSError as error:
      self._give_up(error)

  def _give_up(self, error):
    file, self._file = self._file, None
    if file is not None:
      with contextlib.suppress(OSError):
        file.close()  # flushes first, in vain, and lets go of the file nevertheless
    logging.warning('TensorBoard files are no longer written: %s', error)
