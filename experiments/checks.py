"""Checks of configuration fields, with errors that name field, found and expected."""

import math
from collections.abc import Iterable


def choice(field: str, found: object, known: Iterable[str]) -> None:
  """Checks that a field is one of some words.

  Args:
    field: its name.
    found: its value.
    known: the words.

  Raises:
    ValueError: it is none of them.

  Example:
    >>> choice('model', 'mlp', ['cnn', 'vit'])
    Traceback (most recent call last):
    ValueError: model: found 'mlp', expected one of 'cnn', 'vit'.
  """
  known = list(known)
  if found not in known:
    raise ValueError(f'{field}: found {found!r}, expected one of {", ".join(map(repr, known))}.')


def whole(field: str, found: object, *, least: int, most: int | None = None) -> None:
  """Checks that a field is an integer in a range.

  Args:
    field: its name.
    found: its value.
    least: the smallest allowed.
    most: the largest allowed; None for no bound.

  Raises:
    ValueError: it is not.

  Example:
    >>> whole('steps', -1, least=0)
    Traceback (most recent call last):
    ValueError: steps: found -1, expected an integer of at least 0.
  """
  right = isinstance(found, int) and not isinstance(found, bool)
  if not right or found < least or (most is not None and found > most):
    bound = '' if most is None else f' and at most {most}'
    raise ValueError(f'{field}: found {found!r}, expected an integer of at least {least}{bound}.')


def positive(field: str, found: object, *, or_zero: bool = False) -> None:
  """Checks that a field is a finite number above zero.

  Args:
    field: its name.
    found: its value.
    or_zero: whether zero is allowed too.

  Raises:
    ValueError: it is not.

  Example:
    >>> positive('rate', float('inf'))
    Traceback (most recent call last):
    ValueError: rate: found inf, expected a finite number above 0.
  """
  right = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
  if not right or found < 0 or (found == 0 and not or_zero):
    word = 'of at least' if or_zero else 'above'
    raise ValueError(f'{field}: found {found!r}, expected a finite number {word} 0.')


def size(experiment: str, found: str, known: Iterable[str]) -> None:
  """Checks the argument of an experiment's `get_config`.

  Args:
    experiment: its name.
    found: the argument.
    known: the sizes there are.

  Raises:
    ValueError: there is no such size.

  Example:
    >>> size('vision', 'huge', ['', 'smoke'])
    Traceback (most recent call last):
    ValueError: Sizes of vision are '', 'smoke'; got 'huge'.
  """
  known = list(known)
  if found not in known:
    raise ValueError(f'Sizes of {experiment} are {", ".join(map(repr, known))}; got {found!r}.')
