"""Structure changes in the middle of training: host code, explicit, one recompilation."""

from typing import Any

import jax
import optax

from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.optimizers import moments


def restage(old: transforms.Transform, new: transforms.Transform, params: Any, state: Any,
            opt_state: Any, tx: optax.GradientTransformation, **extra) -> tuple[Any, Any, Any]:
  """Goes on with another transform: same effective weights, matching optimizer state carried over.

  Where both are chains that differ in their first stage, or the same rules with other transforms,
  what did not change keeps its latents and its state (masks, ranges).

  Args:
    old: the transform so far.
    new: the one from here on.
    params: latents of `old`.
    state: state of `old`.
    opt_state: of `tx` on `params`.
    tx: the optimizer.
    **extra: what `new.init` takes besides params.

  Returns:
    `(params, state, opt_state)` of `new`; leaves of the optimizer state with the same path, shape
    and dtype keep their values, the step count among them, and so do moments of blocks that both
    store (`packed_blocks`).

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> old, new, tx = jsp.identity(), jsp.low_rank(1), optax.adam(0.1)
    >>> params, state = old.init({'kernel': jnp.ones((4, 4))})
    >>> params, state, _ = restage(old, new, params, state, tx.init(params), tx)
    >>> params['kernel'].u.shape
    (4, 1)
  """
  before, (params, state) = (params, state), _init(old, new, params, state, extra)
  if jax.tree.structure(before[0]) == jax.tree.structure(params):
    opt_state = moments.relay(tx, params, opt_state, before[1], state)
  return params, state, moments.transplant(tx.init(params), opt_state)


def _init(old, new, params, state, extra):
  parts = [*zip(old.spec.parts, new.spec.parts)]
  same = [_spelled(a) == _spelled(b) for a, b in parts]
  if _chains(old, new) and all(same[1:]) and not _superseded(state):
    params, first = _init(*parts[0], params, state[0], extra)
    return params, (first, *state[1:])
  if _rules(old, new):
    states = list(state)
    for i, (a, b) in enumerate(parts):
      if not same[i] and isinstance(state[i], weights.WeightsState):
        view = formats.densify(a.apply(params, state[i]))
        hit = {key for key, _ in state[i].entries}
        params, states[i] = weights.init_selected(b, view, hit, extra)
    return params, tuple(states)
  return new.init(formats.densify(old.apply(params, state)), **extra)


def _spelled(transform):
  return transforms.spell_or(transform, '') or transform


def _word(transform):
  return getattr(transform.spec.spelling, 'name', None)


def _chains(old, new) -> bool:
  return _word(old) == _word(new) == '|' and len(old.spec.parts) == len(new.spec.parts)


def _rules(old, new) -> bool:
  if not _word(old) == _word(new) == 'rules':
    return False
  patterns = lambda t: [pattern for pattern, _ in t.spec.spelling.args[0]]
  return patterns(old) == patterns(new)


def _superseded(state) -> bool:
  """Whether a later stage of the chain took weights over, so that an earlier one has none."""
  return any(len(s.active()) < len(s.entries) for s in state if isinstance(s, weights.WeightsState))
