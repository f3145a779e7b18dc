"""What packed weights do for speed and size: one line a weight, with the kind of its figure."""

import dataclasses
import html
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.trace import costs as costs_of


class Explained(NamedTuple):
  """One weight.

  Attributes:
    weight: its name.
    format: how it is stored, 'dense' for an array.
    kernel: the way it is multiplied.
    ratio: expected cost of a product over that of the dense one.
    bytes: stored.
    dense_bytes: of the dense array.
    kind: of `ratio`: 'measured', 'compiled' or 'declared'.
  """

  weight: str
  format: str
  kernel: str
  ratio: float
  bytes: int
  dense_bytes: int
  kind: str

  @property
  def slower(self) -> bool:
    """Whether the dense array would be faster, by more than 5 %."""
    return self.ratio > costs_of.TOLERANCE


@dataclasses.dataclass(frozen=True)
class Explanation:
  """A table of a packed tree; prints itself, in notebooks too.

  Attributes:
    weights: one entry a weight of two axes and more, in the order of the tree.
    rows: rows of activations the ratios are for.
  """

  weights: tuple[Explained, ...]
  rows: int

  def _cells(self):
    yield ('weight', 'format', 'kernel', 'ratio', 'bytes', 'of dense', 'figure')
    for w in self.weights:
      yield (w.weight, w.format, w.kernel, f'{w.ratio:.2f}' + ('!' if w.slower else ''),
             f'{w.bytes:,}', f'{w.bytes / max(w.dense_bytes, 1):.3f}', w.kind)
    total, dense = sum(w.bytes for w in self.weights), sum(w.dense_bytes for w in self.weights)
    yield ('total', '', '', '', f'{total:,}', f'{total / max(dense, 1):.3f}', '')

  def _notes(self):
    notes = [f'ratio: time of a product with {self.rows} rows over the dense product']
    if any(w.kind == 'declared' and w.format != 'dense' for w in self.weights):
      notes.append('declared: multiply-adds alone, not the time to decode; '
                   'measure_costs(packed, rows) measures it')
    if any(w.slower for w in self.weights):
      notes.append('!: slower than a dense array; fastest(packed, costs) holds such weights dense')
    return notes

  def __str__(self) -> str:
    rows = list(self._cells())
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
      cells = [f'{c:<{n}}' if i in (0, 1, 2, 6) else f'{c:>{n}}'
               for i, (c, n) in enumerate(zip(row, widths))]
      lines.append('  '.join(cells).rstrip())
    return '\n'.join([*lines, *self._notes()])

  def _repr_html_(self) -> str:
    head, *body = self._cells()
    cells = lambda tag, row: ''.join(f'<{tag}>{html.escape(c)}</{tag}>' for c in row)
    line = lambda tag, row: f'<tr>{cells(tag, row)}</tr>'
    table = ''.join([line('th', head), *(line('td', row) for row in body)])
    notes = ''.join(f'<p>{html.escape(note)}</p>' for note in self._notes())
    return f'<table>{table}</table>{notes}'


def explain(packed: Any, rows: int = 1, *, costs: costs_of.Costs | None = None,
            uses: Mapping[str, costs_of.Ratio] | None = None) -> Explanation:
  """Says of each weight: format, kernel, expected ratio, bytes, and what kind of figure it is.

  Runs nothing. The kernel is the one that `dispatch` with the same costs would take for a product
  of so many rows; lookups in a table and convolutions have ways of their own, which
  `measure_uses` times and `compile_uses` counts.

  Args:
    packed: a tree with formats in it; arrays of less than two axes are left out.
    rows: rows of activations: batch times tokens.
    costs: of `measure_costs` or `compile_costs`. None declares: the multiply-adds that a format
      executes over those of the dense product, which say nothing of the time to decode.
    uses: of `measure_uses` or `compile_uses`: ratios of a weight's operations in a model, in place
      of a product's.

  Returns:
    The table; `print` it.

  Raises:
    ValueError: `rows` is not positive.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init({'w': jnp.ones((8, 4)), 'bias': jnp.ones(4)}))
    >>> print(explain(packed))
    weight  format   kernel  ratio  bytes  of dense  figure
    w       NMArray  stored   1.00     68     0.531  declared
    total                              68     0.531
    ratio: time of a product with 1 rows over the dense product
    declared: multiply-adds alone, not the time to decode; measure_costs(packed, rows) measures it
  """
  if rows < 1:
    raise ValueError(f'rows must be positive, got {rows}.')
  costs = costs_of.Costs() if costs is None else costs
  found = []
  for leaf in names.named_leaves(packed)[0]:
    value = leaf.value
    if formats.is_format(value):
      way, ratio = costs_of.ratio_of(leaf.name, value, rows, costs, uses)
      dense = value.size * value.dtype.itemsize
      found.append(Explained(leaf.name, _form(value), way, ratio.value, value.nbytes, dense,
                             ratio.kind))
    elif getattr(value, 'ndim', 0) >= 2:
      held = value.size * value.dtype.itemsize
      found.append(Explained(leaf.name, 'dense', 'dense', 1.0, held, held, 'declared'))
  return Explanation(tuple(found), rows)


def _form(value):
  """`QArray of BlockArray`: a format and the formats in it."""
  inner = [getattr(value, f.name) for f in dataclasses.fields(value)]
  inner = sorted({_form(v) for v in inner if formats.is_format(v)})
  return ' of '.join([type(value).__name__, *inner])
