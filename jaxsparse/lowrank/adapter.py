"""What LoRA and its kin share: a frozen base, two thin factors beside it, and their scale."""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import low_rank
from jaxsparse.lowrank import starts
from jaxsparse.numerics import hashing


class Adapter(NamedTuple):
  """A checked description of an adapter; `base + scale a b`.

  Attributes:
    rank: of the difference, before it is cut to the full rank of a weight.
    alpha: what `scaling` makes the scale of.
    scaling: `(alpha, rank) -> scale`.
    start: where the factors start.
    frozen: the base, with nothing left to train.
    needs: `Spec.needs` of the base.
  """

  rank: int
  alpha: float
  scaling: Callable[[float, int], float]
  start: starts.Start
  frozen: parametrization.Parametrization
  needs: frozenset[str]

  def scale(self, rank: int) -> float:
    """The factor of a difference of that rank."""
    return self.scaling(self.alpha, rank)

  def begin(self, w: jax.Array, key: jax.Array, offer: dict[str, Any]):
    """Factors `a`, `b` of the weight's dtype, and its base as it is held.

    Args:
      w: `[*batch, R, O]`.
      key: of random factors.
      offer: what the base's `init` is offered besides: statistics, gradients, the name.
    """
    rank = min(self.rank, *w.shape[-2:])
    encode = lambda m: self.frozen.init(m.astype(w.dtype), **offer)[1]
    decode = lambda held: self.base(held).astype(jnp.float32)
    a, b, held = self.start.init(w, rank=rank, scale=self.scale(rank), key=key, encode=encode,
                                 decode=decode)
    return a.astype(w.dtype), b.astype(w.dtype), held

  def base(self, held) -> jax.Array:
    """The base as the model sees it."""
    return self.frozen.apply(names.Frozen(), held)

  def sum(self, a: jax.Array, b: jax.Array, base: Any, layout) -> low_rank.LowRankArray:
    """`base + scale a b`."""
    scale = jnp.asarray(self.scale(a.shape[-1]), a.dtype)
    return low_rank.LowRankArray(a * scale, b, layout.astype(a.dtype), base)

  def lift(self, init: Callable, view: Callable, spelling: spell.Call,
           seed: int) -> transforms.Transform:
    """The Transform of an adapter.

    Args:
      init: `(w, ...) -> (latents, state)`; the state has a field `base`, or is the base, as held.
      view: `(latents, state, base, layout) -> LowRankArray`.
      spelling: its spelled form.
      seed: of the weights' keys.
    """
    held = lambda state: getattr(state, 'base', state)

    def apply(latents, state, *, layout):
      return view(latents, state, self.base(held(state)), layout)

    def pack(latents, state, *, layout):
      return view(latents, state, self.frozen.pack(names.Frozen(), held(state)), layout)

    return parametrization.leafwise(
        parametrization.Parametrization(init, apply, pack=pack), seed=seed,
        spec=transforms.Spec(spelling, restructures=True, needs=self.needs))


def checked(rank, alpha, base, scaling, start, seed) -> Adapter:
  """The Adapter of a factory's arguments.

  Raises:
    ValueError: `rank` is not a positive integer, or `alpha` or the seed no number it can be;
      TypeError: `base` is not a Transform, `start` not a Start, or `scaling` not a function.
  """
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise ValueError(f'rank must be a positive integer, got {rank!r}.')
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
    raise ValueError(f'alpha must be a finite number, got {alpha!r}.')
  hashing.check_seed(seed)
  if base is not None and not isinstance(base, transforms.Transform):
    raise TypeError(f'base must be a Transform such as nf4(), got {base!r}.')
  if not callable(scaling):
    raise TypeError(f'scaling must be over_rank, rslora or a function like them, got {scaling!r}.')
  if start is not None and not isinstance(start, starts.Start):
    raise TypeError(f'start must be gaussian(), pissa() or loftq(), got {start!r}.')
  start = start or starts.gaussian()
  if start.needs_scale and alpha <= 0:
    raise ValueError(f'{spell.spell_value(start)} divides by the scale, so alpha must be '
                     f'positive, got {alpha!r}.')
  base = base or transforms.identity()
  return Adapter(rank, alpha, scaling, start,
                 parametrization.freeze(parametrization.of_transform(base)), base.spec.needs)
