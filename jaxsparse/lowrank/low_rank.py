"""A weight as the product of two thin matrices, both trained.

The factors start from the truncated SVD, singular values shared evenly (Khodak et al.,
"Initialization and Regularization of Factorized Neural Layers", arXiv:2105.01029, "spectral
initialization"). A convolution is factored as Cuttlefish does (Wang et al., arXiv:2305.02538): as
its matrix `[h w in, out]`, so a convolution into `rank` channels and a 1 x 1 one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.formats import low_rank as low_rank_format
from jaxsparse.lowrank import ranks
from jaxsparse.numerics import linalg


class LowRank(NamedTuple):
  """Latents of a factored weight."""

  u: jax.Array   # [*batch, R, rank]
  v: jax.Array   # [*batch, rank, O]

  __latents__ = ('u', 'v')
  __product__ = ('u', 'v')   # what `frobenius_decay` reads: the weight is the product of these


class NormalizedLowRank(NamedTuple):
  """Latents of a factored weight with a normalization between the factors."""

  u: jax.Array       # [*batch, R, rank]; of each column only the direction counts
  scale: jax.Array   # [*batch, 1, rank]
  v: jax.Array       # [*batch, rank, O]

  __latents__ = ('u', 'v')
  __product__ = None   # there is no Frobenius decay of these


def low_rank(rank, *, normalize: bool = False, multiple: int = 1) -> transforms.Transform:
  """Trains `u` and `v` with `w = u v`.

  It does what it is told: a rank at which the factors are no smaller than the weight is taken too,
  and multiplied out where that is cheaper (`choose_ranks` leaves such weights full). Directions
  without energy, of a matrix that is rank-deficient or zero, start with `u = 0` and learn from
  there. Where both sides of a matrix are larger than 2048 and its rank is at most a quarter, the
  SVD is randomized.

  `fake_quantize('int8') | low_rank(64)` trains and packs factors in int8, which `dispatch`
  multiplies by as they are; `low_rank(64) | fake_quantize('int8')` rounds their product, and packs
  a whole weight.

  Args:
    rank: one rank for all (an int, cut to a weight's full rank), a fraction of each full rank (a
      float in (0, 1]), or a dict {weight name: rank} that selects the weights too; an empty one
      leaves every weight as it is. Matrices of a stack (layers, experts) share their rank.
    normalize: trains `w = (u / |u|) scale v`, each column of `u` divided by its norm (these are
      packed as floats, whatever stands to the left). It stands for
      the batch normalization that Cuttlefish may put between the factors: for white inputs the two
      agree (Salimans and Kingma, arXiv:1602.07868, section 2), and this one stays a weight.
    multiple: ranks are rounded up to a multiple of it, as far as the full rank.

  Returns:
    A Transform whose latents are `LowRank(u, v)` or `NormalizedLowRank(u, scale, v)`; `apply`
    returns `LowRankArray`, which `dispatch` multiplies factor by factor and `densify` multiplies
    out.

  Raises:
    ValueError: a rank is out of range, or a name in the dict matches no weight; in `init`, a weight
      has NaN or infinite values.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.low_rank(2).init({'kernel': jnp.ones((8, 6))})
    >>> params['kernel'].u.shape, params['kernel'].v.shape
    ((8, 2), (2, 6))
  """
  spelling = spell.call(low_rank, locals())
  by_name = rank if isinstance(rank, dict) else None
  for value in (by_name.values() if by_name is not None else [rank]):
    ranks.check_rank(value)
  ranks.check_multiple(multiple)

  def init(w, *, name):
    full = min(w.shape[-2:])
    wanted = by_name[name] if by_name is not None else rank
    if by_name is not None and isinstance(wanted, int) and wanted > full:
      raise ValueError(f'rank {wanted} was asked for, but the full rank of its matrix '
                       f'{tuple(w.shape[-2:])} is {full}.')
    r = ranks.rounded(ranks.resolved(wanted, full), multiple, full)
    u, v = linalg.truncated_svd(w.astype(jnp.float32), r)
    if not normalize:
      return LowRank(u.astype(w.dtype), v.astype(w.dtype)), ()
    norm = _norms(u)
    # A column that is zero needs a direction, and its scale says that it is zero.
    u = jnp.where(norm > 0, u, 1.0 / u.shape[-2] ** 0.5)
    return NormalizedLowRank(*(x.astype(w.dtype) for x in (u, norm, v))), ()

  def apply(latents, state, *, layout):
    u, v = latents.u, latents.v
    if normalize:
      tiny = jnp.finfo(jnp.float32).tiny ** 0.5
      u = u * (latents.scale / jnp.maximum(_norms(u), tiny).astype(u.dtype))
    return low_rank_format.LowRankArray(u, v, layout.astype(u.dtype))

  def pack(latents, state, *, layout, stored):
    # Normalized columns of codes are no codes.
    return apply(latents, state, layout=layout) if normalize else stored_product(
        latents, stored, layout)

  p = parametrization.Parametrization(init, apply, pack=pack)
  spec = transforms.Spec(spelling, restructures=True)
  lifted = parametrization.leafwise(p, spec=spec)
  return lifted if by_name is None else _only(by_name, lifted)


def stored_product(latents: LowRank, stored: Any, layout: Any) -> low_rank_format.LowRankArray:
  """The product as it is packed: factors that a stage to the left packed stay in their format."""
  u, v = latents if stored is None or formats.is_format(stored) else stored
  return low_rank_format.LowRankArray(u, v, layout.astype(u.dtype))


def _norms(u):
  """Norms of the columns, float32 `[..., 1, rank]`; the gradient of a zero column's is zero."""
  squares = jnp.square(u.astype(jnp.float32)).sum(-2, keepdims=True)
  safe = jnp.where(squares > 0, squares, 1.0)
  return jnp.where(squares > 0, jnp.sqrt(safe), 0.0)


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
