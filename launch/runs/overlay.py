"""From flags to an experiment: names looked up, fields checked, nothing evaluated.

What arrives here is data from outside. It is parsed with `ast`, compared with what is known, and
refused with a sentence otherwise.
"""

import ast
import dataclasses
import difflib
import importlib
import math
import pathlib
import re
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import jaxsparse as jsp

_LONGEST = 10_000
_EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / 'experiments'


def experiments() -> list[str]:
  """Names that `--experiment` takes: files of the experiments folder that build a task."""
  builds = re.compile(r'^def build\(', re.MULTILINE)
  files = sorted(_EXPERIMENTS.glob('*.py'))
  return [f.stem for f in files if builds.search(f.read_text(encoding='utf-8'))]


def load(name: str) -> types.ModuleType:
  """Returns the module of an experiment.

  Raises:
    ValueError: no experiment has that name; lists those there are.

  Example:
    >>> load('../vision')
    Traceback (most recent call last):
    ...
    ValueError: --experiment='../vision': unknown; known are filetype, language, ...
  """
  known = experiments()
  if name not in known:
    raise ValueError(f'--experiment={short(name)}: unknown; known are {", ".join(known)}.')
  return importlib.import_module(f'experiments.{name}')


def configure(experiment: str, size: str = '', values: Mapping[str, Any] | None = None) -> Any:
  """Returns an experiment's configuration with some fields replaced.

  Args:
    experiment: a name in `experiments()`.
    size: what its `get_config` takes.
    values: replaced fields.

  Raises:
    ValueError: unknown experiment, size or field, or a value of the wrong type or range.
  """
  return replace(load(experiment).get_config(size), values or {})


def parse(text: str, flag: str = 'set') -> dict[str, Any]:
  """Returns the fields that text such as `"steps=100, model='vit'"` sets.

  Args:
    text: `name=literal` joined by commas; the empty text sets nothing.
    flag: that the text came from, for messages.

  Raises:
    ValueError: the text is anything else.

  Example:
    >>> parse("steps=100, rate=1e-3, model='vit'")
    {'steps': 100, 'rate': 0.001, 'model': 'vit'}
  """
  wanted = "expected name=literal joined by commas, such as steps=100, model='vit'"
  if len(text) > _LONGEST:
    raise ValueError(f'--{flag} has at most {_LONGEST} characters, got {len(text)}.')
  try:
    # The parentheses are ours; text that closes them early is no call with keywords alone.
    call = ast.parse(f'fields({text}\n)', mode='eval').body
    plain = isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    if not plain or call.args or any(keyword.arg is None for keyword in call.keywords):
      raise ValueError(f'--{flag}={short(text)}: {wanted}.')
    names = [keyword.arg for keyword in call.keywords]
    if len(set(names)) < len(names):
      raise ValueError(f'--{flag}={short(text)}: {wanted}, each once.')
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
  except (SyntaxError, TypeError, RecursionError, MemoryError, ValueError) as error:
    if str(error).startswith(f'--{flag}'):
      raise
    raise ValueError(f'--{flag}={short(text)}: {wanted} ({short(str(error))}).') from error


def fields(text: str) -> dict[str, Any]:
  """Returns the fields that `--set` sets.

  Raises:
    ValueError: from `parse`; or the seed is among them, which has a flag of its own.
  """
  values = parse(text)
  if 'seed' in values:
    raise ValueError('seed has a flag of its own: --seed.')
  return values


def replace(config: Any, values: Mapping[str, Any]) -> Any:
  """Returns a configuration with some fields replaced, after checking names and types.

  Args:
    config: a frozen dataclass of scalars, strings and tuples of them.
    values: by field name; an int is taken where a float is expected, a list where a tuple is.

  Raises:
    ValueError: names every unknown field and lists the known ones, or says which value has the
      wrong type; or what the configuration itself says of a value out of range.
  """
  hints = typing.get_type_hints(type(config))
  known = [field.name for field in dataclasses.fields(config)]
  check_names(values, known, f'a field of {type(config).__module__.rpartition(".")[2]}')
  return dataclasses.replace(
    config, **{name: _typed(name, value, hints[name]) for name, value in values.items()}
  )


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
  """Raises a ValueError that lists the known names if one of `names` is not among them."""
  known = list(known)
  unknown = [name for name in names if name not in known]
  if not unknown:
    return
  close = difflib.get_close_matches(unknown[0], known, 1)
  hint = f' Did you mean {close[0]}?' if close else ''
  listed = ', '.join(map(short, unknown))
  raise ValueError(f'{listed}: not {what}; known are {", ".join(known)}.{hint}')


def _typed(name, value, hint):
  """The value as the field's type has it."""
  accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
  if value is None and types.NoneType in accepted:
    return None
  for kind in accepted:
    origin = typing.get_origin(kind) or kind
    if origin is float and type(value) in (int, float) and math.isfinite(value):
      return float(value)
    if origin is tuple and isinstance(value, (list, tuple)):
      return tuple(value)
    if origin in (bool, int, str) and type(value) is origin:
      return value
  shown = getattr(hint, '__name__', str(hint))
  raise ValueError(f'{name}: expected {shown}, got {type(value).__name__} {short(repr(value))}.')


def recipe(text: str, weights: str) -> jsp.Transform:
  """Returns the transform of a spelled form, applied at `weights` where it does not say.

  Args:
    text: spelled form.
    weights: pattern of weight names, the experiment's own.

  Raises:
    ValueError: from `jsp.parse`.

  Example:
    >>> recipe('nm(2, 4)', '(.*/)?kernel')
    Transform(at('(.*/)?kernel', nm(2, 4)))
    >>> recipe("at('.*', nm(2, 4))", '(.*/)?kernel')
    Transform(at('.*', nm(2, 4)))
  """
  transform = jsp.parse(text)
  calls = [n.func.id for n in ast.walk(ast.parse(text.strip())) if isinstance(n, ast.Call)]
  if {'at', 'rules'} & set(calls) or set(calls) == {'identity'}:
    return transform
  return jsp.at(weights, transform)


def mesh_shape(text: str) -> dict[str, int]:
  """Returns the sizes of the axes `data` and `model` that `"data:4,model:2"` says.

  Args:
    text: axes and sizes; an axis left out has size 1. The empty text is all of `data`.

  Returns:
    `{'data': size, 'model': size}`; a size of -1 means all devices.

  Raises:
    ValueError: another axis, an axis twice, or a size that is no positive whole number.

  Example:
    >>> mesh_shape('model:2,data:4')
    {'data': 4, 'model': 2}
  """
  if not text.strip():
    return {'data': -1, 'model': 1}
  sizes = {}
  for part in text.split(','):
    axis, _, size = part.strip().partition(':')
    if axis not in ('data', 'model') or axis in sizes or not re.fullmatch('[1-9][0-9]{0,6}', size):
      raise ValueError(
        f'--mesh={short(text)}: expected axes data and model with sizes, such as data:4,model:2.'
      )
    sizes[axis] = int(size)
  return {axis: sizes.get(axis, 1) for axis in ('data', 'model')}


def short(text: str) -> str:
  """Returns the text quoted, escaped, and cut to one readable line."""
  return repr(text if len(text) <= 80 else text[:77] + '...')
