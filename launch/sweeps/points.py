"""The points of a sweep: checked all at once before any starts, named so that names are safe.

A point is one command of `launch.run`. Its name is made of letters and digits its values happen to
hold and of a hash of the whole point, so it says something, is the same in every sweep, and can
leave no directory.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jaxsparse as jsp
from launch.runs import overlay

NAME = re.compile('[A-Za-z0-9][A-Za-z0-9._-]{0,63}')
_SHOWN_ERRORS = 20

# Flags of `launch.run` that no field of a configuration holds: what --options may set.
_OPTIONS = {
  'checkpoint_every': lambda v: type(v) is int and v > 0,
  'keep': lambda v: type(v) is int and v > 0,
  'log_every': lambda v: type(v) is int and v > 0,
  'on_nan': lambda v: v in ('stop', 'rollback'),
  'mesh': lambda v: isinstance(v, str) and bool(overlay.mesh_shape(v)),
  'tensorboard': lambda v: type(v) is bool,
}


class Defaults(NamedTuple):
  """What every point shares unless the grid says otherwise.

  Attributes:
    experiment: a file of experiments/.
    size: argument of its `get_config`.
    transform: spelled form.
    seed: of everything random.
    fields: fields of the configuration that differ from the size's.
    options: flags of `launch.run` beside these.
  """

  experiment: str
  size: str = ''
  transform: str = 'identity()'
  seed: int = 0
  fields: Mapping[str, Any] = {}
  options: Mapping[str, Any] = {}


class Point(NamedTuple):
  """One run: what shapes its numbers, and what the grid varied.

  Attributes:
    name: of its directory, from `NAME`.
    experiment: as in `Defaults`, and so are the next five.
    size: its configuration's.
    transform: canonical spelled form.
    seed: of everything random.
    fields: of the configuration.
    options: of `launch.run`.
    varied: what the grid assigned, by name.
  """

  name: str
  experiment: str
  size: str
  transform: str
  seed: int
  fields: Mapping[str, Any]
  options: Mapping[str, Any]
  varied: Mapping[str, Any]


def known_names(experiment: str, size: str) -> list[str]:
  """Returns the names a grid over an experiment may assign.

  Raises:
    ValueError: unknown experiment or size.
  """
  return ['transform', 'seed', 'size', *_fields(overlay.configure(experiment, size))]


def _fields(config):
  return [name for name in config.__dataclass_fields__ if name != 'seed']


def check_options(options: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the options of `launch.run` if it takes them.

  Raises:
    ValueError: an unknown option, with the known ones, or a value it does not take.
  """
  overlay.check_names(options, _OPTIONS, 'an option of launch.run that a sweep may set')
  for name, value in options.items():
    if not _OPTIONS[name](value):
      raise ValueError(f'--options: {name} does not take {overlay.short(repr(value))}.')
  return dict(options)


def validated(defaults: Defaults, grid_points: Sequence[Mapping[str, Any]]) -> list[Point]:
  """Returns the runs of a grid's points.

  Args:
    defaults: what the points share.
    grid_points: from `grid.points`.

  Raises:
    ValueError: lists every point whose transform does not parse, whose configuration is refused,
      or that is the same run as another.
  """
  check_options(defaults.options)
  made, bad, first = [], [], {}
  for number, values in enumerate(grid_points, 1):
    try:
      point = _point(defaults, values)
    except ValueError as error:
      bad.append(f'  point {number}, {overlay.short(_spelled(values))}: {_cut(str(error))}')
      continue
    if point.name in first:
      bad.append(f'  point {number} is the same run as point {first[point.name]}: {point.name}')
    first.setdefault(point.name, number)
    made.append(point)
  if bad:
    more = [f'  and {len(bad) - _SHOWN_ERRORS} more'] if len(bad) > _SHOWN_ERRORS else []
    heading = f'{len(bad)} of {len(grid_points)} points cannot run; nothing was started:'
    raise ValueError('\n'.join([heading, *bad[:_SHOWN_ERRORS], *more]))
  return made


def _point(defaults, values):
  asked = {'transform': defaults.transform, 'seed': defaults.seed, 'size': defaults.size}
  asked |= {**defaults.fields, **values}
  transform, seed, size = asked.pop('transform'), asked.pop('seed'), asked.pop('size')
  for name, value in (('size', size), ('transform', transform)):
    if not isinstance(value, str):
      raise ValueError(f'{name}: expected a string, got {overlay.short(repr(value))}.')
  config = overlay.configure(defaults.experiment, size, {**asked, 'seed': seed})
  # As the configuration holds them: 1 and 1.0 are one rate, and lists are tuples.
  fields = {name: getattr(config, name) for name in sorted(asked)}
  canonical = jsp.spell(jsp.parse(transform))
  jsp.parse(canonical)
  if overlay.parse(_set(fields)) != fields:
    raise ValueError(f'--set cannot say {overlay.short(repr(fields))}.')
  whole = {
    'experiment': defaults.experiment,
    'size': size,
    'transform': canonical,
    'seed': seed,
    'fields': fields,
    'options': dict(sorted(defaults.options.items())),
  }
  varied = {name: ({**whole, **fields})[name] for name in values}
  return Point(name=_name(whole, varied), varied=varied, **whole)


def _set(fields):
  return ', '.join(f'{name}={value!a}' for name, value in fields.items())


def _name(whole, varied):
  """Letters and digits of the varied values, then a hash of everything."""
  text = '-'.join(
    f'{name}-{value}' if name != 'transform' else str(value) for name, value in varied.items()
  )
  # A dot stays between digits, so 0.9 reads as a number and no `..` can be.
  words = re.sub(r'(?<![0-9])\.|\.(?![0-9])', '-', text)
  words = re.sub(r'[^A-Za-z0-9.]+', '-', words).strip('-.')
  digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:10]
  name = f'{words[:48].strip("-.") or "point"}-{digest}'
  assert NAME.fullmatch(name), name
  return name


def _cut(text):
  return text if len(text) <= 400 else f'{text[:397]}...'


def _spelled(values):
  return ', '.join(f'{name}={value!r}' for name, value in values.items())


def argv(point: Point, workdir: str) -> list[str]:
  """Returns the flags of `launch.run` for a point.

  Every value follows the `=` of a flag from a fixed list, so none can start another flag; text is
  written as an ASCII literal, so no character means anything on the way.

  Args:
    point: what to run.
    workdir: its run directory.

  Example:
    >>> argv(Point('a', 'vision', '', 'nm(2, 4)', 0, {'steps': 3}, {}, {}), '/tmp/a')[-2:]
    ['--set=steps=3', '--workdir=/tmp/a']
  """
  options = [
    (f'--{name}' if value else f'--no{name}') if isinstance(value, bool) else f'--{name}={value}'
    for name, value in point.options.items()
  ]
  return [
    f'--experiment={point.experiment}',
    f'--size={point.size}',
    f'--transform={point.transform}',
    f'--seed={point.seed}',
    *options,
    f'--set={_set(point.fields)}',
    f'--workdir={workdir}',
  ]


def to_json(point: Point) -> dict[str, Any]:
  """Returns a point as JSON values."""
  return json.loads(json.dumps(point._asdict(), allow_nan=False))
