"""What the directories of a sweep say: how far each point is, and in the end its figures.

Everything read here was written by another process, perhaps not to its end: what is missing or
damaged is left out, and what is no number is None.
"""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxsparse import reports
from launch import documents
from launch.sweeps import keeper
from launch.sweeps import places as places_lib
from launch.sweeps import points

_TAIL_BYTES = 4096
_MOST_LINES = 200_000
_FILES = {
  'result': 'result.json',
  'metrics': 'metrics.jsonl',
  'config': 'config.json',
  'ledger': 'ledger.jsonl',
  'provenance': 'provenance.json',
  'checkpoints': 'checkpoints/',
  'TensorBoard': 'tensorboard/',
}


def row(places: places_lib.Places, point: points.Point) -> reports.Row:
  """Returns how a point is doing now."""
  run = places.run(point.name)
  state = documents.read(places.state(point.name)) or {}
  status = state.get('status', 'waiting')
  # A keeper still has its own account to give when the result is there.
  if keeper.finished(run) is not None and status != 'running':
    return reports.Row(point.name, 'finished', loss=_last(run).get('loss'))
  if status not in ('running', 'failed', 'stopped'):
    return reports.Row(point.name, 'waiting')
  last = _last(run)
  config = (documents.read(run / 'config.json') or {}).get('config')
  steps = config.get('steps') if isinstance(config, Mapping) else None
  note = str(state.get('reason', '')).partition('\n')[0] if status == 'failed' else ''
  return reports.Row(
    point.name,
    status,
    step=last.get('step') if isinstance(last.get('step'), int) else None,
    steps=steps if isinstance(steps, int) else None,
    loss=last.get('loss'),
    note=note,
  )


def _last(run) -> dict[str, Any]:
  """The last whole line of the metrics, numbers only."""
  try:
    with open(run / 'metrics.jsonl', 'rb') as file:
      file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
      lines = file.read().decode('utf-8', 'replace').split('\n')
  except OSError:
    return {}
  for line in reversed(lines[:-1]):
    values = _parsed(line)
    if values:
      return values
  return {}


def _parsed(line):
  try:
    values = json.loads(line)
  except (ValueError, RecursionError):
    return {}
  if not isinstance(values, dict) or type(values.get('step')) is not int or values['step'] < 0:
    return {}
  return {name: value for name, value in values.items() if _is_number(value)}


def _is_number(value):
  return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)


def curves(run: pathlib.Path) -> dict[str, list[tuple[int, float | None]]]:
  """Returns every metric a run logged as `[(step, value)]`; a null is a gap."""
  found = {}
  try:
    with open(run / 'metrics.jsonl', encoding='utf-8', errors='replace') as file:
      for _, line in zip(range(_MOST_LINES), file):
        values = _parsed(line)
        if not values:
          continue
        for name, value in json.loads(line).items():
          if name != 'step' and (value is None or _is_number(value)):
            found.setdefault(name, []).append((values['step'], value))
  except OSError:
    pass
  return found


def record(result: Mapping[str, Any]) -> reports.Record:
  """Returns the record of a result.

  Raises:
    ValueError: it holds none.
  """
  try:
    return reports.finite(reports.from_json(json.dumps(result['record'])))
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'result.json holds no record: {error}') from error


def run(places: places_lib.Places, point: points.Point) -> reports.Run:
  """Returns what a point came to, for the report."""
  folder = places.run(point.name)
  state = documents.read(places.state(point.name)) or {}
  result = keeper.finished(folder)
  found, figures, reason = None, {}, str(state.get('reason') or '')
  if result is not None:
    try:
      found = record(result)
    except ValueError as error:
      reason = str(error)
    given = result.get('figures')
    figures = {k: v for k, v in given.items() if _is_number(v)} if isinstance(given, dict) else {}
  failed = state.get('status')
  if failed not in ('failed', 'stopped'):
    # No keeper of ours was there, or it is still there: what the run itself says.
    said = documents.read(folder / 'failure.json') or {}
    reason = reason or str(said.get('reason', ''))
    failed = 'failed' if said else 'unfinished' if (folder / 'config.json').exists() else 'not run'
  files = {word: path for word, path in _FILES.items() if (folder / path).exists()}
  files = {word: f'runs/{point.name}/{path}' for word, path in files.items()}
  if places.log(point.name).exists():
    files['log'] = f'logs/{point.name}.log'
  return reports.Run(
    name=point.name,
    settings={'transform': point.transform, 'seed': point.seed, 'size': point.size, **point.fields},
    status='finished' if found is not None else failed,
    record=found,
    figures=figures,
    curves=curves(folder),
    reason='' if found is not None else reason,
    code=state.get('code') if isinstance(state.get('code'), int) else None,
    attempts=state.get('attempts') if isinstance(state.get('attempts'), int) else 0,
    seconds=state.get('seconds') if _is_number(state.get('seconds')) else None,
    files=files,
  )


def provenance(places: places_lib.Places, all_points, command: str) -> dict[str, str]:
  """Returns what made the numbers: the sweep's command and what the first run says of the rest."""
  facts = {'Command': command}
  for point in all_points:
    found = documents.read(places.run(point.name) / 'provenance.json')
    if found and keeper.finished(places.run(point.name)) is not None:
      facts |= {
        str(name)[:40].capitalize(): value[:400]
        for name, value in found.items()
        if isinstance(value, str)
      }
      break
  return facts
