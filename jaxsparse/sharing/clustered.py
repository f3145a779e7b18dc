"""Weight clustering: each entry is one of k trained centroids.

Han et al., "Deep Compression" (arXiv:1510.00149), section 3: k-means with linear initialization;
afterwards the centroids are trained, the gradient of one being the sum over its members.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import codebook
from jaxsparse.formats import packed
from jaxsparse.numerics import cluster


class Clustered(NamedTuple):
  """Latents of a clustered weight."""

  centroids: jax.Array   # [*batch, k]

  __latents__ = ()


class ClusteredState(NamedTuple):
  """What a clustered weight remembers."""

  index: jax.Array    # uint8, the weight's shape
  pinned: jax.Array   # bool [*batch, k]: the centroid that stands for pruned entries stays zero


def clustered(k: int = 16) -> transforms.Transform:
  """Shares `k` trained values among all entries of a matrix.

  After a pruning stage (`magnitude(0.9) | clustered(16)`) one centroid is the exact zero of the
  pruned entries and stays zero.

  Args:
    k: centroids of a matrix, 2 to 256; stored in ceil(log2 k) bits an entry, 8 for 7.

  Returns:
    A Transform whose latents are `Clustered(centroids)`.

  Raises:
    ValueError: `k` is not an integer from 2 to 256.

  Example:
    >>> import jaxsparse as jsp
    >>> params, _ = jsp.clustered(2).init({'kernel': jnp.array([[1.0, 3.0], [3.0, 1.0]])})
    >>> params['kernel'].centroids.tolist()
    [1.0, 3.0]
  """
  spelling = spell.call(clustered, locals())
  if isinstance(k, bool) or not isinstance(k, int) or not 2 <= k <= 256:
    raise ValueError(f'k must be an integer from 2 to 256, got {k!r}.')

  def init(w):
    centroids, index, pinned = cluster.codebook(w, k)
    return Clustered(centroids), ClusteredState(index, pinned)

  def values(latents, state):
    return jnp.where(state.pinned, 0, latents.centroids)

  def apply(latents, state):
    return codebook.lookup(values(latents, state), state.index)

  def pack(latents, state, *, layout):
    centroids = values(latents, state)
    index = packed.PackedInts.pack(state.index, (k - 1).bit_length(), signed=False)
    return codebook.CodebookArray(centroids, index, layout.astype(centroids.dtype))

  return parametrization.leafwise(
      parametrization.Parametrization(init, apply, pack=pack),
      spec=transforms.Spec(spelling, restructures=True))
