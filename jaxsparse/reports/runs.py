"""The runs of a sweep: what each came to, and the mean and spread over seeds."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxsparse.reports import record as records_lib

FINISHED = 'finished'


class Run(NamedTuple):
  """One point of a sweep.

  Attributes:
    name: of the point and of its directory.
    settings: what makes it this point: transform, seed, fields; scalars, strings, tuples.
    status: `'finished'`, or a word that says why there is no result.
    record: its figures; None where it did not finish.
    figures: what its experiment measured beside the record, by name.
    curves: metric to `[(step, value or None)]`.
    reason: why it failed, one or several lines.
    code: its exit code.
    attempts: how often it was started.
    seconds: it took, all tries.
    files: word to the relative path of a file or folder of its directory.
  """

  name: str
  settings: Mapping[str, Any]
  status: str
  record: records_lib.Record | None = None
  figures: Mapping[str, float | None] = {}
  curves: Mapping[str, Sequence[tuple[int, float | None]]] = {}
  reason: str = ''
  code: int | None = None
  attempts: int = 0
  seconds: float | None = None
  files: Mapping[str, str] = {}


class Group(NamedTuple):
  """Runs that differ in their seed alone.

  Attributes:
    label: their settings but the seed, those that differ within the sweep.
    runs: in the order given.
    record: the mean of the finished ones; None when none finished.
  """

  label: str
  runs: Sequence[Run]
  record: records_lib.Record | None


class Spread(NamedTuple):
  """Mean and sample standard deviation of some seeds; the deviation of one seed is None."""

  mean: float
  deviation: float | None
  count: int


def spread(values: Sequence[float | None]) -> Spread | None:
  """Returns mean and deviation of the finite values, or None where there is none.

  Example:
    >>> spread([0.5, 0.7, None])
    Spread(mean=0.6, deviation=0.1414..., count=2)
  """
  finite = [v for v in values if v is not None and math.isfinite(v)]
  if not finite:
    return None
  deviation = statistics.stdev(finite) if len(finite) > 1 else None
  return Spread(statistics.fmean(finite), deviation, len(finite))


def groups(runs: Sequence[Run]) -> list[Group]:
  """Returns the runs by everything but their seed, in the order of their first run."""
  rest = lambda run: {k: v for k, v in run.settings.items() if k != 'seed'}
  names = sorted({name for run in runs for name in rest(run)})
  values = {name: {repr(rest(run).get(name)) for run in runs} for name in names}
  told = [n for n in names if n == 'transform' or len(values[n]) > 1]
  # The transform says most, so it comes first.
  told.sort(key=lambda name: (name != 'transform', name))
  by_key = {}
  for run in runs:
    by_key.setdefault(repr(sorted(rest(run).items())), []).append(run)
  made, dense = [], set()
  for members in by_key.values():
    label = _label(rest(members[0]), told)
    record = _mean(members, label)
    if record is not None and record.baseline:
      # Costs are compared with one dense model, the first.
      record = dataclasses.replace(record, baseline=record.model not in dense)
      dense.add(record.model)
    made.append(Group(label, members, record))
  return made


def _label(settings, told):
  parts = []
  for name in told:
    if name in settings:
      value = settings[name]
      parts.append(str(value) if name == 'transform' else f'{name}={value}')
  return ', '.join(parts) or 'the run'


def _mean(members, label):
  records = [records_lib.finite(run.record) for run in members if run.record is not None]
  if not records:
    return None
  figures, reasons, deviations = {}, {}, {}
  for name in records_lib.FIGURES:
    found = spread([getattr(record, name) for record in records])
    if found is None:
      told = [record.reasons[name] for record in records if name in record.reasons]
      reasons |= {name: told[0]} if told else {}
      continue
    # Sizes in bytes stay whole numbers.
    figures[name] = round(found.mean) if name == 'size_bytes' else found.mean
    if found.deviation is not None:
      deviations[f'{name}_deviation'] = found.deviation
  seeds = ', '.join(str(record.seed) for record in records)
  first = records[0]
  about = {'about': first.details['about']} if isinstance(first.details.get('about'), str) else {}
  return records_lib.Record(
    model=first.model,
    label=label,
    transform=first.transform,
    baseline=all(record.baseline for record in records),
    seed=first.seed,
    **figures,
    details={**about, 'seeds': seeds, **deviations},
    reasons=reasons,
  )
