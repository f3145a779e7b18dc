"""The run directory: what was asked, what happened, and whether it is finished.

Every file appears whole or not at all. `config.json` is written once and decides whether the same
command resumes; `result.json` is written last and says that there is nothing left to do.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from jaxsparse import reports
from launch.runs import ledger

_ROOT = pathlib.Path(__file__).resolve().parents[2]


class Taken(Exception):
  """Another process is at work in the run directory."""


def describe(experiment: str, size: str, config: Any, recipe: str) -> dict[str, Any]:
  """Returns what `config.json` holds: everything that shapes the numbers."""
  fields = dataclasses.asdict(config)
  return json.loads(
    json.dumps(
      {'experiment': experiment, 'size': size, 'transform': recipe, 'config': fields},
      allow_nan=False,
    )
  )


def open_run(workdir: pathlib.Path, description: Mapping[str, Any]) -> str:
  """Makes a run directory or recognizes one; returns `'new'`, `'resumed'` or `'finished'`.

  Args:
    workdir: the directory.
    description: from `describe`.

  Raises:
    ValueError: the directory belongs to another run (lists what differs) or holds other files.
  """
  path = workdir / 'config.json'
  if path.exists():
    found = read_json(path)
    if not isinstance(found, dict):
      raise ValueError(f'{path} is damaged: it holds no configuration.')
    differ = list(_differences(found, description))
    if differ:
      raise ValueError(
        '\n'.join([f'{workdir} holds another run; choose another --workdir:', *differ])
      )
    return 'finished' if _has_result(workdir) else 'resumed'
  # An interrupted start leaves at most the folders and the lock that come before the config.
  started = {'hosts', 'lock', 'ledger.jsonl', 'failure.json', 'provenance.json'}
  if workdir.exists() and not workdir.is_dir():
    raise ValueError(f'{workdir} is a file; a run directory was expected.')
  if workdir.is_dir():
    names = (f.name for f in workdir.iterdir() if not f.name.endswith(('.partial', '.log')))
    others = sorted(set(names) - started)
    if others:
      raise ValueError(f'{workdir} holds files of something else: {", ".join(others[:5])}.')
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / 'provenance.json', provenance())
  write_json(path, description)
  return 'new'


def _has_result(workdir):
  """Whether the run is finished; a damaged result is set aside, and made again."""
  path = workdir / 'result.json'
  if not os.path.lexists(path):
    return False
  try:
    result = read_json(path)
    if isinstance(result, dict) and result.get('status') == 'finished':
      return True
    reason = 'it is no result'
  except (OSError, ValueError) as error:
    reason = str(error)
  path.rename(workdir / f'result.json.damaged-{time.time_ns()}')
  logging.error('result.json is damaged, set aside and made again: %s', reason)
  ledger.append(workdir, 'damaged', file='result.json', reason=reason)
  return False


def _differences(found, expected, prefix=''):
  for name in sorted({*found, *expected}):
    old, new = found.get(name), expected.get(name)
    if isinstance(old, dict) and isinstance(new, dict):
      yield from _differences(old, new, f'{prefix}{name}.')
    elif old != new:
      yield f'  {prefix}{name}: found {old!r}, asked {new!r}'


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps a second process of the same run out while the block runs.

  The lock is the kernel's, so a killed process leaves none behind.

  Raises:
    Taken: someone is in there.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'lock', 'a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise Taken(f'{workdir}: another process is at work on this run.') from error
    yield


def fail(workdir: pathlib.Path, code: int, reason: str, step: int | None = None) -> None:
  """Writes `failure.json`, which a sweep's report quotes."""
  if (workdir / 'config.json').exists():
    failure = {'status': 'failed', 'code': code, 'reason': reason, 'step': step}
    try:
      write_json(workdir / 'failure.json', failure)
    except OSError as error:  # a full disk, say: the exit code is left
      logging.error('failure.json cannot be written: %s', error)
    ledger.append(workdir, 'stop', code=code, reason=reason, step=step)


def finish(workdir: pathlib.Path, result: Mapping[str, Any]) -> None:
  """Writes `result.json`: the run is finished."""
  write_json(workdir / 'result.json', result)
  (workdir / 'failure.json').unlink(missing_ok=True)
  ledger.append(workdir, 'finished')


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON whole or not at all; NaN is a ValueError."""
  reports.write_whole(path, json.dumps(value, indent=2, allow_nan=False) + '\n')


def read_json(path: pathlib.Path) -> Any:
  """Returns the JSON of a file.

  Raises:
    ValueError: naming the file that is damaged.
  """
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is no JSON: {error}.') from error


@functools.cache
def provenance() -> Mapping[str, Any]:
  """Returns versions, revision, date and class of machine at the start; no host, user or path."""
  facts = reports.provenance('python -m launch.run')
  del facts['Command']  # config.json says it, and the work directory is nobody else's business
  return {**{key.lower(): value for key, value in facts.items()}, 'revision': _revision()}


def _revision() -> str:
  """The commit of the checkout, `+changes` after it where the tree differs."""
  git = lambda *words: subprocess.run(
    ['git', '-C', str(_ROOT), *words], capture_output=True, text=True, timeout=20, check=True
  ).stdout.strip()
  try:
    return git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain') else '')
  except (OSError, subprocess.SubprocessError):
    return 'unknown: not a git checkout, or no git'


def default_workdir(experiment: str) -> pathlib.Path:
  """Returns `runs/<experiment>-<date>-<time>`."""
  return pathlib.Path('runs') / f'{experiment}-{time.strftime("%Y%m%d-%H%M%S")}'
