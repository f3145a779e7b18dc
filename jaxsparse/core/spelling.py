"""The spelled form of what factories make: names and literals, for flags, reports and recipes."""

import inspect
from typing import Any, Callable, NamedTuple


class Call(NamedTuple):
  """A factory's name and the arguments that differ from its defaults."""

  name: str
  args: tuple[Any, ...]
  kwargs: tuple[tuple[str, Any], ...]


def call(factory: Callable, arguments: dict[str, Any]) -> Call:
  """The call that made something: used as `spelling.call(nm, locals())`, a factory's first line.

  Parameters that may be positional are spelled so up to the last that matters; keyword-only ones
  are spelled by name when they differ from their default.
  """
  args, kwargs = [], []
  for name, parameter in inspect.signature(factory).parameters.items():
    value = arguments[name]
    is_default = parameter.default is not parameter.empty and value is parameter.default or (
        isinstance(value, (int, float, str, bool, type(None))) and type(value) is
        type(parameter.default) and value == parameter.default)
    if parameter.kind is parameter.KEYWORD_ONLY:
      if not is_default:
        kwargs.append((name, value))
    elif parameter.kind is parameter.VAR_POSITIONAL:
      args.extend(value)
    elif not is_default:
      if kwargs:
        kwargs.append((name, value))
      else:
        args.append(value)
  return Call(factory.__name__, tuple(args), tuple(kwargs))


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
