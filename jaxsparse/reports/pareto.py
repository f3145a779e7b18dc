"""Pareto fronts of accuracy against a cost: which runs nothing beats, and their picture."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxsparse.reports import labels
from jaxsparse.reports import record as records_lib
from jaxsparse.reports import ticks


class Axis(NamedTuple):
  """One cost a front is drawn against."""

  field: str  # of Record
  title: str
  unit: str  # 'B', 'FLOP' or '×'
  scale: str  # what the numbers under the axis are


_INK, _SOFT, _MUTED, _ACCENT = '#17202b', '#5c6773', '#9aa5b1', '#0b6e99'

AXES = (
  Axis('size_bytes', 'Stored size', 'B', 'bytes, log scale'),
  Axis('flops_ideal', 'Ideal compute per example', 'FLOP', 'FLOPs, log scale'),
  Axis('latency_ratio', 'Latency', '×', 'times dense'),
)


def front(costs: Sequence[float | None], gains: Sequence[float | None]) -> list[int]:
  """Returns the indices no other point beats, cheapest first.

  A point is beaten by one that costs no more and gains no less, and is better in one of the two.
  Equal points do not beat each other; a point with a missing figure is never on the front.

  Args:
    costs: less is better.
    gains: more is better; as long as `costs`.

  Raises:
    ValueError: if the lengths differ.

  Example:
    >>> front([100, 50, 50, 10, None], [0.99, 0.98, 0.90, 0.95, 1.0])
    [3, 1, 0]
  """
  if len(costs) != len(gains):
    raise ValueError(f'As many costs as gains expected, got {len(costs)} and {len(gains)}.')
  finite = lambda value: value is not None and math.isfinite(value)
  known = [i for i in range(len(costs)) if finite(costs[i]) and finite(gains[i])]
  known.sort(key=lambda i: (costs[i], -gains[i]))
  kept, best, best_cost = [], float('-inf'), None
  for i in known:
    if gains[i] > best or (gains[i] == best and costs[i] == best_cost):
      kept.append(i)
      best, best_cost = gains[i], costs[i]
  return kept


def record_front(records: Sequence[records_lib.Record], field: str) -> list[int]:
  """Returns the indices of the records on the front of accuracy against one cost."""
  return front([getattr(r, field) for r in records], [r.accuracy for r in records])


def by_model(records: Sequence[records_lib.Record]) -> dict[str, list[records_lib.Record]]:
  """Returns the records grouped by model, in the order given."""
  groups = {}
  for record in records:
    groups.setdefault(record.model, []).append(record)
  return groups


def quantity(value: float | None, unit: str) -> str:
  """Returns a figure with three digits, a prefix and its unit.

  Example:
    >>> quantity(12_345, 'B'), quantity(1.5e6, 'FLOP'), quantity(0.8312, '×'), quantity(None, 'B')
    ('12.3 kB', '1.50 MFLOP', '0.83×', '–')
  """
  if value is None or not math.isfinite(value):
    return '–'
  if unit == '×':
    return f'{value:.2f}×'
  for factor, prefix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= 0.9995 * factor:
      scaled = value / factor
      digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
      return f'{scaled:.{digits}f} {prefix}{unit}'
  return f'{value:.0f} {unit}'


def png(records: Sequence[records_lib.Record], *, title: str) -> bytes:
  """Returns the picture of every model's fronts, one row a model, as PNG bytes.

  Raises:
    ImportError: if matplotlib, of the demo extra, is not installed.
  """
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure

  models = by_model([records_lib.finite(record) for record in records])
  figure = Figure(figsize=(13, 0.6 + 4.3 * len(models)), dpi=120, layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
  drawn = []
  figure.suptitle(title, x=0.012, ha='left', fontsize=14, fontweight='bold', color=_INK)
  for band, (model, runs) in zip(
    np.atleast_1d(figure.subfigures(len(models), 1, hspace=0.04)), models.items()
  ):
    band.suptitle(model, x=0.012, ha='left', fontsize=11, fontweight='bold', color=_INK)
    row = band.subplots(1, len(AXES))
    for panel, axis in zip(row, AXES):
      points, on_front = _draw(panel, runs, axis)
      drawn.append((panel, points, {i for i, r in enumerate(runs) if r.baseline or i in on_front}))
    row[0].set_ylabel('accuracy, %', fontsize=9, color=_SOFT)
    key = '     '.join(f'{i}\u2002{run.label}' for i, run in enumerate(runs))
    band.supxlabel(key, x=0.012, ha='left', fontsize=8.5, color=_SOFT, wrap=True)
  figure.draw_without_rendering()
  for panel, points, strong in drawn:
    _number(panel, points, strong)
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  return buffer.getvalue()


def _draw(panel, runs, axis):
  """One panel: the front as a line, what it beats as hollow dots, numbers as in the table."""
  on_front = record_front(runs, axis.field)
  points = {
    i: (getattr(r, axis.field), 100 * r.accuracy)
    for i, r in enumerate(runs)
    if r.accuracy is not None and getattr(r, axis.field) is not None
  }
  if on_front:
    panel.plot(
      *zip(*[points[i] for i in on_front]), color=_ACCENT, lw=1.5, drawstyle='steps-post', zorder=1
    )
  for i, (cost, accuracy) in points.items():
    strong = runs[i].baseline or i in on_front
    edge = _INK if runs[i].baseline else _ACCENT if strong else _MUTED
    panel.scatter(
      cost,
      accuracy,
      s=42,
      marker='D' if runs[i].baseline else 'o',
      edgecolor=edge,
      facecolor=edge if strong else 'white',
      linewidth=1.4,
      zorder=3 if strong else 2,
    )
  costs = [cost for cost, _ in points.values()]
  if axis.unit != '×' and costs:
    panel.set_xscale('log')
    panel.set_xticks(ticks.logarithmic(costs))
    panel.minorticks_off()
    panel.margins(x=0.1)
  panel.xaxis.set_major_formatter(lambda value, _: ticks.text(value, axis.unit))
  panel.tick_params(labelsize=8, colors=_SOFT, length=0)
  panel.set_title(axis.title, fontsize=9.5, color=_INK, loc='left')
  panel.set_xlabel(axis.scale, fontsize=8.5, color=_SOFT)
  panel.grid(True, color='#e8ecf0', lw=0.8)
  panel.set_axisbelow(True)
  panel.spines[['top', 'right']].set_visible(False)
  panel.spines[['left', 'bottom']].set_color('#c9d1d9')
  return points, on_front


def _number(panel, points, strong):
  """Numbers beside the points; last, for only a finished layout has pixels."""
  spots = {i: tuple(panel.transData.transform(point)) for i, point in points.items()}
  frame = panel.get_window_extent()
  bounds = (frame.x0, frame.y0, frame.x1 + 12, frame.y1 + 12)
  places = labels.places(spots, distance=18, bounds=bounds)
  for i, place in places.items():
    offset = [(b - a) * 72 / panel.figure.dpi for a, b in zip(spots[i], place)]
    panel.annotate(
      str(i),
      points[i],
      xytext=offset,
      textcoords='offset points',
      fontsize=8,
      ha='center',
      va='center',
      color=_INK if i in strong else _SOFT,
      zorder=4,
    )
