"""Activations on a grid whose range is trained: LSQ, LSQ+ and PACT.

Esser et al., "Learned Step Size Quantization" (arXiv:1902.08153); Bhalgat et al., "LSQ+"
(arXiv:2004.09576), equations 3 to 6; Choi et al., "PACT" (arXiv:1805.06085), equations 1 to 3. With
n the largest code of an unsigned grid, s a step and b an offset:

  LSQ, LSQ+:  `x_hat = round(clip((x - b) / s, 0, n)) s + b`, straight through the rounding, the
              gradients of s and b times `1 / sqrt(N n)` for N values of x;
  PACT:       `x_hat = round(clip(x, 0, a) n / a) a / n` with `a = n s`, whose gradient is 1 where
              x >= a.

LSQ keeps b at zero, of inputs that are never negative; where some are, its grid is signed. LSQ+
trains b. Ranges are trained beside the weights, as a tree of their own.
"""

import dataclasses
import functools
from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import explicit_axes
from jaxsparse.numerics import rounding
from jaxsparse.trace import hooks
from jaxsparse.trace import observers
from jaxsparse.trace import statistics

METHODS = ('lsq', 'lsq+', 'pact')
_SMALLEST = np.float32(1e-12)


@functools.partial(jax.tree_util.register_dataclass, data_fields=['step_size', 'offset'],
                   meta_fields=['low', 'high', 'method'])
@dataclasses.dataclass(frozen=True)
class ActivationRange:
  """The range of the inputs of one weight.

  Attributes:
    step_size: float32 `()`.
    offset: float32 `()`, of LSQ+; None otherwise.
    low: the lowest code.
    high: the highest code.
    method: one of `METHODS`.
  """

  step_size: jax.Array
  offset: jax.Array | None
  low: int
  high: int
  method: str


def activation_ranges(apply_fn: Callable, params: Any, batches: Iterable, *, bits: int = 4,
                      method: str = 'lsq') -> dict[str, ActivationRange]:
  """Ranges to start training from, of the inputs of each weight that a product consumes.

  The steps span what was met, as LSQ+ advises for few bits.

  Args:
    apply_fn: called as `apply_fn(params, *batch)`.
    params: tree of weights.
    batches: each a tuple of arguments, or a single argument.
    bits: 2 to 8.
    method: 'lsq', 'lsq+' or 'pact'.

  Returns:
    {weight name: `ActivationRange`}; drop those whose inputs should stay as they are.

  Raises:
    ValueError: an unknown method or number of bits; PACT on inputs that are negative; a weight that
      a scan slices, whose layers have no ranges of their own yet.

  Example:
    >>> fn = lambda params, x: x @ params['w']
    >>> ranges = activation_ranges(fn, {'w': jnp.ones((2, 2))}, [jnp.array([[0.0, 3.0]])], bits=2)
    >>> float(ranges['w'].step_size), ranges['w'].high
    (1.0, 3)
  """
  if method not in METHODS:
    raise ValueError(f'method is one of {", ".join(METHODS)}; got {method!r}.')
  if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
    raise ValueError(f'bits must be an integer from 2 to 8, got {bits!r}.')
  statistics.check_weights(params)
  met_by = statistics.collector(apply_fn, observers.range_)(params, batches)
  found = {}
  for name, met in met_by.items():
    if met.low.ndim:
      raise ValueError(f'{name}: a stack of {met.low.shape} weights has no range of its own for '
                       'each; leave it out of the ranges with quantize_activations instead.')
    low, high = jnp.minimum(met.low, 0.0), jnp.maximum(met.high, 0.0)
    negative = bool(low < 0)
    if method == 'pact' and negative:
      raise ValueError(f'{name}: PACT clips at zero, but its inputs go down to {float(low):g}; use '
                       "method='lsq+'.")
    signed = negative and method == 'lsq'
    last = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    width = jnp.maximum(-low, high) if signed else high - low
    step = jnp.where(width > 0, width / last, 1.0)
    found[name] = ActivationRange(step, low if method == 'lsq+' else None,
                                  -last - 1 if signed else 0, last, method)
  return found


def learned_activations(apply_fn: Callable) -> Callable:
  """Rounds the inputs of products with weights to ranges that are trained.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.

  Returns:
    `run(params, ranges, *args, **kwargs)`, `ranges` as `activation_ranges` makes them; inputs of
    weights that are not among them pass as they are. Differentiate with respect to both.

  Raises:
    ValueError: in the call, where a range is of no product with a weight.

  Example:
    >>> fn = lambda params, x: x @ params['w']
    >>> params, x = {'w': jnp.eye(2)}, jnp.array([[1.2, 3.0]])
    >>> ranges = activation_ranges(fn, params, [x], bits=2)
    >>> learned_activations(fn)(params, ranges, x).tolist()
    [[1.0, 3.0]]
  """
  @functools.wraps(apply_fn)
  def call(params, ranges, *args, **kwargs):
    used = set()

    def inner(both, *args, **kwargs):
      return apply_fn(both['params'], *args, **kwargs)

    def hook(contraction, x, w):
      name = contraction.name.partition('/')[2]   # less 'params'; a bare weight has none
      if name not in ranges or contraction.kind == 'gather':
        return contraction.compute(x, w), None
      used.add(name)
      found = explicit_axes.closed_over(ranges[name])
      return contraction.compute(_rounded(x, found), w), None

    out, _ = hooks.watching(inner, hook, None)({'params': params}, *args, **kwargs)
    if set(ranges) - used:
      raise ValueError(f'{", ".join(sorted(set(ranges) - used))}: no product with a weight of that '
                       'name took the range; ranges are by weight name, as activation_ranges '
                       'returns them.')
    return out

  return call


def _rounded(x, found):
  values = x.astype(jnp.float32)
  step = jnp.maximum(jnp.abs(found.step_size), _SMALLEST)
  if found.method == 'pact':
    top = step * found.high
    clipped = jnp.minimum(jnp.maximum(values, 0.0), top)
    fixed = jax.lax.stop_gradient(step)
    return rounding.straight_through(clipped, jnp.round(clipped / fixed) * fixed).astype(x.dtype)
  factor = 1 / float(np.sqrt(max(x.size, 1) * found.high))
  step = rounding.scale_gradient(step, factor)
  offset = None if found.offset is None else rounding.scale_gradient(found.offset, factor)
  inside = (values if offset is None else values - offset) / step
  inside = jnp.clip(inside, found.low, found.high)
  out = rounding.straight_through(inside, jnp.round(inside)) * step
  return (out if offset is None else out + offset).astype(x.dtype)
