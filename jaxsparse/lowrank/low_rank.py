"""A weight as the product of two thin matrices, both trained.

The factors start from the truncated SVD, singular values shared evenly (Khodak et al.,
"Initialization and Regularization of Factorized Neural Layers", arXiv:2105.01029, "spectral
initialization").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import low_rank as low_rank_format
from jaxsparse.numerics import linalg


class LowRank(NamedTuple):
  """Latents of a factored weight."""

  u: jax.Array   # [*batch, R, rank]
  v: jax.Array   # [*batch, rank, O]

  __latents__ = ('u', 'v')


def low_rank(rank) -> transforms.Transform:
  """Trains `u` and `v` with `w = u v`.

  Args:
    rank: one rank for all (an int, cut to a weight's full rank), a fraction of each full rank (a
      float in (0, 1]), or a dict {weight name: rank} that selects the weights too.

  Returns:
    A Transform whose latents are `LowRank(u, v)`; `apply` returns `LowRankArray`, which
    `dispatch` multiplies factor by factor and `densify` multiplies out.

  Raises:
    ValueError: a rank is out of range, or a name in the dict matches no weight.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.low_rank(2).init({'kernel': jnp.ones((8, 6))})
    >>> params['kernel'].u.shape, params['kernel'].v.shape
    ((8, 2), (2, 6))
  """
  spelling = spell.call(low_rank, locals())
  by_name = rank if isinstance(rank, dict) else None
  if by_name == {}:
    raise ValueError('low_rank({}) selects no weight; name some, or give one rank for all.')
  for value in (by_name.values() if by_name is not None else [rank]):
    _check_rank(value)

  def init(w, *, name):
    full = min(w.shape[-2:])
    wanted = by_name[name] if by_name is not None else rank
    if by_name is not None and isinstance(wanted, int) and wanted > full:
      raise ValueError(f'rank {wanted} was asked for, but the full rank of its matrix '
                       f'{tuple(w.shape[-2:])} is {full}.')
    r = max(round(wanted * full), 1) if isinstance(wanted, float) else min(wanted, full)
    u, v = linalg.truncated_svd(w.astype(jnp.float32), r)
    return LowRank(u.astype(w.dtype), v.astype(w.dtype)), ()

  def apply(latents, state, *, layout):
    return low_rank_format.LowRankArray(*latents, layout.astype(latents.u.dtype))

  p = parametrization.Parametrization(init, apply)
  spec = transforms.Spec(spelling, restructures=True)
  if by_name is None:
    return parametrization.leafwise(p, spec=spec)
  return _only(by_name, parametrization.leafwise(p, spec=spec))


def _check_rank(rank):
  integer = isinstance(rank, int) and not isinstance(rank, bool) and rank >= 1
  if not integer and not (isinstance(rank, float) and 0 < rank <= 1):
    raise ValueError(f'a rank must be a positive integer or a fraction in (0, 1], got {rank!r}.')


def _only(by_name, transform):
  """`transform` on the weights named in `by_name`."""
  def init(params, **extra):
    leaves, rebuild = names.named_leaves(params)
    there = {leaf.name for leaf in leaves if leaf.is_weight}
    missing = sorted(set(by_name) - there)
    if missing:
      raise names.no_match(missing[0], sorted(there))
    chosen = {leaf.key for leaf in leaves if leaf.is_weight and leaf.name in by_name}
    return weights.init_selected(transform, params, chosen, extra)
  return transform._replace(init=init)
