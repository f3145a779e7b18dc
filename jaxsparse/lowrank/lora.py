"""LoRA: a frozen base and a trained low-rank difference; QLoRA on an NF4 base.

Hu et al., "LoRA" (arXiv:2106.09685): `w = base + (alpha / rank) a b`, `a` Gaussian, `b` zero, so a
fresh LoRA is its base. Dettmers et al., "QLoRA" (arXiv:2305.14314), is
`lora(base=nf4(double_quantize=True))`.
"""

from typing import Callable, NamedTuple

import jax

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import adapter as adapters
from jaxsparse.lowrank import starts


class Lora(NamedTuple):
  """Latents of LoRA."""

  a: jax.Array   # [*batch, R, rank]
  b: jax.Array   # [*batch, rank, O], zero at first

  __latents__ = ('a', 'b')


def lora(rank: int = 8, *, alpha: float = 16.0, base: transforms.Transform | None = None,
         scaling: Callable[[float, int], float] = starts.over_rank,
         start: starts.Start | None = None, seed: int = 0) -> transforms.Transform:
  """Trains a low-rank difference to a frozen base.

  `nm(2, 4) | lora(16)` prunes the factors; `lora(16, base=nm(2, 4))` prunes the base. Weights that
  are not selected train as they are; `rules([(pattern, lora()), ('.*', frozen())])` holds them.

  Args:
    rank: of the difference; cut to the full rank.
    alpha: the difference is scaled by `scaling(alpha, rank)`.
    base: a transform that compresses the frozen base, such as `nf4()`; None keeps it as it is.
    scaling: `over_rank`, alpha / rank, or `rslora`, alpha / sqrt(rank).
    start: `gaussian()`, which None is too, `pissa()` or `loftq()`; the latter two need a positive
      `alpha`.
    seed: of `a`.

  Returns:
    A Transform whose latents are `Lora(a, b)`; its state is the base's.

  Raises:
    ValueError: `rank` is not a positive integer, or `alpha` not finite; TypeError: `base` is not a
      Transform, `start` not a Start, or `scaling` not a function.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.lora(rank=2, base=jsp.nf4())
    >>> params, state = transform.init({'kernel': jnp.ones((8, 4))})
    >>> params['kernel'].a.shape, float(jsp.densify(transform.apply(params, state))['kernel'].max())
    ((8, 2), 1.0)
  """
  spelling = spell.call(lora, locals())
  adapter = adapters.checked(rank, alpha, base, scaling, start, seed)

  def init(w, *, seed, stats, grads, name):
    a, b, held = adapter.begin(w, seed, {'stats': stats, 'grads': grads, 'name': name})
    return Lora(a, b), held

  def view(latents, state, base, layout):
    return adapter.sum(*latents, base, layout)

  return adapter.lift(init, view, spelling, seed)
