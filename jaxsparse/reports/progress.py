"""What is going on, on a terminal, while it goes on."""

import contextlib
from collections.abc import Callable, Iterator

Advance = Callable[[int], None]


class Progress:
  """Starts tasks and reports finished ones; made by `show`."""

  def __init__(self, live, overall):
    self._live, self._overall, self._task = live, overall, None

  def start(self, label: str, steps: int) -> Advance:
    """Starts a task; the returned function is told how many of its steps are done."""
    if self._task is not None:
      self._live.remove_task(self._task)
    task = self._task = self._live.add_task(label, total=steps)
    return lambda done: self._live.update(task, completed=done)

  def finish(self, text: str) -> None:
    """Ends the task and leaves a line about it, also where there is no terminal to redraw."""
    if self._task is not None:
      self._live.remove_task(self._task)
      self._task = None
    self._live.advance(self._overall)
    self._live.console.print(text, markup=False, highlight=False)


@contextlib.contextmanager
def show(title: str, tasks: int, *, console=None) -> Iterator[Progress]:
  """Shows a bar over all tasks and one for the task at hand until the block ends.

  Args:
    title: beside the bar over all tasks.
    tasks: how often `finish` will be called.
    console: a `rich.console.Console`; a new one on standard output when None.

  Raises:
    ImportError: if rich, of the demo extra, is not installed.
  """
  from rich import console as console_lib
  from rich import progress

  columns = (
    progress.TextColumn('{task.description}', markup=False),
    progress.BarColumn(),
    progress.MofNCompleteColumn(),
    progress.TimeElapsedColumn(),
  )
  live = progress.Progress(
    *columns, console=console or console_lib.Console(), transient=True, refresh_per_second=4
  )
  with live:
    yield Progress(live, live.add_task(title, total=tasks))
