"""The directories of a run's checkpoints: which exist, what they are called, what may go.

`<step>` is committed, `<step>.writing` is not yet, `<step>.deleting` no longer; `<step>.damaged` is
kept for whoever wants to look. Every change of state is a rename.
"""

import errno
import os
import pathlib
import re
import shutil
from typing import Any

from absl import logging

from jaxsparse.training import manifest

_STEP = re.compile(r'0|[1-9][0-9]*')
_LEFTOVER = re.compile(r'[0-9]+\.(writing|deleting)')


class StepDirectories:
  """The subdirectories of one directory; all methods read the disk and remember nothing.

  Attributes:
    root: the directory, which need not exist.
  """

  def __init__(self, root: pathlib.Path):
    self.root = root

  def found(self) -> list[int]:
    """Steps with a directory, ascending, whatever is in it."""
    if not self.root.is_dir():
      return []
    return sorted(int(entry.name) for entry in os.scandir(self.root)
                  if _STEP.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False))

  def committed(self) -> list[int]:
    """Steps with a manifest, ascending."""
    return [step for step in self.found() if (self.of(step) / manifest.NAME).is_file()]

  def of(self, step: int) -> pathlib.Path:
    """Where a step is once it is committed."""
    return self.root / str(step)

  def writing(self, step: int) -> pathlib.Path:
    """Where a step is written."""
    return self.root / f'{step}.writing'

  def reserve(self, step: int, rank: int, size: int) -> None:
    """Has the file system find room for `size` bytes and gives them back.

    Raises:
      OSError: it has none, or this process may not write there.
    """
    self.root.mkdir(parents=True, exist_ok=True)
    path = self.root / f'{step}.writing-{rank}'
    try:
      path.unlink(missing_ok=True)
      with open(path, 'xb') as f:
        if hasattr(os, 'posix_fallocate'):
          os.posix_fallocate(f.fileno(), 0, max(1, size))
    except OSError as e:
      # Not every file system can say in advance.
      if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
        raise OSError(e.errno, os.strerror(e.errno), str(path)) from e
    finally:
      path.unlink(missing_ok=True)

  def commit(self, step: int, about: dict[str, Any], keep: int | None) -> None:
    """Writes the manifest, makes the step count, and only then lets older ones go."""
    manifest.write(self.writing(step), about)
    self.writing(step).rename(self.of(step))
    manifest.sync_directory(self.root)
    for old in self.committed()[:-keep] if keep else []:
      # Renamed first: a directory that counts is never half there.
      gone = self.root / f'{old}.deleting'
      try:
        self.of(old).rename(gone)
        shutil.rmtree(gone)
      except OSError as e:
        logging.warning('Step %d is committed; step %d could not be removed: %s', step, old, e)

  def set_aside(self, step: int) -> None:
    """Renames a damaged step so that it no longer counts; nothing is deleted."""
    taken = {entry.name for entry in os.scandir(self.root)}
    names = [f'{step}.damaged', *(f'{step}.damaged-{k}' for k in range(2, len(taken) + 3))]
    try:
      self.of(step).rename(self.root / next(n for n in names if n not in taken))
    except OSError as e:
      logging.warning('Damaged step %d stays where it is: %s', step, e)

  def clear(self) -> None:
    """Removes what a killed or failed save left: it holds disk space and means nothing."""
    for entry in os.scandir(self.root) if self.root.is_dir() else []:
      if not _LEFTOVER.match(entry.name):
        continue
      if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path, ignore_errors=True)
      else:
        pathlib.Path(entry.path).unlink(missing_ok=True)
