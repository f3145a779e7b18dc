"""Learning curves as inline SVG: one thin line a run, one colour a group of seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxsparse.reports import quoting
from jaxsparse.reports import ticks

COLOURS = 8  # classes c0 to c7 of the style sheet
_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 40
_MOST_POINTS = 240
_LIMIT = 1e30
_LOG_FROM = 30.0  # largest over smallest value that a linear axis would flatten


class Curve(NamedTuple):
  """One run's values of one metric.

  Attributes:
    label: what a reader calls the run.
    group: number of its group of seeds; groups share a colour.
    points: `(step, value)`; a value that is None or not finite breaks the line.
  """

  label: str
  group: int
  points: Sequence[tuple[int, float | None]]


def svg(metric: str, curves: Sequence[Curve]) -> str:
  """Returns the chart of one metric, or a sentence where there is nothing to draw.

  Args:
    metric: its name.
    curves: of the runs that logged it.
  """
  values = [v for c in curves for _, v in c.points if _known(v)]
  if not values:
    return f'<p class="missing">No run logged {quoting.escaped(metric)}.</p>'
  last = max((step for c in curves for step, v in c.points if _known(v)), default=1) or 1
  log = min(values) > 0 and max(values) / min(values) > _LOG_FROM
  y_ticks = ticks.logarithmic(values) if log else ticks.linear(values)
  low, high = min([*values, *y_ticks]), max([*values, *y_ticks])
  warp = math.log if log else float
  span = (warp(high) - warp(low)) or 1.0
  x_of = lambda step: _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
  y_of = lambda v: _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _TOP) * (warp(v) - warp(low)) / span
  lines = ''.join(_line(curve, x_of, y_of) for curve in curves)
  name = f'{metric} by step'
  return (
    f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
    f'aria-label="{quoting.escaped(name)}">'
    f'{_frame(y_ticks, last, x_of, y_of, log)}{lines}</svg>'
  )


def _line(curve, x_of, y_of):
  pieces, down = [], False
  for step, value in _thinned(curve.points):
    if not _known(value):
      down = False
      continue
    pieces.append(f'{"L" if down else "M"}{x_of(step):.1f} {y_of(value):.1f}')
    down = True
  if not pieces:
    return ''
  # A lone value has no length to draw but a round end.
  path = ''.join(pieces) + ('h.01' if len(pieces) == 1 else '')
  label = quoting.escaped(curve.label)
  return f'<path class="curve c{curve.group % COLOURS}" d="{path}"><title>{label}</title></path>'


def _thinned(points):
  """At most `_MOST_POINTS` of the points, the last one among them; gaps survive."""
  every = max(1, math.ceil(len(points) / _MOST_POINTS))
  last = len(points) - 1
  return [p for i, p in enumerate(points) if i % every == 0 or i == last or not _known(p[1])]


def _frame(y_ticks, last, x_of, y_of, log):
  right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
  parts = []
  for tick in y_ticks:
    y = y_of(tick)
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
      f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>'
    )
  for tick in ticks.linear([0, last], count=4):
    if tick <= last:
      parts.append(
        f'<text class="tick" x="{x_of(tick):.1f}" y="{bottom + 15}" text-anchor="middle">'
        f'{quoting.escaped(ticks.text(tick, ""))}</text>'
      )
  axis = 'step; log scale of values' if log else 'step'
  parts.append(
    f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    f'<text class="name" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">'
    f'{axis} →</text>'
  )
  return ''.join(parts)


def _known(value):
  # Past the limit a diverged run would only flatten the others.
  return isinstance(value, (int, float)) and abs(value) < _LIMIT
