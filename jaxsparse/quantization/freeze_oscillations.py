"""Weights that swing between two codes are frozen.

Nagel et al., "Overcoming Oscillations in Quantization-Aware Training" (arXiv:2203.08086), algorithm
1: under a straight-through estimator a latent weight near a rounding threshold crosses it back and
forth. A swing is a change of the code in the direction opposite to the last change; a weight whose
moving average of swings passes a threshold keeps the code that it was at most, for good.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import quantized
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales
from jaxsparse.quantization import scheme as schemes


class OscillationState(NamedTuple):
  """State of `freeze_oscillations`, each of the weight's shape."""

  codes: jax.Array       # int8, of the last step
  direction: jax.Array   # int8, sign of the last change; 0 before the first
  frequency: jax.Array   # float32, moving average of swings
  average: jax.Array     # float32, moving average of the codes
  frozen: jax.Array      # bool


def freeze_oscillations(dtype: str, *, granularity: str | None = None, group: Any = None,
                        scale: Any = None, threshold: float = 0.02,
                        momentum: float = 0.02) -> transforms.Transform:
  """`fake_quantize` that freezes the code of a weight that oscillates.

  Args:
    dtype: an integer grid without zero points, as for `fake_quantize`, as are granularity, group
      and scale.
    granularity: where scales differ.
    group: rows of a group, or `(rows, outputs)`.
    scale: the scale rule.
    threshold: swings a step, on average, above which a weight is frozen.
    momentum: of the moving averages.

  Returns:
    A Transform with state `OscillationState`; packs to `QArray`.

  Raises:
    ValueError: what `fake_quantize` raises, another grid, or numbers outside (0, 1).

  Example:
    >>> import jaxsparse as jsp
    >>> transform = freeze_oscillations('int4', threshold=0.1, momentum=0.5)
    >>> params, state = transform.init({'kernel': jnp.array([[7.0], [1.4]])})
    >>> for w in (1.6, 1.4, 1.6, 1.4):
    ...   state = transform.update({'kernel': jnp.array([[7.0], [w]])}, state)
    >>> state.weights['kernel'].frozen.ravel().tolist()
    [False, True]
  """
  spelling = spell.call(freeze_oscillations, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  if not scheme.grid.is_integer or scheme.grid.zero_point:
    raise ValueError(f'oscillations are between the codes of an integer grid, not {dtype!r}.')
  for word, value in (('threshold', threshold), ('momentum', momentum)):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
      raise ValueError(f'{word} must be in (0, 1), got {value!r}.')

  def code(w, fitted):
    return scales.encode(w, fitted, scheme.grid, scheme.group)

  def held(w, state, fitted):
    kept = jnp.clip(jnp.round(state.average), scheme.grid.low, scheme.grid.high)
    return jnp.where(state.frozen, kept.astype(jnp.int8), code(w, fitted))

  def init(w):
    codes = code(w, scheme.fit(w))
    return w, OscillationState(codes, jnp.zeros_like(codes), jnp.zeros(w.shape),
                               codes.astype(jnp.float32), jnp.zeros(w.shape, bool))

  def apply(w, state):
    fixed = jax.lax.stop_gradient(w)
    fitted = scheme.fit(fixed)
    values = scales.decode(held(fixed, state, fitted), fitted, scheme.grid, scheme.group)
    # What is frozen no longer moves the loss.
    moving = jnp.where(state.frozen, fixed, w)
    return rounding.straight_through(moving, values.astype(w.dtype))

  def update(w, state):
    codes = code(w, scheme.fit(w))
    step = jnp.sign(codes.astype(jnp.int32) - state.codes).astype(jnp.int8)
    swing = (step != 0) & (state.direction == -step)
    frequency = momentum * swing + (1 - momentum) * state.frequency
    average = momentum * codes.astype(jnp.float32) + (1 - momentum) * state.average
    return OscillationState(
        codes, jnp.where(step != 0, step, state.direction), frequency,
        jnp.where(state.frozen, state.average, average),
        state.frozen | (frequency > threshold))

  def pack(w, state, *, layout):
    fitted = scheme.fit(w)
    return quantized.QArray.of_codes(held(w, state, fitted), fitted, layout.astype(w.dtype),
                                     scheme.grid, scheme.group)

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, update, pack),
      spec=transforms.Spec(spelling))
