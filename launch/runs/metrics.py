"""What a run logs: one JSON line a logged step, and the same scalars for TensorBoard.

`metrics.jsonl` is the record of truth and holds nothing that depends on the clock: after any number
of kills and resumes it is byte for byte that of an uninterrupted run.
"""

import json
import math
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from jaxsparse import reports

_MISSING = (
  "TensorBoard files need tensorboardX: pip install 'jaxsparse[launch]', or --notensorboard."
)


class Metrics:
  """Writes the metrics of a run, from a step on.

  Args:
    workdir: the run directory.
    after: the step the run continues from; lines of later steps are what a killed process wrote
      and its successor writes again, so they go.
    tensorboard: whether TensorBoard files are written too.

  Raises:
    ImportError: TensorBoard files are wanted and tensorboardX is not installed.
    ValueError: a line before `after` is damaged.
  """

  def __init__(self, workdir: pathlib.Path, *, after: int, tensorboard: bool):
    self._path = workdir / 'metrics.jsonl'
    if self._path.exists():
      reports.write_whole(self._path, ''.join(_until(self._path, after)))
    self._file = open(self._path, 'a', encoding='utf-8')  # noqa: SIM115 (closed by `close`)
    self._board = _board(workdir / 'tensorboard', after) if tensorboard else None

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Logs the scalars of a step; NaN and infinities become null, which JSON can say."""
    finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
    self._file.write(json.dumps({'step': step, **finite}, allow_nan=False) + '\n')
    if self._board is not None:
      for name, value in values.items():
        self._board.add_scalar(name, value, step)

  def flush(self) -> None:
    """Puts everything logged on disk: called before the checkpoint of the same step."""
    self._file.flush()
    os.fsync(self._file.fileno())
    if self._board is not None:
      self._board.flush()

  def close(self) -> None:
    """Flushes and closes the files."""
    self.flush()
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


def _until(path: pathlib.Path, step: int) -> Iterable[str]:
  """The whole lines up to a step; the rest is torn or about to be written again."""
  for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(keepends=True), 1):
    try:
      if json.loads(line)['step'] > step or not line.endswith('\n'):
        return
    except (ValueError, KeyError, TypeError) as error:
      if not line.endswith('\n'):
        return  # torn by a kill
      raise ValueError(f'{path}, line {number} is damaged: {error}.') from error
    yield line


def _board(folder: pathlib.Path, after: int):
  try:
    import tensorboardX
  except ImportError as error:
    raise ImportError(_MISSING) from error
  # `purge_step` hides what a killed process logged after the checkpoint it is resumed from.
  return tensorboardX.SummaryWriter(str(folder), purge_step=after + 1 if after else None)
