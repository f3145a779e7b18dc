"""Where the files of a sweep are, who may be at work among them, and what its plan is."""

import contextlib
import fcntl
import json
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence

from jaxsparse import reports
from launch import documents
from launch.sweeps import points

_PLAN_VERSION = 1


class Places:
  """Where the files of a sweep are."""

  def __init__(self, workdir: pathlib.Path):
    self.workdir = workdir
    self.plan = workdir / 'sweep.json'
    self._lock = workdir / 'sweep.lock'
    self.stop = workdir / 'state' / 'stop'
    self.engine = workdir / 'engine'
    self.cache = workdir / 'cache'

  def run(self, name: str) -> pathlib.Path:
    """The run directory of a point."""
    return self._below('runs', name)

  def log(self, name: str) -> pathlib.Path:
    """What a point printed."""
    return self._below('logs', name, '.log')

  def state(self, name: str) -> pathlib.Path:
    """How a point is doing, by its keeper."""
    return self._below('state', name, '.json')

  def point_lock(self, name: str) -> pathlib.Path:
    """What every process of a point holds."""
    return self._below('state', name, '.lock')

  def _below(self, folder, name, ending=''):
    if not points.NAME.fullmatch(name):
      raise ValueError(f'Not the name of a point: {name!r}.')
    return self.workdir / folder / f'{name}{ending}'

  @contextlib.contextmanager
  def alone(self) -> Iterator[None]:
    """Keeps a second sweep out of the directory while the block runs.

    The lock goes with this process, however it ends.

    Raises:
      ValueError: another sweep is at work there, or the directory holds something else.
    """
    if self.workdir.exists() and not self.plan.exists():
      others = [p.name for p in self.workdir.iterdir() if p.name != self._lock.name]
      if others:
        raise ValueError(f'{self.workdir} holds files of something else: {", ".join(others[:5])}.')
    self.workdir.mkdir(parents=True, exist_ok=True)
    with open(self._lock, 'a+', encoding='utf-8') as file:
      try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ValueError(f'{self.workdir}: another sweep is at work there.') from error
      yield

  def record(self, grid: str, defaults: points.Defaults, asked: Sequence[points.Point]) -> None:
    """Writes sweep.json and makes the folders.

    Args:
      grid: the text.
      defaults: what points share.
      asked: all points.

    Raises:
      ValueError: the directory's own grid has points this one lacks, or a folder is a link: what
        runs write must stay below the sweep.
    """
    if self.plan.exists():
      found = documents.read(self.plan)
      try:
        before = {point['name'] for point in found['points']}
      except (TypeError, KeyError) as error:
        raise ValueError(f'{self.plan} is damaged; move it away to start anew.') from error
      missing = sorted(map(str, before - {point.name for point in asked}))
      if missing:
        raise ValueError(
          f'{self.workdir} holds another sweep: {len(missing)} of its points are not in this grid '
          f'({", ".join(missing[:3])}). A grid may only add points; or choose another --workdir.'
        )
    for folder in ('runs', 'logs', 'state'):
      (self.workdir / folder).mkdir(exist_ok=True)
    linked = [p for p in self.workdir.glob('*') if p.is_symlink()]
    linked += [p for point in asked if (p := self.run(point.name)).is_symlink()]
    if linked:
      raise ValueError(f'{linked[0]} is a link; a sweep writes below its own directory only.')
    private(self.cache)  # executables are loaded from there
    plan = {
      'version': _PLAN_VERSION,
      'grid': grid,
      'defaults': defaults._asdict(),
      'points': [points.to_json(point) for point in asked],
    }
    reports.write_whole(self.plan, json.dumps(plan, indent=2, allow_nan=False) + '\n')


def private(folder: pathlib.Path) -> None:
  """Makes a folder only its owner may open.

  Raises:
    ValueError: it is there and is a link, or somebody else's.
  """
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  found = folder.lstat()
  if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
    raise ValueError(f'{folder} is not a folder of this user alone.')
  folder.chmod(0o700)
