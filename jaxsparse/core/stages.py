"""Transforms that go on to another one in the middle of a run, by a rule of their own.

A change of structure (factors in place of a weight, fewer bits, fewer channels) is host code and
recompiles the step, so it is no part of `update`. A transform says in `Spec.next_stage` when it is
due and to what; a run asks it between two steps (`launch.run` does, any loop of yours may) and
goes on with `restage`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxsparse.core import transform as transforms


class Course(NamedTuple):
  """Where a run is, as it tells a transform that may go on to another stage.

  Attributes:
    count: steps done.
    steps: of the whole run.
    epoch: steps of an epoch.
    notes: JSON values that the transform noted at the last turn, None at first. They are saved
      with every checkpoint, so a resumed run decides as an uninterrupted one.
    order: names of the weights in the order in which the model uses them; empty where unknown.
    speedups: `(names, ratio, by, until) -> {weight name: times}`, how much faster layers are at a
      rank of `ratio` of their full rank, as `factor_speedups` finds; None where nobody can tell.
  """

  count: int
  steps: int
  epoch: int
  notes: Any = None
  order: tuple[str, ...] = ()
  speedups: Callable[..., Mapping[str, float]] | None = None


class Turn(NamedTuple):
  """What a transform answers.

  Attributes:
    notes: JSON values to be given back at the next turn.
    transform: the next stage; None stays.
    warmup: steps over which the optimizer's updates grow from zero again after a change.
    rate: what the optimizer's updates are multiplied by after a change.
    report: facts for the log, JSON values; None says nothing.
  """

  notes: Any = None
  transform: transforms.Transform | None = None
  warmup: int = 0
  rate: float = 1.0
  report: Mapping[str, Any] | None = None


def of_parts(parts: Sequence[transforms.Transform], rebuild: Callable, *,
             only_first: bool) -> Callable | None:
  """`Spec.next_stage` of a combinator: asks its staged part and puts the next one in its place.

  Args:
    parts: of the combinator, in the order of its state.
    rebuild: makes the combinator of other parts.
    only_first: whether a part sees the run's params only where it stands first.

  Returns:
    A function, or None where no part changes. It raises a ValueError where several parts do, or
    one whose params are not the run's.
  """
  staged = [i for i, part in enumerate(parts) if part.spec.next_stage is not None]
  if not staged:
    return None
  place = staged[0]

  def next_stage(params, state, course):
    if len(staged) > 1 or (only_first and place):
      raise ValueError(f'{parts[staged[-1]]} changes the structure of the params, so it stands '
                       'first in a chain, and alone.')
    turn = parts[place].spec.next_stage(params, state[place], course)
    if turn is None or turn.transform is None:
      return turn
    return turn._replace(transform=rebuild(
        [turn.transform if i == place else part for i, part in enumerate(parts)]))

  return next_stage
