"""Pareto fronts as inline SVG: text that scales, colours from the page's style sheet."""

import math
from collections.abc import Sequence

from jaxsparse.reports import labels
from jaxsparse.reports import pareto
from jaxsparse.reports import quoting
from jaxsparse.reports import record as records_lib
from jaxsparse.reports import ticks

_WIDTH, _HEIGHT = 360, 264
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 16, 14, 44
_DOT = 5.0


def svg(records: Sequence[records_lib.Record], axis: pareto.Axis, *, anchor: str) -> str:
  """Returns one chart: accuracy against a cost, the front as a line, a hover title on every point.

  Args:
    records: runs of one model; point `i` is labelled `i` and links to `#{anchor}-{i}`.
    axis: the cost.
    anchor: prefix of the runs' anchors, letters, digits and hyphens.
  """
  cost = lambda r: getattr(r, axis.field)
  shown = [i for i, r in enumerate(records) if cost(r) is not None and r.accuracy is not None]
  if not shown:
    missing = f'No run has both an accuracy and a figure for {axis.title}.'
    return f'<p class="missing">{quoting.escaped(missing)}</p>'
  log = axis.unit != '×'
  costs = [cost(records[i]) for i in shown]
  x_ticks = ticks.logarithmic(costs) if log else ticks.linear([*costs, 1.0])
  # Every chart of a model has the same accuracy axis, whatever figures its runs miss.
  gains = [100 * r.accuracy for r in records if r.accuracy is not None]
  y_ticks = ticks.linear(gains)
  x_of = _scale(costs, x_ticks, _LEFT + 12, _WIDTH - _RIGHT - 10, log)
  y_of = _scale(gains, y_ticks, _HEIGHT - _BOTTOM - 8, _TOP + 8, False)
  spots = {i: (x_of(cost(records[i])), y_of(100 * records[i].accuracy)) for i in shown}
  on_front = pareto.record_front(records, axis.field)
  parts = [_frame(axis, x_ticks, y_ticks, x_of, y_of), _front_line([spots[i] for i in on_front])]
  # Pixels of a page grow downwards.
  upwards = {i: (x, -y) for i, (x, y) in spots.items()}
  bounds = (_LEFT, _BOTTOM - _HEIGHT + 4, _WIDTH - 6, 4 - _TOP)
  places = labels.places(upwards, distance=13, bounds=bounds)
  # The front is drawn last, so that what it beats never hides it.
  for i in sorted(shown, key=lambda i: (i in on_front, records[i].baseline)):
    kind = 'dense' if records[i].baseline else 'front' if i in on_front else 'beaten'
    parts.append(_point(records[i], axis, i, kind, spots[i], places[i], anchor))
  name = f'Accuracy against {axis.title[0].lower()}{axis.title[1:]}'
  return (
    f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" '
    f'aria-label="{quoting.escaped(name)}">{"".join(parts)}</svg>'
  )


def _point(record, axis, i, kind, spot, place, anchor):
  x, y = spot
  text = (
    f'{i}  {record.label}\n{100 * record.accuracy:.1f} % accuracy, '
    f'{pareto.quantity(getattr(record, axis.field), axis.unit)}\n{record.transform}'
  )
  mark = (
    f'<rect x="{x - _DOT:.1f}" y="{y - _DOT:.1f}" width="{2 * _DOT}" height="{2 * _DOT}" '
    f'transform="rotate(45 {x:.1f} {y:.1f})"/>'
    if kind == 'dense'
    else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_DOT}"/>'
  )
  return (
    f'<a href="#{anchor}-{i}" class="point {kind}" data-run="{anchor}-{i}" '
    f'aria-label="{quoting.escaped(text)}"><title>{quoting.escaped(text)}</title>'
    f'<circle class="halo" cx="{x:.1f}" cy="{y:.1f}" r="11"/>{mark}'
    f'<text x="{place[0]:.1f}" y="{3.5 - place[1]:.1f}" text-anchor="middle">{i}</text></a>'
  )


def _front_line(spots):
  if not spots:
    return ''
  path = f'M{spots[0][0]:.1f} {spots[0][1]:.1f}'
  path += ''.join(f'H{x:.1f}V{y:.1f}' for x, y in spots[1:])
  return f'<path class="line" d="{path}H{_WIDTH - _RIGHT}"/>'


def _frame(axis, x_ticks, y_ticks, x_of, y_of):
  bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
  parts = []
  for tick in y_ticks:
    y = y_of(tick)
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
      f'<text class="tick" x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
      f'{ticks.text(tick, "")}</text>'
    )
  for tick in x_ticks:
    x = x_of(tick)
    parts.append(
      f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{bottom}"/>'
      f'<text class="tick" x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">'
      f'{quoting.escaped(ticks.text(tick, axis.unit))}</text>'
    )
  parts.append(
    f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    f'<text class="tick" x="{_LEFT - 6}" y="{_TOP - 2}" text-anchor="end">%</text>'
    f'<text class="name" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
    f'{quoting.escaped(axis.scale)} →</text>'
  )
  return ''.join(parts)


def _scale(values, ticks, start, stop, log):
  """Maps values and ticks onto pixels."""
  warp = math.log if log else float
  low, high = warp(min([*values, *ticks])), warp(max([*values, *ticks]))
  span = (high - low) or 1.0
  return lambda value: start + (stop - start) * (warp(value) - low) / span
