"""Ranks as numbers: rounded to what hardware likes, and whether they pay."""

import math


def check_multiple(multiple: int) -> None:
  """Raises a ValueError unless it is a positive integer."""
  if isinstance(multiple, bool) or not isinstance(multiple, int) or multiple < 1:
    raise ValueError(f'multiple must be a positive integer, got {multiple!r}.')


def rounded(rank: int, multiple: int, full: int) -> int:
  """`rank` rounded up to a multiple, at most `full`.

  Example:
    >>> rounded(9, 8, 64), rounded(9, 8, 12)
    (16, 12)
  """
  return min(-(-rank // multiple) * multiple, full)


def pays(rank: int, shape: tuple[int, int]) -> bool:
  """Whether factors of this rank have fewer entries than the matrix: `r (R + O) < R O`.

  Example:
    >>> pays(3, (8, 8)), pays(4, (8, 8))
    (True, False)
  """
  return rank * sum(shape) < math.prod(shape)
