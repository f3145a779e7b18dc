"""Several low-rank differences to one base, and which of them each example of a batch uses."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.numerics import axes


@functools.partial(jax.tree_util.register_dataclass,
                   data_fields=['u', 'v', 'index', 'base', 'gain'], meta_fields=['layout'])
@dataclasses.dataclass(frozen=True)
class AdaptersArray(formats.Format):
  """For example e, `(base + u[index[e]] @ v[index[e]]) * gain[index[e]]`.

  Its activations' leading axis is the examples, as Flax models have it: rows are divided evenly
  among them, in order. There is no one dense weight, so only products, through `dispatch`, work.

  Attributes:
    u: `[*batch, n, R, rank]`, of n adapters.
    v: `[*batch, n, rank, O]`.
    index: int32 `[*batch, examples]`; outside 0..n-1 the base is used alone.
    layout: of the dense weight.
    base: the matrix `[*batch, R, O]`, an array or a format.
    gain: None, or `[*batch, n, 1, O]` (DoRA).
  """

  u: jax.Array
  v: jax.Array
  index: jax.Array
  layout: axes.Layout
  base: Any
  gain: jax.Array | None = None

  def dense_matrix(self):
    raise ValueError(f'Each of {self.index.shape[-1]} examples has a weight of shape {self.shape} '
                     'of its own: run the model through dispatch, in which products alone may use '
                     'it, or merge one adapter.')

  def matmul(self, x):
    examples, rows = self.index.shape[-1], x.shape[-2]
    if examples == 0 or rows % examples:
      raise ValueError(f'{rows} rows of activations do not divide among {examples} examples; '
                       'expected an index of one adapter for each example of the batch.')
    dtype = jnp.result_type(x, self.dtype)
    own = formats.is_format(self.base)
    shared = self.base.matmul(x) if own else x @ self.base.astype(dtype)
    apart = lambda y: y.reshape(*y.shape[:-2], examples, rows // examples, y.shape[-1])
    pick = lambda stack: _pick(stack, self.index).astype(dtype)
    known = ((self.index >= 0) & (self.index < self.u.shape[-3]))[..., None, None]
    out = apart(x) @ pick(self.u) @ pick(self.v)
    out = apart(shared) + jnp.where(known, out, 0)
    if self.gain is not None:
      out = out * jnp.where(known, pick(self.gain), 1)
    return out.reshape(*out.shape[:-3], rows, out.shape[-1]).astype(dtype)

  def multiply_adds(self, rows):
    r, o = self.layout.matrix_shape[-2:]
    factors = rows * (self.size // max(r * o, 1)) * self.u.shape[-1] * (r + o)
    own = formats.is_format(self.base)
    base = self.base.multiply_adds(rows) if own else super().multiply_adds(rows)
    return formats.Cost(base.executed + factors, base.ideal + factors)


def _pick(stack, index):
  """`stack` `[*batch, n, ...]` at `index` `[*batch, examples]`."""
  if index.ndim > 1:
    return jax.vmap(_pick)(stack, index)
  return jnp.take(stack, index, axis=0, mode='clip')
