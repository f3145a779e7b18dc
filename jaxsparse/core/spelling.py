"""The spelled form of what factories make: names and literals, for flags, reports and recipes."""

import inspect
from typing import Any, Callable, NamedTuple

import numpy as np


class Call(NamedTuple):
  """A factory's name and its arguments."""

  name: str
  args: tuple[Any, ...]
  kwargs: tuple[tuple[str, Any], ...]


def call(factory: Callable, arguments: dict[str, Any]) -> Call:
  """The call that made something: used as `spelling.call(nm, locals())`, a factory's first line.

  Positional parameters are always spelled, so that a recipe does not change its meaning with a
  default; keyword-only ones are spelled when they differ from theirs.
  """
  args, kwargs = [], []
  for name, parameter in inspect.signature(factory).parameters.items():
    value = arguments[name]
    if parameter.kind is not parameter.KEYWORD_ONLY:
      args.append(value)
    elif not _same(value, parameter.default):
      kwargs.append((name, value))
  return Call(factory.__name__, tuple(args), tuple(kwargs))


def _same(value: Any, default: Any) -> bool:
  literal = isinstance(value, (int, float, str, bool, type(None)))
  return value is default or (literal and type(value) is type(default) and value == default)


def spell_value(value: Any) -> str:
  """The spelled form of an argument.

  Raises:
    ValueError: the value has none (an unnamed function, an array).
  """
  spelled = getattr(value, 'spelling', None) or getattr(
      getattr(value, 'spec', None), 'spelling', None)
  if isinstance(value, Call):
    spelled = value
  if spelled is not None:
    if spelled.name == '|':
      return ' | '.join(spell_value(a) for a in spelled.args)
    parts = [spell_value(a) for a in spelled.args]
    parts += [f'{name}={spell_value(v)}' for name, v in spelled.kwargs]
    return f'{spelled.name}({", ".join(parts)})'
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, tuple) and type(value) is tuple:
    inner = ', '.join(map(spell_value, value))
    return f'({inner},)' if len(value) == 1 else f'({inner})'
  if isinstance(value, list):
    return f'[{", ".join(map(spell_value, value))}]'
  if isinstance(value, dict):
    return '{' + ', '.join(f'{k!r}: {spell_value(v)}' for k, v in value.items()) + '}'
  if isinstance(value, (int, float, str, bool, type(None))):
    return repr(value)
  if inspect.isfunction(value) and value.__name__.isidentifier():
    return value.__name__
  raise ValueError(f'{value!r} has no spelled form; use registered words and literals.')
