"""One maker for each format: `(w, axes) -> format` whose dense array is near, not equal to, `w`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import formats
from jaxsparse.core import names
from jaxsparse.formats import bitmask
from jaxsparse.formats import block
from jaxsparse.formats import codebook
from jaxsparse.formats import low_rank
from jaxsparse.formats import nm
from jaxsparse.formats import packed
from jaxsparse.formats import quantized
from jaxsparse.numerics import axes as roles_of_axes
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales


def layout_of(w, axes=None):
  """The layout of an array, by default with its last two axes for a matrix."""
  return roles_of_axes.Layout(w.shape, w.dtype, axes or roles_of_axes.default_axes(w.ndim))


def _matrix(w, axes):
  layout = layout_of(w, axes)
  return np.asarray(w).transpose(layout.order).reshape(layout.matrix_shape), layout


def int8(w, axes=None):
  """Eight-bit codes, one scale a column."""
  m, layout = _matrix(w, axes)
  grid = grids.grid('int8')
  scale = scales.absmax(m, grid.limit, granularity='channel')
  return quantized.QArray.encode(m, scale, layout, grid)


def int4_group(w, axes=None):
  """Four-bit codes, one scale for four rows."""
  m, layout = _matrix(w, axes)
  grid = grids.grid('int4')
  scale = scales.absmax(m, grid.limit, granularity='group', group=4)
  return quantized.QArray.encode(m, scale, layout, grid, 4)


def two_four(w, axes=None):
  """2:4 along the reduction, 1:1 where that does not divide."""
  m, layout = _matrix(w, axes)
  n, of = (2, 4) if m.shape[-2] % 4 == 0 else (1, 1)
  mask = jnp.asarray(np.arange(m.shape[-2])[:, None] % of < n)
  return nm.NMArray.from_mask(m, jnp.broadcast_to(mask, m.shape), layout, n, of)


def blocks(w, axes=None):
  """Every other block of 2 x 2."""
  m, layout = _matrix(w, axes)
  i, j = np.arange(m.shape[-2])[:, None] // 2, np.arange(m.shape[-1])[None] // 2
  return block.BlockArray.from_mask(m, np.broadcast_to((i + j) % 2 == 0, m.shape), layout, (2, 2))


def bits(w, axes=None):
  """A bitmask of the positive entries."""
  m, layout = _matrix(w, axes)
  return bitmask.BitmaskArray.from_mask(m, m > 0, layout)


def factors(w, axes=None):
  """Rank two."""
  m, layout = _matrix(w, axes)
  u, s, v = np.linalg.svd(np.asarray(m, np.float32), full_matrices=False)
  dtype = w.dtype
  return low_rank.LowRankArray(jnp.asarray(u[..., :2] * s[..., None, :2], dtype),
                               jnp.asarray(v[..., :2, :], dtype), layout)


def clusters(w, axes=None):
  """Four centroids a matrix."""
  m, layout = _matrix(w, axes)
  quantiles = jnp.asarray(np.quantile(np.asarray(m, np.float32), (.1, .4, .6, .9), axis=(-2, -1)))
  centroids = jnp.moveaxis(quantiles, 0, -1).astype(jnp.float32)
  index = jnp.abs(m[..., None] - centroids[..., None, None, :]).argmin(-1)
  return codebook.CodebookArray(centroids, packed.PackedInts.pack(index, 2, signed=False), layout)


def sparse_int8(w, axes=None):
  """2:4 with eight-bit values."""
  m, layout = _matrix(w, axes)
  grid = grids.grid('int8')
  scale = scales.absmax(m, grid.limit, granularity='channel')
  return quantized.QArray.encode(two_four(w, axes), scale, layout, grid)


MAKERS = {make.__name__: make for make in (
    int8, int4_group, two_four, blocks, bits, factors, clusters, sparse_int8)}


def pack(params, axes, *makers):
  """The tree with every weight named in `axes` stored, by the makers in turn."""
  leaves, rebuild = names.named_leaves(params)
  turn = itertools.cycle(makers)
  chosen = {leaf.name: (next(turn), np.asarray(leaf.value)) for leaf in leaves
            if leaf.name in axes}
  # One compilation for all of them is much faster than operation by operation.
  made = jax.jit(lambda: {k: make(w, axes[k]) for k, (make, w) in chosen.items()})()
  return rebuild([made.get(leaf.name, leaf.value) for leaf in leaves])


def arrays_of(tree):
  """Arrays and formats of a tree, and the rest of it: Equinox keeps functions among its leaves."""
  leaves, treedef = jax.tree.flatten(tree, is_leaf=formats.is_format)
  keep = [formats.is_format(x) or hasattr(x, 'dtype') for x in leaves]
  return ([x for x, k in zip(leaves, keep) if k],
          (treedef, [None if k else x for x, k in zip(leaves, keep)], keep))


def with_arrays(arrays, rest):
  """The inverse of `arrays_of`."""
  treedef, others, keep = rest
  arrays = iter(arrays)
  return treedef.unflatten([next(arrays) if k else x for x, k in zip(others, keep)])


def compare(dispatched, fn, packed, *args, rtol=1e-5):
  """Checks outputs, and gradients to every float array, of `fn` on formats and on dense arrays.

  Errors are relative to the largest entry: of the output, and of all gradients.
  """
  leaves, treedef = jax.tree.flatten(packed)
  floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

  def joined(values):
    values = iter(values)
    return treedef.unflatten([next(values) if f else x for x, f in zip(leaves, floating)])

  def both(values):
    def loss(run):
      def of(values):
        out = run(joined(values))
        total = sum((o.astype(jnp.float32) ** 2).sum() for o in jax.tree.leaves(out))
        return total, out
      return of
    grad = lambda run: jax.grad(loss(run), has_aux=True)(values)
    return (grad(lambda p: dispatched(p, *args)),
            grad(lambda p: fn(formats.densify(p), *args)))

  quickly = jax.jit(both, compiler_options={'xla_backend_optimization_level': 0})
  ours, theirs = quickly([x for x, f in zip(leaves, floating) if f])
  for got, wanted in ((ours[1], theirs[1]), (ours[0], theirs[0])):
    got, wanted = (np.concatenate([np.ravel(x).astype(np.float32) for x in jax.tree.leaves(t)])
                   for t in (got, wanted))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * np.abs(wanted).max())
