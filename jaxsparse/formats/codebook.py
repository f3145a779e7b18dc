"""Shared weights: each entry is the index of a centroid."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.formats import packed
from jaxsparse.numerics import axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=['centroids', 'index'],
                   meta_fields=['layout'])
@dataclasses.dataclass(frozen=True)
class CodebookArray(formats.Format):
  """`centroids[index]`, one codebook a matrix.

  Attributes:
    centroids: `[*batch, k]`, k at most 256.
    index: unsigned codes of `[*batch, R, O]`.
    layout: of the dense weight.
  """

  centroids: jax.Array
  index: packed.PackedInts
  layout: axes.Layout

  def dense_matrix(self):
    return lookup(self.centroids, self.index.unpack()).astype(self.dtype)


def lookup(centroids: jax.Array, index: jax.Array) -> jax.Array:
  """`centroids` `[*batch, k]` at `index` `[*batch, R, O]`."""
  if index.ndim > 2:
    return jax.vmap(lookup)(centroids, index)
  return centroids[index.astype(jnp.int32)]
