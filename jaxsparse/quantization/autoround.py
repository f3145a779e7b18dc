"""AutoRound: roundings and clippings by signed gradient descent on the layer's output.

Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs"
(arXiv:2309.05516), equations 3 to 6. Letters: W `[R, O]` a weight, s its steps, a `[G, O]` in
[0.5, 1] what they shrink by, V `[R, O]` in [-0.5, 0.5] what is added before rounding:

  `W' = a s clip(round(W / (a s) + V), low, high)`,  V and a move by `rate sign(gradient)`,

the rate falling linearly to zero, the gradient straight through the rounding; the best iterate of
each output is kept. The paper tunes both ends of an asymmetric range and the output of a block of
layers; here one factor shrinks a cell's range, and the output is the layer's, known from X^T X.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import rounding
from jaxsparse.numerics import scales
from jaxsparse.quantization import frozen
from jaxsparse.quantization import scheme as schemes


def autoround(dtype: str = 'int4', *, granularity: str | None = None, group: int | None = None,
              scale: Any = None, steps: int = 200,
              rate: float | None = None) -> transforms.Transform:
  """Rounds weights with learned offsets and clippings, so that each layer's output changes least.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`; arithmetic is float32.

  Args:
    dtype: an integer grid; one with zero points ('uint4') is asymmetric.
    granularity: 'channel' or 'group', as for `quantize`.
    group: rows of a group; the last may be shorter.
    scale: the scale rule that ranges start from, as for `quantize`; not one of narrow scales.
    steps: of signed descent.
    rate: of the first step, in codes; None: `1 / steps`, as in the paper.

  Returns:
    A Transform whose state is the codes; packs to `QArray`.

  Raises:
    ValueError: what `adaround` raises, one scale for a whole tensor, narrow scales.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.4], [0.6], [7.0]])}
    >>> same = jnp.array([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 9.0]])
    >>> transform = autoround('int4')
    >>> out = transform.apply(*transform.init(params, stats={'kernel': same}))['kernel']
    >>> bool(abs(out[:2].sum() - 2) < 0.1)
    True
  """
  spelling = spell.call(autoround, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  schemes.check_learned('autoround', scheme, steps, 1.0 if rate is None else rate)
  if scheme.granularity == 'tensor' or scheme.rule in ('power_of_two', 'two_level'):
    raise ValueError('autoround learns the range of each channel or group in float32; got '
                     f'{scheme.granularity} and {scheme.rule}.')

  def find(x, gram, scale):
    codes, shrink = _solve(x, gram, scale, 1 / steps if rate is None else rate, grid=scheme.grid,
                           group=scheme.group, steps=steps)
    new = scale._replace(scale=scale.scale * shrink)
    return schemes.values(codes, new, scheme), codes, new

  return frozen.from_gram(scheme, spelling, find)


# Compiled by shape: weights of one shape in many layers share a program.
@functools.partial(jax.jit, static_argnames=('grid', 'group', 'steps'))
def _solve(w, gram, scale, rate, *, grid, group, steps):
  size, zero = schemes.cells(scale, w.shape, group)

  def codes(v, shrink):
    place = w / (size * scales.expand(shrink, w.shape[-2], group)) + v + zero
    return jnp.clip(rounding.straight_through(place, jnp.round(place)), grid.low, grid.high)

  def error(v, shrink):
    steps = size * scales.expand(shrink, w.shape[-2], group)
    return schemes.output_error((codes(v, shrink) - zero) * steps - w, gram)

  def step(n, carry):
    v, shrink, best, *kept = carry
    total = lambda v, shrink: (lambda e: (e.sum(), e))(error(v, shrink))
    slopes, found = jax.grad(total, (0, 1), has_aux=True)(v, shrink)
    better = found < best
    kept = [jnp.where(better, new, old) for new, old in zip((v, shrink), kept)]
    move = rate * (1 - n / steps)
    v, shrink = (x - move * jnp.sign(slope) for x, slope in zip((v, shrink), slopes))
    return (jnp.clip(v, -0.5, 0.5), jnp.clip(shrink, 0.5, 1.0), jnp.where(better, found, best),
            *kept)

  start = jnp.zeros_like(w), jnp.ones_like(scale.scale)
  least = jnp.full((*w.shape[:-2], 1, w.shape[-1]), jnp.inf)
  *_, v, shrink = jax.lax.fori_loop(0, steps + 1, step, (*start, least, *start))
  kind = jnp.uint8 if grid.zero_point else jnp.int8
  return codes(v, shrink).astype(kind), shrink
