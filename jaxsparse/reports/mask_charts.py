"""Masks drawn as PNG: over time, how sparse each weight is, what snapshots have in common.

A snapshot is what `jaxsparse.masks(state)` gives, `{weight name: bool array}`, True keeps; a copy
`{name: np.array(mask) for name, mask in masks(state).items()}`, as a train step donates its state.
In the pictures black is kept; a mask larger than a tile is averaged, and grey says what part is.
"""

import io
import math
from collections.abc import Mapping, Sequence

import numpy as np

from jaxsparse.reports import overlap as overlaps

_MOST_PIXELS = 96  # a side of a tile
_MOST_COLUMNS = 10
_MOST_NAME = 34
_INK, _SOFT, _ACCENT, _PALE = '#1a2126', '#5b676f', '#0b7ca3', '#dfe6ea'


def pooled(mask: np.ndarray, most: int = _MOST_PIXELS) -> np.ndarray:
  """Returns a mask as a matrix of at most `most` a side: the part kept of each cell, in [0, 1].

  Args:
    mask: bool, of any rank; axes before the last are joined.
    most: largest number of rows and columns.

  Example:
    >>> pooled(np.array([[True, False, True, True]]), most=2).tolist()
    [[0.5, 1.0]]
  """
  mask = np.asarray(mask)
  if mask.dtype != bool or not mask.ndim or not mask.size:
    raise ValueError(f'A mask is a bool array with entries, got {mask.dtype} {mask.shape}.')
  cells = mask.reshape(-1, mask.shape[-1]).astype(np.float64)
  for axis in (0, 1):
    size = cells.shape[axis]
    if size > most:
      edges = np.arange(most) * size // most
      counts = np.diff([*edges, size])
      cells = np.add.reduceat(cells, edges, axis) / np.expand_dims(counts, 1 - axis)
  return cells


def masks_png(snapshots: Sequence[Mapping], *, steps: Sequence[int] | None = None,
              title: str = 'Masks over time') -> bytes:
  """Returns masks over time as PNG bytes: a row a weight, a column a snapshot.

  Args:
    snapshots: in the order of training; of more than ten, ten evenly spread are drawn.
    steps: the count of each; their numbers when None.
    title: of the picture.

  Raises:
    ValueError: if there is nothing to draw, or snapshots do not match.
    ImportError: if matplotlib, of the demo extra, is not installed.
  """
  steps = list(range(len(snapshots))) if steps is None else list(steps)
  if not snapshots or not snapshots[0] or len(steps) != len(snapshots):
    raise ValueError(f'{len(snapshots)} snapshots and {len(steps)} steps: expected as many of each '
                     'and at least one mask.')
  for snapshot in snapshots[1:]:
    overlaps.overlap(snapshots[0], snapshot)   # raises where they do not match
  count = min(len(snapshots), _MOST_COLUMNS)
  shown = sorted({round(i) for i in np.linspace(0, len(snapshots) - 1, count)})
  names = sorted(snapshots[0])
  figure = _figure(1.2 + 1.35 * max(len(shown), 3), 0.8 + 1.75 * len(names), title)
  grid = figure.subplots(len(names), len(shown), squeeze=False)
  for row, name in zip(grid, names):
    for panel, i in zip(row, shown):
      mask = np.asarray(snapshots[i][name])
      # Equal squares whatever the shape: a head of ten columns would be a thread.
      panel.imshow(pooled(mask), cmap='gray_r', vmin=0, vmax=1, interpolation='nearest',
                   aspect='auto')
      panel.set_box_aspect(1)
      panel.set(xticks=[], yticks=[])
      panel.spines[:].set_color(_PALE)
      panel.set_xlabel(f'{100 * (1 - mask.mean()):.4g} % zeros', fontsize=7.5, color=_SOFT)
    shape = '×'.join(str(n) for n in np.shape(snapshots[0][name]))
    row[0].set_ylabel(f'{_short(name)}\n{shape}', fontsize=8, color=_INK)
  for panel, i in zip(grid[0], shown):
    panel.set_title(f'step {steps[i]:,}', fontsize=8.5, color=_INK)
  return _png(figure)


def sparsity_png(masks: Mapping, *, title: str = 'Zeros by weight') -> bytes:
  """Returns bars of the fraction of zeros of each weight, and of all together, as PNG bytes.

  Args:
    masks: one snapshot.
    title: of the picture.

  Raises:
    ValueError: if there is no mask.
    ImportError: if matplotlib, of the demo extra, is not installed.
  """
  if not masks:
    raise ValueError('There are no masks to draw.')
  arrays = {name: np.asarray(masks[name]) for name in sorted(masks)}
  zeros = {name: 100 * (1 - mask.mean()) for name, mask in arrays.items()}
  total = sum(mask.size for mask in arrays.values())
  zeros['all'] = 100 * (1 - sum(int(mask.sum()) for mask in arrays.values()) / total)
  figure = _figure(7, 0.9 + 0.3 * len(zeros), title)
  panel = figure.subplots()
  colours = [_ACCENT] * len(arrays) + [_INK]
  panel.barh(range(len(zeros)), [100] * len(zeros), color=_PALE, height=0.62)
  panel.barh(range(len(zeros)), list(zeros.values()), color=colours, height=0.62)
  for y, value in enumerate(zeros.values()):
    panel.text(101.5, y, f'{value:.2f} %', va='center', fontsize=8, color=_INK)
  panel.set_yticks(range(len(zeros)), [_short(name) for name in zeros], fontsize=8)
  panel.set(xlim=(0, 114), ylim=(len(zeros) - 0.4, -0.6), xticks=range(0, 101, 25))
  panel.set_xlabel('zeros, %', fontsize=8.5, color=_SOFT)
  _bare(panel)
  return _png(figure)


def overlap_png(snapshots: Sequence[Mapping], *, steps: Sequence[int] | None = None,
                title: str = 'Mask overlap over time') -> bytes:
  """Returns the overlap of every two snapshots and the churn between neighbours, as PNG bytes.

  Args:
    snapshots: at least two, in the order of training.
    steps: the count of each; their numbers when None.
    title: of the picture.

  Raises:
    ValueError: if there are fewer than two, or they do not match.
    ImportError: if matplotlib, of the demo extra, is not installed.
  """
  steps = list(range(len(snapshots))) if steps is None else list(steps)
  if len(snapshots) < 2 or len(steps) != len(snapshots):
    raise ValueError(f'{len(snapshots)} snapshots and {len(steps)} steps: expected at least two, '
                     'and as many of each.')
  figure = _figure(13, 3.9, title)
  panels = figure.subplots(1, 3, width_ratios=(1, 1, 1.35))
  for panel, measure in zip(panels, ('iou', 'hamming')):
    matrix = overlaps.overlap_matrix(snapshots, measure=measure)
    # A Hamming distance at high sparsity is tiny, so its scale is its own.
    top = 1.0 if measure == 'iou' else max(float(matrix.max()), 1e-9)
    image = panel.imshow(matrix, cmap='Blues', vmin=0, vmax=top)
    every = math.ceil(len(steps) / 5)
    panel.set_xticks(range(0, len(steps), every), steps[::every], fontsize=7.5)
    panel.set_yticks(range(0, len(steps), every), steps[::every], fontsize=7.5)
    name = {'iou': 'IoU of kept weights', 'hamming': 'Hamming distance, fraction'}[measure]
    panel.set_title(name, fontsize=9, color=_INK)
    panel.set_xlabel('step', fontsize=8.5, color=_SOFT)
    bar = figure.colorbar(image, ax=panel, shrink=0.86)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
  _draw_churn(panels[2], overlaps.churn(snapshots), steps)
  return _png(figure)


def _draw_churn(panel, changes, steps):
  palette = ('#0b7ca3', '#d65626', '#5a8f29', '#7a4fb0', '#b8860b', '#3c4a52')
  for number, (name, updates) in enumerate(sorted(changes.items())):
    colour = palette[number % len(palette)]
    dropped, grown = ([100 * getattr(u, field) for u in updates] for field in ('dropped', 'grown'))
    panel.plot(steps[1:], dropped, 'o-', ms=3.5, lw=1.4, color=colour, label=_short(name))
    panel.plot(steps[1:], grown, 's:', ms=3.5, lw=1.4, color=colour, mfc='white')
  panel.set_ylim(bottom=0)
  panel.set_title('churn: dropped (line) and grown (dots)', fontsize=9, color=_INK)
  panel.set_ylabel('of the kept before, %', fontsize=8.5, color=_SOFT)
  panel.set_xlabel('step', fontsize=8.5, color=_SOFT)
  panel.tick_params(labelsize=7.5)
  if len(changes) <= 2 * len(palette):
    panel.legend(fontsize=7.5, frameon=False)
  panel.spines[['top', 'right']].set_visible(False)


def _figure(width, height, title):
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), dpi=120, layout='constrained')
  backend_agg.FigureCanvasAgg(figure)
  figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
  figure.suptitle(title, x=0.012, ha='left', fontsize=11, fontweight='bold', color=_INK)
  return figure


def _bare(panel):
  panel.spines[:].set_visible(False)
  panel.tick_params(length=0, labelsize=8)


def _short(name):
  return name if len(name) <= _MOST_NAME else '…' + name[1 - _MOST_NAME:]


def _png(figure):
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png')
  return buffer.getvalue()
