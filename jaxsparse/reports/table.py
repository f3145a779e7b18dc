"""The comparison as a table on a terminal."""

from collections.abc import Sequence

from jaxsparse.reports import pareto
from jaxsparse.reports import record as records_lib


def show(records: Sequence[records_lib.Record], *, console=None) -> None:
  """Prints one table a model: accuracy, bytes, FLOPs and latency, the fronts in bold.

  Args:
    records: runs; those of one model are compared with its baseline.
    console: a `rich.console.Console`; a new one on standard output when None.

  Raises:
    ImportError: if rich, of the demo extra, is not installed.
  """
  from rich import console as console_lib

  console = console or console_lib.Console()
  records = [records_lib.finite(record) for record in records]
  for model, runs in pareto.by_model(records).items():
    console.print(_table(model, runs, console.width))


def _table(model, runs, width):
  from rich import box
  from rich import markup
  from rich import table

  grid = table.Table(
    title=f'[bold]{markup.escape(model)}[/]',
    title_justify='left',
    box=box.SIMPLE_HEAD,
    pad_edge=False,
    caption='In colour: nothing is both cheaper and as accurate.',
    caption_justify='left',
  )
  base = baseline(runs)
  fronts = {axis.field: set(pareto.record_front(runs, axis.field)) for axis in pareto.AXES}

  def costly(i, text, field):
    return f'[bold cyan]{text}[/]' if i in fronts[field] else text

  columns = [
    ('#', lambda i, run: str(i)),
    ('compression', lambda i, run: markup.escape(run.label)),
    ('accuracy', lambda i, run: percent(run.accuracy)),
    ('Δ', lambda i, run: points(run, base)),
    ('stored', lambda i, run: costly(i, pareto.quantity(run.size_bytes, 'B'), 'size_bytes')),
    ('of dense', lambda i, run: costly(i, ratio(run, base, 'size_bytes'), 'size_bytes')),
    ('ideal FLOPs', lambda i, run: costly(i, ratio(run, base, 'flops_ideal'), 'flops_ideal')),
    ('latency', lambda i, run: costly(i, pareto.quantity(run.latency_ratio, '×'), 'latency_ratio')),
  ]
  if width >= 104:
    columns.insert(7, ('executed', lambda i, run: ratio(run, base, 'flops_executed')))
    columns.append(('zeros', lambda i, run: percent(run.sparsity)))
  for name, _ in columns:
    left = name == 'compression'
    grid.add_column(
      name, justify='left' if left else 'right', no_wrap=not left, min_width=12 if left else None
    )
  for i, run in enumerate(runs):
    grid.add_row(*(text(i, run) for _, text in columns))
  return grid


def baseline(runs: Sequence[records_lib.Record]) -> records_lib.Record | None:
  """Returns the run the others are compared with, or None."""
  return next((run for run in runs if run.baseline), None)


def percent(value: float | None) -> str:
  """Returns a fraction as a percentage with one decimal.

  Example:
    >>> percent(0.9861), percent(None)
    ('98.6 %', '–')
  """
  return '–' if value is None else f'{100 * value:.1f} %'


def points(run: records_lib.Record, base: records_lib.Record | None) -> str:
  """Returns the accuracy against the baseline in points, with a sign."""
  if base is None or run is base or run.accuracy is None or base.accuracy is None:
    return '–'
  difference = round(100 * (run.accuracy - base.accuracy), 1)
  return f'{difference:+.1f}'.replace('-', '−') if difference else '0.0'


def ratio(run: records_lib.Record, base: records_lib.Record | None, field: str) -> str:
  """Returns a cost as a fraction of the baseline's."""
  cost, whole = getattr(run, field), base and getattr(base, field)
  return '–' if cost is None or not whole else f'{cost / whole:.2f}×'
