"""What methods that replace a weight by two factors after training share."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import ranks
from jaxsparse.lowrank.low_rank import LowRank  # the room's `low_rank` is the factory
from jaxsparse.lowrank.low_rank import stored_product
from jaxsparse.numerics import linalg


def weighted(w: jax.Array, rank, left: Callable, back: Callable) -> LowRank:
  """The factors of the best approximation in a weighted norm: `|A (W - u v)|`.

  By Eckart and Young's theorem for `A W`: its truncated SVD, taken back by the inverse of A.

  Args:
    w: `[*batch, R, O]`.
    rank: an int, cut to the full rank, or a fraction of it.
    left: `m -> A m`, float32.
    back: `m -> A^-1 m`.
  """
  r = ranks.resolved(rank, min(w.shape[-2:]))
  u, v = linalg.truncated_svd(left(w.astype(jnp.float32)), r)
  limit = float(jnp.finfo(w.dtype).max)
  narrow = lambda x: jnp.clip(x, -limit, limit).astype(w.dtype)
  return LowRank(narrow(back(u)), narrow(v))


def lift(init: Callable, spelling: Any) -> transforms.Transform:
  """The Transform of `init(w, *, stats, layout) -> (LowRank, state)`; factors train on from there.

  A format that a stage to the left packed a factor to is stored as it is.
  """
  def apply(latents, state, *, layout):
    return stored_product(latents, None, layout)

  def pack(latents, state, *, layout, stored):
    return stored_product(latents, stored, layout)

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack),
      spec=transforms.Spec(spelling, restructures=True, needs=frozenset(['stats'])))
