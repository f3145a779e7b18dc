"""Ranks as numbers: as a user says them, rounded to what hardware likes, and whether they pay."""

import math


def check_rank(rank) -> None:
  """Raises ValueError where `rank` is neither a positive integer nor a fraction in (0, 1]."""
  integer = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
  if not integer and not (isinstance(rank, float) and 0 < rank <= 1):
    raise ValueError(f'a rank must be a positive integer or a fraction in (0, 1], got {rank!r}.')


def resolved(rank: int | float, full: int) -> int:
  """The rank that an integer, cut to the full rank, or a fraction of it asks for.

  Example:
    >>> resolved(9, 8), resolved(0.5, 8), resolved(0.01, 8)
    (8, 4, 1)
  """
  return max(round(rank * full), 1) if isinstance(rank, float) else min(rank, full)


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
