"""How every run of a sweep is doing, on a terminal while it goes on, in plain lines elsewhere."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxsparse.reports import quoting

_MOST_ROWS = 20
_STYLES = {'running': 'cyan', 'finished': 'green', 'failed': 'bold red', 'stopped': 'yellow'}


class Row(NamedTuple):
  """One run at one moment.

  Attributes:
    name: of the run.
    status: `'waiting'`, `'running'`, `'finished'`, `'failed'` or `'stopped'`.
    step: the last one logged.
    steps: in all.
    loss: the last one logged.
    note: why it failed, in a line.
  """

  name: str
  status: str
  step: int | None = None
  steps: int | None = None
  loss: float | None = None
  note: str = ''


Update = Callable[[Sequence[Row]], None]


@contextlib.contextmanager
def show_board(title: str, *, console=None) -> Iterator[Update]:
  """Shows rows until the block ends; the function it gives is called with all of them, often.

  A terminal gets a table that redraws itself; anything else one line whenever a run starts or ends.

  Args:
    title: above the table.
    console: a `rich.console.Console`; a new one on standard output when None.

  Raises:
    ImportError: if rich, of the demo extra, is not installed.
  """
  from rich import console as console_lib
  from rich import live

  console = console or console_lib.Console()
  told = {}

  def tell(rows):
    for row in rows:
      if row.status != told.get(row.name, 'waiting'):
        told[row.name] = row.status
        console.print(_line(row, rows), markup=False, highlight=False, soft_wrap=True)

  if not console.is_terminal:
    yield tell
    return
  with live.Live(console=console, refresh_per_second=4, transient=True) as screen:

    def redraw(rows):
      tell([row for row in rows if row.status in ('finished', 'failed', 'stopped')])
      screen.update(_table(title, rows))

    yield redraw


def _line(row, rows):
  over = sum(other.status not in ('waiting', 'running') for other in rows)
  text = f'[{over}/{len(rows)}] {row.status} {row.name}'
  if row.loss is not None:
    text += f', loss {row.loss:.4g}'
  return quoting.visible(text + (f': {row.note}' if row.note else ''))


def _table(title, rows):
  from rich import box
  from rich import markup
  from rich import progress_bar
  from rich import table

  counts = Counter(row.status for row in rows)
  said = ', '.join(f'{count} {status}' for status, count in sorted(counts.items()))
  grid = table.Table(
    title=f'[bold]{markup.escape(quoting.visible(title))}[/]  {said}',
    title_justify='left',
    box=box.SIMPLE_HEAD,
    pad_edge=False,
  )
  for name, side in (('run', 'left'), ('', 'left'), ('step', 'right'), ('loss', 'right')):
    grid.add_column(name, justify=side, no_wrap=True)
  running = [row for row in rows if row.status == 'running'][:_MOST_ROWS]
  for row in running:
    bar = progress_bar.ProgressBar(total=row.steps or 1, completed=row.step or 0, width=24)
    step = '–' if row.step is None else f'{row.step}/{row.steps or "?"}'
    loss = '–' if row.loss is None else f'{row.loss:.4g}'
    grid.add_row(f'[{_STYLES["running"]}]{markup.escape(row.name)}[/]', bar, step, loss)
  return grid
