"""A learning rate that starts over: updates that grow from zero, whatever the optimizer inside."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class WarmState(NamedTuple):
  """State of `warm_again`: the inner optimizer's, and updates since."""

  inner: Any
  count: jax.Array   # int32 ()


def warm_again(tx: optax.GradientTransformation, steps: int, *,
               rate: float = 1.0) -> optax.GradientTransformationExtraArgs:
  """Scales the updates of `tx` by `rate * min(1, (count + 1) / steps)`, counting from here.

  For a change in the middle of training: the inner state with its moments and its own count goes
  on, `WarmState(inner, jnp.int32(0))`, and so does the schedule inside, below a new warm-up. A
  restart of the rate is part of Cuttlefish; without it training at a high rate collapses.

  Args:
    tx: the optimizer.
    steps: of the warm-up; 0 has none.
    rate: what the learning rate is multiplied by from here on, more than 0.

  Raises:
    ValueError: an argument is out of range.

  Example:
    >>> tx, params = warm_again(optax.sgd(1.0), 4), {'w': jnp.zeros(1)}
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...   updates, state = tx.update({'w': jnp.ones(1)}, state, params)
    >>> updates['w'].item()
    -0.5
  """
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
    raise ValueError(f'steps must be a whole number, got {steps!r}.')
  if not rate > 0:
    raise ValueError(f'rate must be more than 0, got {rate!r}.')
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra):
    updates, inner = tx.update(updates, state.inner, params, **extra)
    share = rate * jnp.minimum(1.0, (state.count + 1) / max(steps, 1))
    updates = jax.tree.map(lambda u: (u * share).astype(u.dtype), updates)
    return updates, WarmState(inner, optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(
      lambda params: WarmState(tx.init(params), jnp.zeros([], jnp.int32)), update)
