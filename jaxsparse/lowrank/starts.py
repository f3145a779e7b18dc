"""Where an adapter's factors start, and how the difference is scaled: values that `lora` takes.

Letters: W `[*batch, R, O]` the weight, Q its compressed base, s the scale, a `[*batch, R, rank]`,
b `[*batch, rank, O]`; the model sees Q + s a b.
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.numerics import linalg


class Start(NamedTuple):
  """A rule for the factors and the base of a fresh adapter.

  Attributes:
    spelling: its spelled form.
    init: `(w, *, rank, scale, key, encode, decode) -> (a, b, held)`: `held = encode(m)` is the base
      of a float32 matrix as it is stored, `decode(held)` the float32 matrix that the model sees.
    needs_scale: whether `init` divides by the scale.
  """

  spelling: Any
  init: Callable
  needs_scale: bool = False


def gaussian() -> Start:
  """LoRA's own: `a` Gaussian of variance 1 / R, `b` zero, so that the base alone is seen at first.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.lora(2, start=gaussian()).init({'kernel': jnp.ones((8, 4))})
    >>> float(params['kernel'].b.max())
    0.0
  """
  def init(w, *, rank, scale, key, encode, decode):
    *batch, rows, outputs = w.shape
    a = jax.random.normal(key, (*batch, rows, rank), w.dtype) / jnp.asarray(rows, w.dtype) ** 0.5
    return a, jnp.zeros((*batch, rank, outputs), w.dtype), encode(w)
  return Start(spell.call(gaussian, {}), init)


def pissa() -> Start:
  """The largest singular triples are trained, the rest is the base.

  Meng et al., "PiSSA" (arXiv:2404.02948), equations 2 to 4: s a b is the best approximation of W of
  that rank and Q the base of W - s a b, so that a fresh model is W up to what a quantized base
  loses of the rest.

  Example:
    >>> import jaxsparse as jsp
    >>> w = jnp.array([[3.0, 0.0], [0.0, 1.0]])
    >>> params, state = jsp.lora(1, start=pissa()).init({'kernel': w})
    >>> jsp.unmerge(jsp.lora(1, start=pissa()), params, state)['kernel'].round(4).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
  """
  def init(w, *, rank, scale, key, encode, decode):
    wide = w.astype(jnp.float32)
    u, v = linalg.truncated_svd(wide, rank)
    return *_scaled(u, v, scale), encode(wide - u @ v)
  return Start(spell.call(pissa, {}), init, needs_scale=True)


def loftq(steps: int = 5) -> Start:
  """Alternates between the base of what the factors leave and the factors of what the base loses.

  Li et al., "LoftQ" (arXiv:2310.08659), algorithm 1: from A = 0, Q <- base(W - A), then
  A = s a b <- best approximation of W - Q of that rank. After one step the model is never farther
  from W than the base alone is. With a base that prunes it is low rank plus a sparse residual:
  `lora(8, base=magnitude(0.9), start=loftq())`.

  Args:
    steps: alternations; 5 in the paper.

  Raises:
    ValueError: `steps` is not a positive integer.

  Example:
    >>> import jaxsparse as jsp
    >>> w = {'kernel': jnp.sin(jnp.arange(48.0)).reshape(8, 6)}
    >>> view = lambda t: jsp.densify(t.apply(*t.init(w)))['kernel']
    >>> error = lambda start: float(jnp.linalg.norm(
    ...     view(jsp.lora(2, base=jsp.nf4(), start=start)) - w['kernel']))
    >>> error(loftq()) < error(gaussian())
    True
  """
  if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
    raise ValueError(f'steps must be a positive integer, got {steps!r}.')
  spelling = spell.call(loftq, {'steps': steps})

  def init(w, *, rank, scale, key, encode, decode):
    wide = w.astype(jnp.float32)
    product = jnp.zeros_like(wide)
    for _ in range(steps):
      held = encode(wide - product)
      u, v = linalg.truncated_svd(wide - decode(held), rank)
      product = u @ v
    return *_scaled(u, v, scale), held
  return Start(spelling, init, needs_scale=True)


def _scaled(u, v, scale):
  root = math.sqrt(scale)
  return u / root, v / root


def over_rank(alpha: float, rank: int) -> float:
  """LoRA's scale of the difference, `alpha / rank`.

  Example:
    >>> over_rank(16.0, 8)
    2.0
  """
  return alpha / rank


def rslora(alpha: float, rank: int) -> float:
  """`alpha / sqrt(rank)`, with which what is learned does not shrink as ranks grow.

  Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA" (arXiv:2312.03732).

  Example:
    >>> rslora(16.0, 64)
    2.0
  """
  return alpha / math.sqrt(rank)
