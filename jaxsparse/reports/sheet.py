"""The runs of a sweep as a table: CSV for everybody, Parquet where pyarrow is installed."""

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from jaxsparse.reports import quoting
from jaxsparse.reports import record as records_lib
from jaxsparse.reports import runs as runs_lib

_OURS = {'name', 'status', 'model', *records_lib.FIGURES, 'attempts', 'seconds', 'code', 'reason'}


def rows(runs: Sequence[runs_lib.Run]) -> list[dict[str, Any]]:
  """Returns one mapping a run, all with the same columns; what is missing or NaN is None.

  A setting called like a column of its own, as vision's `model` is, becomes `setting.model`.
  """
  settings = {name: _column(name) for name in _union(run.settings for run in runs)}
  figures = [f for f in _union(run.figures for run in runs) if f not in records_lib.FIGURES]
  made = []
  for run in runs:
    row = {'name': run.name, 'status': run.status}
    row |= {column: _scalar(run.settings.get(name)) for name, column in settings.items()}
    row |= {
      name: _scalar(getattr(run.record, name)) if run.record else None
      for name in ('model', *records_lib.FIGURES)
    }
    row |= {f'figure.{name}': _scalar(run.figures.get(name)) for name in figures}
    row |= {
      'attempts': run.attempts,
      'seconds': _scalar(run.seconds),
      'code': run.code,
      'reason': run.reason or None,
    }
    made.append(row)
  return made


def csv_text(runs: Sequence[runs_lib.Run]) -> str:
  """Returns the runs as CSV: a heading, one line a run, no cell a spreadsheet takes for a formula.

  Numbers are written in full; what is missing or no finite number is an empty cell.
  """
  table = rows(runs)
  buffer = io.StringIO()
  writer = csv.writer(buffer, lineterminator='\n')
  if table:
    writer.writerow([quoting.cell(name) for name in table[0]])
  for row in table:
    writer.writerow([_written(quoting.cell(value)) for value in row.values()])
  return buffer.getvalue()


def parquet(runs: Sequence[runs_lib.Run]) -> bytes | None:
  """Returns the runs as Parquet, columns typed, or None where pyarrow is not installed."""
  try:
    import pyarrow
    from pyarrow import parquet as writer
  except ImportError:
    return None
  table = rows(runs)
  columns = {}
  for name in table[0] if table else ():
    values = [row[name] for row in table]
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
      values = [None if value is None else float(value) for value in values]
    elif len(kinds) > 1 or any(type(v) is int and abs(v) >= 2**63 for v in values):
      values = [None if value is None else str(value) for value in values]
    columns[name] = [quoting.visible(v) if isinstance(v, str) else v for v in values]
  buffer = io.BytesIO()
  writer.write_table(pyarrow.table(columns), buffer)
  return buffer.getvalue()


def _column(setting):
  """A setting's column: its name, unless that is a column of every table."""
  return f'setting.{setting}' if setting in _OURS else setting


def _union(mappings):
  return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _scalar(value):
  if isinstance(value, float) and value - value != 0:
    return None
  return json.dumps(value) if isinstance(value, (tuple, list, dict)) else value


def _written(value):
  return '' if value is None else repr(value) if isinstance(value, float) else value
