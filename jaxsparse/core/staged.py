"""`staged`: one transform after another in a run, at milestones.

What shapes hang on (the density of stored blocks, ranks) cannot follow a smooth schedule without
compiling anew at every change. A few milestones cost a compilation each, and every stage then runs
at the cost of what it stores.
"""

import math
from typing import Any

from jaxsparse.core import spelling as spell
from jaxsparse.core import stages
from jaxsparse.core import transform as transforms


def staged(parts: Any, *, at: Any, warmup: int = 0) -> transforms.Transform:
  """The first of `parts`, then the next from each of the milestones `at` on.

  A shrinking schedule of blocks, each stage faster than the one before:

      staged([packed_blocks(magnitude(0.5, pattern=balanced_blocks(64, 64))),
              packed_blocks(magnitude(0.75, pattern=balanced_blocks(64, 64))),
              packed_blocks(magnitude(0.875, pattern=balanced_blocks(64, 64)))], at=(0.2, 0.5))

  A stage starts from what the one before makes of the weights (`restage`): a criterion that ranks
  zeros last goes on from the blocks that were kept. The optimizer's state goes on where params keep
  their shape, and for stored blocks that stay; elsewhere it starts at zero. `launch.run` takes the
  steps between; in a loop of your own ask `transform.spec.next_stage` as `Course` says.

  Args:
    parts: transforms in the order of use, none of which changes by itself.
    at: for each but the first, the fraction of the run's steps at which it begins, ascending.
    warmup: steps over which updates grow from zero again after each change.

  Returns:
    The first transform with a `Spec.next_stage`; with one part, that part.

  Raises:
    TypeError: a part is no transform.
    ValueError: milestones do not fit the parts, do not ascend or are not in (0, 1); a part changes
      by itself; `warmup` is negative.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = staged([jsp.nm(2, 4), jsp.nm(1, 4)], at=(0.5,))
    >>> params, state = transform.init({'kernel': jnp.ones((4, 2))})
    >>> turn = transform.spec.next_stage(params, state, jsp.Course(count=5, steps=10, epoch=5))
    >>> turn.transform
    Transform(nm(1, 4))
  """
  parts, at = [*parts], tuple(at)
  spelling = spell.call(staged, locals())
  _check(parts, at, warmup)
  first, *rest = parts
  if not rest:
    return first

  def next_stage(params, state, course):
    del params, state
    # A rounding error must not cost a step: 0.7 * 10 is more than 7.
    if course.count < math.ceil(at[0] * course.steps - 1e-6):
      return None
    following = staged(rest, at=at[1:], warmup=warmup)
    return stages.Turn(transform=following, warmup=warmup,
                       report={'stage': transforms.spell_or(rest[0], 'the next')})

  return first._replace(spec=first.spec._replace(spelling=spelling, next_stage=next_stage))


def _check(parts, at, warmup):
  if not parts:
    raise ValueError('staged takes one transform at least.')
  for part in parts:
    if not isinstance(part, transforms.Transform):
      raise TypeError(f'staged takes transforms, got {part!r}.')
    if part.spec.next_stage is not None:
      raise ValueError(f'{part!r} goes on to another stage by itself, so it is no part of staged.')
  numbers = all(isinstance(a, (int, float)) and 0 < a < 1 for a in at)
  if len(at) != len(parts) - 1 or not numbers or [*at] != sorted(set(at)):
    raise ValueError(f'at must be {len(parts) - 1} ascending fractions of a run, one for each part '
                     f'but the first, got {at!r}.')
  if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
    raise ValueError(f'warmup must be a number of steps, got {warmup!r}.')
