"""LoRA: a frozen base and a trained low-rank difference; QLoRA on an NF4 base.

Hu et al., "LoRA" (arXiv:2106.09685): `w = base + (alpha / rank) a b`, `a` Gaussian, `b` zero, so a
fresh LoRA is its base. Dettmers et al., "QLoRA" (arXiv:2305.14314) is `lora(base=nf4())`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import low_rank as low_rank_format
from jaxsparse.numerics import hashing


class Lora(NamedTuple):
  """Latents of LoRA."""

  a: jax.Array   # [*batch, R, rank]
  b: jax.Array   # [*batch, rank, O], zero at first

  __latents__ = ('a', 'b')


def lora(rank: int = 8, *, alpha: float = 16.0, base: transforms.Transform | None = None,
         seed: int = 0) -> transforms.Transform:
  """Trains a low-rank difference to a frozen base.

  `nm(2, 4) | lora(16)` prunes the factors; `lora(16, base=nm(2, 4))` prunes the base.

  Args:
    rank: of the difference; cut to the full rank.
    alpha: the difference is scaled by `alpha / rank`.
    base: a transform that compresses the frozen base, such as `nf4()`; None keeps it as it is.
    seed: of `a`.

  Returns:
    A Transform whose latents are `Lora(a, b)`; its state is the base's.

  Raises:
    ValueError: `rank` is not a positive integer; TypeError: `base` is not a Transform.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.lora(rank=2, base=jsp.nf4())
    >>> params, state = transform.init({'kernel': jnp.ones((8, 4))})
    >>> params['kernel'].a.shape, float(jsp.densify(transform.apply(params, state))['kernel'].max())
    ((8, 2), 1.0)
  """
  spelling = spell.call(lora, locals())
  if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
    raise ValueError(f'rank must be a positive integer, got {rank!r}.')
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
    raise ValueError(f'alpha must be a finite number, got {alpha!r}.')
  hashing.check_seed(seed)
  if base is not None and not isinstance(base, transforms.Transform):
    raise TypeError(f'base must be a Transform such as nf4(), got {base!r}.')
  frozen = parametrization.freeze(
      parametrization.of_transform(base or transforms.identity()))

  def init(w, *, seed, stats, grads, name):
    _, held = frozen.init(w, stats=stats, grads=grads, name=name)
    r = min(rank, *w.shape[-2:])
    batch, rows, outputs = w.shape[:-2], w.shape[-2], w.shape[-1]
    a = jax.random.normal(seed, (*batch, rows, r), w.dtype) / jnp.asarray(rows, w.dtype) ** 0.5
    return Lora(a, jnp.zeros((*batch, r, outputs), w.dtype)), held

  def combine(latents, base_array, layout):
    scale = jnp.asarray(alpha / latents.a.shape[-1], latents.a.dtype)
    return low_rank_format.LowRankArray(
        latents.a * scale, latents.b, layout.astype(latents.a.dtype), base_array)

  def apply(latents, held, *, layout):
    return combine(latents, frozen.apply(names.Frozen(), held), layout)

  def pack(latents, held, *, layout):
    return combine(latents, frozen.pack(names.Frozen(), held), layout)

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack), seed=seed,
      spec=transforms.Spec(spelling, restructures=True))
