"""DoRA: LoRA with the length of each output's column trained apart from its direction.

Liu et al., "DoRA" (arXiv:2402.09353), equation 5: with V = base + s a b, `w = m V / |V|`, norms by
output column, `m` trained from those of the fresh V. In the gradient the norms count as constants
(their section 4.3).
"""

import dataclasses
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import adapter as adapters
from jaxsparse.lowrank import starts


class Dora(NamedTuple):
  """Latents of DoRA."""

  a: jax.Array           # [*batch, R, rank]
  b: jax.Array           # [*batch, rank, O], zero at first
  magnitude: jax.Array   # [*batch, 1, O]

  __latents__ = ('a', 'b')


def dora(rank: int = 8, *, alpha: float = 16.0, base: transforms.Transform | None = None,
         scaling: Callable[[float, int], float] = starts.over_rank,
         start: starts.Start | None = None, seed: int = 0) -> transforms.Transform:
  """Trains direction and magnitude apart: LoRA's weight, each column scaled to a trained length.

  A column of zeros stays as it is. The norms need the dense sum, which each step computes.

  Args:
    rank: as in `lora`, as are the others.
    alpha: scales the difference.
    base: of the frozen base.
    scaling: of `alpha` and the rank.
    start: of the factors.
    seed: of `a`.

  Returns:
    A Transform whose latents are `Dora(a, b, magnitude)`; its state is the base's.

  Raises:
    ValueError: as `lora`, as TypeError.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.dora(1).init({'kernel': jnp.array([[3.0, 0.0], [4.0, 2.0]])})
    >>> params['kernel'].magnitude.tolist()
    [[5.0, 2.0]]
  """
  spelling = spell.call(dora, locals())
  adapter = adapters.checked(rank, alpha, base, scaling, start, seed)

  def init(w, *, seed, stats, grads, name, layout):
    a, b, held = adapter.begin(w, seed, {'stats': stats, 'grads': grads, 'name': name})
    norms = _column_norms(adapter.sum(a, b, adapter.base(held), layout))
    return Dora(a, b, norms.astype(w.dtype)), held

  def view(latents, state, base, layout):
    made = adapter.sum(latents.a, latents.b, base, layout)
    norms = jax.lax.stop_gradient(_column_norms(made))
    some = norms > 0
    gain = jnp.where(some, latents.magnitude.astype(jnp.float32) / jnp.where(some, norms, 1), 1)
    return dataclasses.replace(made, gain=gain.astype(latents.a.dtype))

  return adapter.lift(init, view, spelling, seed)


def _column_norms(made) -> jax.Array:
  """Euclidean, float32 `[*batch, 1, O]`."""
  return jnp.linalg.norm(made.dense_matrix().astype(jnp.float32), axis=-2, keepdims=True)
