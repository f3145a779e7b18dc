"""AdaRound: whether each weight is rounded up or down is learned from the layer's inputs.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (arXiv:2004.10568),
equations 21 to 24. Letters: W `[R, O]` a weight, s its steps, X `[rows, R]` its inputs,
`H = X^T X`, V `[R, O]` what is learned:

  `W' = s clip(floor(W / s) + h(V), low, high)`,  `h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)`,
  least `tr((W' - W)^T H (W' - W)) + strength sum(1 - |2 h(V) - 1|^beta)`,

by Adam, beta falling from 20 to 2 after a fifth of the steps without the second term. The first
term is in units of what rounding to nearest loses, the second a mean, so that one strength serves
every layer. Each output is a problem of its own, and keeps the nearest codes where they are better.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.quantization import frozen
from jaxsparse.quantization import scheme as schemes

_STRETCH, _SHIFT = 1.2, -0.1   # zeta - gamma and gamma of the paper
_BETAS = 20.0, 2.0
_STRENGTH = 10.0


def adaround(dtype: str = 'int4', *, granularity: str | None = None, group: int | None = None,
             scale: Any = None, steps: int = 1000, rate: float = 0.01) -> transforms.Transform:
  """Rounds weights up or down, whichever changes the layer's output least; learned, once.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`; arithmetic is float32.

  Args:
    dtype: an integer grid; one with zero points ('uint4') is asymmetric.
    granularity: 'tensor', 'channel' or 'group', as for `quantize`.
    group: rows of a group; the last may be shorter.
    scale: the scale rule, as for `quantize`.
    steps: of Adam.
    rate: of Adam.

  Returns:
    A Transform whose state is the codes; packs to `QArray`.

  Raises:
    ValueError: what `quantize` raises, blocks, a grid that is not of integers, no positive steps or
      rate; or, in `init`, a weight has no statistics, or ones that do not fit it or are not finite.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.4], [0.6], [7.0]])}
    >>> same = jnp.array([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    >>> transform = adaround('int4', steps=100)
    >>> out = transform.apply(*transform.init(params, stats={'kernel': same}))['kernel']
    >>> float(out[:2].sum()), float(out[2, 0])
    (2.0, 7.0)
  """
  spelling = spell.call(adaround, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  schemes.check_learned('adaround', scheme, steps, rate)

  def find(x, gram, scale):
    codes = _solve(x, gram, scale, rate, grid=scheme.grid, group=scheme.group, steps=steps)
    return schemes.values(codes, scale, scheme), codes, None

  return frozen.from_gram(scheme, spelling, find)


# Compiled by shape: weights of one shape in many layers share a program.
@functools.partial(jax.jit, static_argnames=('grid', 'group', 'steps'))
def _solve(w, gram, scale, rate, *, grid, group, steps):
  size, zero = schemes.cells(scale, w.shape, group)
  place = w / size + zero
  floor = jnp.floor(place)
  kind = jnp.uint8 if grid.zero_point else jnp.int8
  off = lambda codes: (jnp.clip(codes, grid.low, grid.high) - zero) * size - w
  nearest = off(jnp.round(place))
  unit = schemes.output_error(nearest, gram).sum(-1, keepdims=True)
  unit = jnp.where(unit > 0, unit, 1.0)
  soft = lambda v: jnp.clip(_STRETCH * jax.nn.sigmoid(v) + _SHIFT, 0, 1)

  def loss(v, strength, beta):
    chosen = soft(v)
    # Nothing at 0 and 1 has a slope there; of 0 ** beta it would be NaN.
    sides = jnp.maximum(jnp.abs(2 * chosen - 1), 1e-6)
    undecided = (1 - sides**beta).mean((-2, -1))
    error = (schemes.output_error(off(floor + chosen), gram) / unit).sum((-2, -1))
    return (error + strength * undecided).sum()

  def step(n, carry):
    v, mean, square = carry
    done = (n / steps - 0.2) / 0.8
    beta = _BETAS[0] + (_BETAS[1] - _BETAS[0]) * jnp.maximum(done, 0)
    slope = jax.grad(loss)(v, jnp.where(done > 0, _STRENGTH, 0.0), beta)
    mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
    move = mean / (1 - 0.9 ** (n + 1.0)) / (jnp.sqrt(square / (1 - 0.999 ** (n + 1.0))) + 1e-12)
    return v - rate * move, mean, square

  share = jnp.clip((place - floor - _SHIFT) / _STRETCH, 1e-3, 1 - 1e-3)
  start = jnp.log(share) - jnp.log1p(-share)
  v = jax.lax.fori_loop(0, steps, step, (start, jnp.zeros_like(w), jnp.zeros_like(w)))[0]
  learned = floor + (soft(v) >= 0.5)
  better = schemes.output_error(off(learned), gram) < schemes.output_error(nearest, gram)
  return jnp.clip(jnp.where(better, learned, jnp.round(place)), grid.low, grid.high).astype(kind)
