"""Error feedback: what a compressor leaves out of a gradient is added to the next one.

Seide et al., "1-Bit Stochastic Gradient Descent" (2014); Karimireddy et al., "Error Feedback Fixes
SignSGD" (arXiv:1901.09847), algorithm 1, before the optimizer rather than after the step size.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import transform as transforms
from jaxsparse.numerics import explicit_axes
from jaxsparse.optimizers import compressors


class ErrorFeedbackState(NamedTuple):
  """State of `error_feedback`."""

  held: Any         # like params, float32: what has not been sent yet; this worker's own
  compressor: Any   # {position of the leaf: the compressor's state}


def error_feedback(compressor: Any, *, axis_name: Any = None,
                   feedback: bool = True) -> optax.GradientTransformation:
  """Compresses gradients, holding back what was not sent; first in a chain.

  In `shard_map` (or `pmap`) with `axis_name` each worker passes its own gradients, messages cross
  the wire compressed, and the updates are their mean. `held` then differs between workers, so it is
  sharded along a device axis of its own. `sent + held` equals gradient + held of before: to the bit
  for int8 and top-k, to one float32 rounding for signs and low rank; what the cast to narrower
  gradients loses is held too. A NaN or an infinity is sent, and held: inside
  `optax.apply_if_finite` the state stays that of before.

  Args:
    compressor: 'int8', 'sign', or of `jsp.compressors`: `top_k(0.01)`, `power_sgd(4)`, your own.
    axis_name: the mapped axis of the workers; None for one worker.
    feedback: False drops what was not sent, for comparison.

  Returns:
    An optax transformation with state `ErrorFeedbackState`.

  Raises:
    ValueError: an unknown compressor.

  Example:
    >>> tx = error_feedback(compressors.top_k(0.5))
    >>> g = {'w': jnp.array([3.0, 2.0])}
    >>> sent, state = tx.update(g, tx.init(g))
    >>> sent['w'].tolist(), state.held['w'].tolist(), tx.update(g, state)[0]['w'].tolist()
    ([3.0, 0.0], [0.0, 2.0], [0.0, 4.0])
  """
  if isinstance(compressor, str):
    if compressor not in compressors.BY_NAME:
      raise ValueError(f'{compressor!r} is no compressor; known by name are '
                       f'{", ".join(compressors.BY_NAME)}, others come from jsp.compressors.')
    compressor = compressors.BY_NAME[compressor]()
  if not isinstance(compressor, compressors.Compressor):
    raise ValueError(f'compressor must be a name or a Compressor, got {compressor!r}.')

  def init(params):
    held = jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32) if transforms.is_floating(p)
                        else jnp.zeros([], jnp.float32), params)
    state = {str(n): compressor.init(p.astype(jnp.float32))
             for n, p in enumerate(jax.tree.leaves(params)) if _takes(p)}
    return ErrorFeedbackState(held, state)

  @explicit_axes.left_to_xla(_places)
  def compress(gradient, state):
    return compressor.compress(gradient, state, axis_name)

  def update(updates, state, params=None):
    del params
    leaves, treedef = jax.tree.flatten(updates)
    held, inner = treedef.flatten_up_to(state.held), dict(state.compressor)
    out = []
    for n, (g, h) in enumerate(zip(leaves, held)):
      if not _takes(g):
        out.append((g, h))
        continue
      whole = g.astype(jnp.float32) + h
      sent, received, inner[str(n)] = compress(whole, inner[str(n)])
      narrow = received.astype(g.dtype)
      rest = whole - sent
      if narrow.dtype != received.dtype:
        rest += received - narrow.astype(received.dtype)
      out.append((narrow, rest if feedback else h))
    received, held = (treedef.unflatten([pair[i] for pair in out]) for i in range(2))
    return received, ErrorFeedbackState(held, inner)

  return optax.GradientTransformation(init, update)


def _places(out, gradient, state):
  del out
  here = explicit_axes.spec_of(gradient)
  return [here, here, *map(explicit_axes.spec_of, jax.tree.leaves(state))]


def _takes(x) -> bool:
  return transforms.is_floating(x) and x.size > 0
