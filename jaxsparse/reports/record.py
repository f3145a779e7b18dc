"""What was measured of one run, and files that are written whole or not at all.

A figure that is not a finite number is never written as one: it becomes `null`, and the record's
`reasons` say why.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
  """One compression of one model, measured after packing.

  A figure may be None; `reasons[field]` then says why.

  Attributes:
    model: the model's name, e.g. `'cnn'`; costs are compared within a model.
    label: what a reader calls the run, e.g. `'2:4 and int8'`.
    transform: spelled form of the transform, `'identity()'` for the dense baseline.
    baseline: whether the other runs of the model are compared with this one.
    seed: seed of initialization, data order and random transforms.
    accuracy: fraction of held-out examples classified right by the packed weights.
    size_bytes: bytes of the packed tree, uncompressed parameters included.
    flops_ideal: per example, were every zero skipped and every factor used.
    flops_executed: per example, as this backend runs the packed weights.
    latency_ratio: median latency over the baseline's, runs interleaved.
    sparsity: fraction of zeros over the masked weights; None where nothing is masked.
    train_seconds: wall time of training, compilation included.
    details: anything else worth keeping, JSON values only.
    reasons: why a figure is missing, by field.
  """

  model: str
  label: str
  transform: str
  baseline: bool = False
  seed: int = 0
  accuracy: float | None = None
  size_bytes: int | None = None
  flops_ideal: float | None = None
  flops_executed: float | None = None
  latency_ratio: float | None = None
  sparsity: float | None = None
  train_seconds: float | None = None
  details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)


FIGURES = (
  'accuracy',
  'size_bytes',
  'flops_ideal',
  'flops_executed',
  'latency_ratio',
  'sparsity',
  'train_seconds',
)


def finite(record: Record) -> Record:
  """Returns the record with every non-finite figure replaced by None and a reason.

  Example:
    >>> r = finite(Record(model='cnn', label='int8', transform='t', accuracy=float('nan')))
    >>> r.accuracy, r.reasons['accuracy']
    (None, 'nan is not a finite number')
  """
  figures, reasons = {}, dict(record.reasons)
  for name in FIGURES:
    value = getattr(record, name)
    if value is not None and not math.isfinite(value):
      figures[name] = None
      reasons.setdefault(name, f'{value} is not a finite number')
  details = _finite_json(record.details, 'details', reasons)
  return dataclasses.replace(record, **figures, details=details, reasons=reasons)


def _finite_json(value, path, reasons):
  if isinstance(value, float) and not math.isfinite(value):
    reasons.setdefault(path, f'{value} is not a finite number')
    return None
  if isinstance(value, Mapping):
    return {str(k): _finite_json(v, f'{path}/{k}', reasons) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite_json(v, f'{path}/{i}', reasons) for i, v in enumerate(value)]
  if value is None or isinstance(value, (str, bool, int, float)):
    return value
  raise ValueError(f'{path}: a record holds JSON values, got {type(value).__name__}: {value!r}')


def to_json(record: Record) -> str:
  """Returns the record as one line of JSON without NaN or infinity.

  Raises:
    ValueError: if `details` holds something JSON cannot say; names where.
  """
  return json.dumps(dataclasses.asdict(finite(record)), allow_nan=False, ensure_ascii=False)


def from_json(line: str) -> Record:
  """Returns the record of one line of `results.jsonl`.

  Raises:
    ValueError: if the line is no JSON object, or its fields are not a record's.
  """
  fields = json.loads(line)
  known = {field.name for field in dataclasses.fields(Record)}
  if not isinstance(fields, dict):
    raise ValueError(f'A record is a JSON object, got {type(fields).__name__}.')
  unknown, missing = (
    sorted(set(fields) - known),
    sorted({'model', 'label', 'transform'} - set(fields)),
  )
  if unknown or missing:
    raise ValueError(f'Not a record: unknown fields {unknown}, missing fields {missing}.')
  _check_types(fields)
  return Record(**fields)


def _check_types(fields):
  wrong = lambda name, expected: ValueError(
    f'Not a record: {name} is {expected}, got {type(fields[name]).__name__}.'
  )
  for name in ('model', 'label', 'transform'):
    if not isinstance(fields[name], str):
      raise wrong(name, 'a string')
  for name in FIGURES:
    if type(fields.get(name)) not in (int, float, type(None)):
      raise wrong(name, 'a number or null')
  for name, kind in (('baseline', bool), ('seed', int)):
    if type(fields.get(name, kind())) is not kind:
      raise wrong(name, f'a {kind.__name__}')
  for name in ('details', 'reasons'):
    if not isinstance(fields.get(name, {}), dict):
      raise wrong(name, 'an object')
  if not all(isinstance(reason, str) for reason in fields.get('reasons', {}).values()):
    raise ValueError('Not a record: reasons are strings.')


def write_jsonl(path: str | os.PathLike, records: Iterable[Record]) -> pathlib.Path:
  """Writes one record a line, whole or not at all; returns the path."""
  return write_whole(path, ''.join(to_json(record) + '\n' for record in records))


def read_jsonl(path: str | os.PathLike) -> list[Record]:
  """Returns the records of a file written by `write_jsonl`.

  Raises:
    ValueError: naming the line that is not a record.
  """
  records = []
  for number, line in enumerate(pathlib.Path(path).read_text(encoding='utf-8').splitlines(), 1):
    try:
      records.append(from_json(line))
    except ValueError as error:
      raise ValueError(f'{path}, line {number}: {error}') from error
  return records


def write_whole(path: str | os.PathLike, content: str | bytes) -> pathlib.Path:
  """Writes a file so that a reader sees the old content or the new, never a part; returns the path.

  The content goes to a temporary name in the same directory, is flushed to the disk, and takes the
  final name in one rename. When anything fails the old file is untouched and nothing is left over.
  """
  path = pathlib.Path(path)
  data = content.encode('utf-8') if isinstance(content, str) else content
  descriptor, temporary = tempfile.mkstemp(
    dir=path.parent, prefix=f'.{path.name}.', suffix='.partial'
  )
  try:
    with os.fdopen(descriptor, 'wb') as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    # mkstemp's mode is private; a report is meant to be read like any other file.
    os.chmod(temporary, 0o666 & ~_umask())
    os.replace(temporary, path)
  except BaseException:
    with contextlib.suppress(FileNotFoundError):
      os.unlink(temporary)
    raise
  return path


def write_directory(path: str | os.PathLike, files: Mapping[str, str | bytes]) -> pathlib.Path:
  """Writes a new directory that appears with all its files or not at all; returns the path.

  Args:
    path: directory that does not exist yet, or is empty.
    files: content by file name.

  Raises:
    ValueError: if `path` holds files already, or is one; nothing is written then.
  """
  path = check_directory(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    dir=path.parent, prefix=f'.{path.name}.', suffix='.partial'
  ) as staging:
    inner = pathlib.Path(staging) / path.name
    inner.mkdir()
    for name, content in files.items():
      write_whole(inner / name, content)
    os.replace(inner, path)
  return path


def check_directory(path: str | os.PathLike) -> pathlib.Path:
  """Returns the path if `write_directory` may create it; asked before hours of work, not after.

  Raises:
    ValueError: if `path` holds files already or is one, or its parent cannot be written to.
  """
  path = pathlib.Path(path).expanduser().absolute()
  if path.is_dir() and any(path.iterdir()):
    raise ValueError(
      f'{path} holds files already; a run directory is new or empty. Choose another.'
    )
  if path.exists() and not path.is_dir():
    raise ValueError(f'{path} is a file; a run directory was expected.')
  parent = next(p for p in path.parents if p.exists())
  if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
    raise ValueError(f'{path} cannot be created: {parent} is no directory this user may write to.')
  return path


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
