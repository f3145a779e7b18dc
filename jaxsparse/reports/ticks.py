"""Round numbers for the axes of charts, the same in the page and in the picture."""

import math
from collections.abc import Sequence


def linear(values: Sequence[float], *, count: int = 5) -> list[float]:
  """Returns about `count` multiples of 1, 2 or 5 times a power of ten that cover the values.

  Example:
    >>> linear([96.1, 98.6])
    [96.0, 96.5, 97.0, 97.5, 98.0, 98.5, 99.0]
  """
  low, high = min(values), max(values)
  raw = max(high - low, 1e-3 * max(abs(high), 1.0)) / count
  unit = 10.0 ** math.floor(math.log10(raw))
  step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= 0.999 * raw)
  # A hair of slack, or 98.5 / 0.5 could round up to one tick too many.
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  # Values that differ by rounding alone still get an axis of some length.
  last += (first == last) and high > low
  return [round(step * k, 10) for k in range(first, last + 1)]


def logarithmic(values: Sequence[float]) -> list[float]:
  """Returns at most six round numbers spread over positive values on a logarithmic axis.

  Example:
    >>> logarithmic([24_000, 160_000])
    [20000, 50000, 100000, 200000]
  """
  low, high = min(values), max(values)
  exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
  for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
    ticks = [round(d * 10.0**e, 10) for e in exponents for d in digits]
    ticks = [int(t) if t == int(t) else t for t in ticks if 0.8 * low <= t <= 1.25 * high]
    if 1 < len(ticks) <= 5:
      return ticks
  return [low, high] if high > low else [low]


def text(value: float, unit: str) -> str:
  """Returns a tick's label: short, with a prefix for thousands.

  Example:
    >>> text(20_000, 'B'), text(1_500_000, 'FLOP'), text(0.9, '×'), text(98.5, '')
    ('20 kB', '1.5 M', '0.9×', '98.5')
  """
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= factor:
      return f'{value / factor:g} {prefix}{"B" if unit == "B" else ""}'
  return f'{value:g}{unit if unit == "×" else " B" if unit == "B" else ""}'
