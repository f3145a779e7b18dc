"""A run whose transform goes on to another one: what it is told, and what a checkpoint keeps of it.

Every change is a line of `stages`, which is saved with each checkpoint beside the transform's own
notes: with the asked recipe first, so that the checkpoint of a later stage is still that of this
run, and with the recipe that the tree on disk has.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

import jaxsparse as jsp

# A recipe with the ranks of thousands of layers is longer than anything typed.
_LONGEST = 10_000_000


class Stage(NamedTuple):
  """One change of the transform.

  Attributes:
    recipe: spelled, of the transform from here on.
    asked: spelled, of the transform that the run began with.
    count: steps done before the change.
    warmup: steps of the optimizer's new warm-up.
    rate: what the optimizer's updates are multiplied by from here on.
  """

  recipe: str
  asked: str
  count: int
  warmup: int
  rate: float = 1.0  # checkpoints from before it existed have none

  @property
  def pace(self) -> dict[str, float]:
    """Arguments of `jsp.warm_again`."""
    return {'steps': self.warmup, 'rate': self.rate}


def of_checkpoint(
  asked: jsp.Transform, recipe: str | None, extra: Mapping[str, Any]
) -> list[Stage]:
  """Returns the changes that lie behind a checkpoint.

  Args:
    asked: the transform that the run began with.
    recipe: of the checkpoint.
    extra: what was saved with it.

  Raises:
    ValueError: the checkpoint is that of another run.
  """
  past = [Stage(**line) for line in extra.get('stages', [])]
  expected = jsp.spell(asked)
  found = past[0].asked if past else recipe
  known = not past or (past[-1].recipe == recipe and asked.spec.next_stage is not None)
  if found != expected or not known:
    raise ValueError(f'the recipe differs:\n  found    {found}\n  expected {expected}')
  return past


def transform_of(stage: Stage) -> jsp.Transform:
  """Returns the transform of a stage."""
  return jsp.parse(stage.recipe, longest=_LONGEST)


def order(task: Any, weights: Any) -> tuple[str, ...]:
  """Returns the names of the weights in the order in which the model uses them."""
  found = jsp.contractions(task.apply, weights, task.inputs)
  return tuple(dict.fromkeys(contraction.name for contraction in found))


def epoch(task: Any) -> int:
  """Returns the steps of an epoch; of a task without epochs a fortieth of the run."""
  return task.epoch or max(1, task.steps // 40)


def speedups(task: Any, weights: Any):
  """Returns `Course.speedups` of a task: layers on its own batches, the same on every process."""

  def measure(names, ratio, by, until):
    loss = lambda params, batch, key: task.loss(params, batch, key)[0]
    found = jsp.factor_speedups(
      loss,
      weights,
      task.batch(0),
      jax.random.key(0),
      ratio=ratio,
      by=by,
      names=names,
      until=until,
    )
    if jax.process_count() == 1:
      return found
    said = np.array([found.get(name, np.nan) for name in names], np.float32)
    said = np.asarray(multihost_utils.broadcast_one_to_all(said))
    return {name: float(x) for name, x in zip(names, said) if np.isfinite(x)}

  return measure
