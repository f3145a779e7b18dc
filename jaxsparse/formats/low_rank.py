"""Low-rank weights: `u @ v`, multiplied factor by factor where that is cheaper."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.numerics import axes


@functools.partial(jax.tree_util.register_dataclass, data_fields=['u', 'v', 'base', 'gain'],
                   meta_fields=['layout'])
@dataclasses.dataclass(frozen=True)
class LowRankArray(formats.Format):
  """A product of two thin matrices, added to a base where there is one (LoRA).

  Attributes:
    u: `[*batch, R, rank]`, an array or a format.
    v: `[*batch, rank, O]`, likewise.
    layout: of the dense weight.
    base: None, or the matrix `[*batch, R, O]` added, an array or a format.
    gain: None, or what each column of the sum is multiplied by, `[*batch, 1, O]` (DoRA).
  """

  u: Any
  v: Any
  layout: axes.Layout
  base: Any = None
  gain: jax.Array | None = None

  def dense_matrix(self):
    product = formats.densify(self.u) @ formats.densify(self.v)
    if self.base is not None:
      product = formats.densify(self.base) + product
    if self.gain is not None:
      product = product * self.gain
    return product.astype(self.dtype)

  def _saves(self) -> bool:
    r, o = self.layout.matrix_shape[-2:]
    return self.u.shape[-1] * (r + o) < r * o

  def _factors_pay(self, rows: int) -> bool:
    """Whether `rows` rows are cheaper to multiply by both factors than by a product to be made.

    Backward passes cost twice as much on either side.
    """
    r, o = self.layout.matrix_shape[-2:]
    rank = self.u.shape[-1]
    return rows * rank * (r + o) <= rows * r * o + r * rank * o

  def matmul(self, x):
    dtype = jnp.result_type(x, self.dtype)
    u, v = self.u.astype(dtype), self.v.astype(dtype)
    if self.gain is not None:
      return dataclasses.replace(self, gain=None).matmul(x) * self.gain.astype(dtype)
    if self.base is not None:
      own = formats.is_format(self.base)
      return (self.base.matmul(x) if own else x @ self.base.astype(dtype)) + _thin(x, u, v)
    if self._factors_pay(x.shape[-2]):
      return _thin(x, u, v)
    return x @ self.dense_matrix().astype(dtype)

  def grouped_matmul(self, x, group_sizes):
    """Experts' factors one after the other; None where they do not save, or there is more to add.
    """
    if self.base is not None or self.gain is not None or not self._saves():
      return None
    dtype = jnp.result_type(x, self.dtype)
    for factor in (self.u, self.v):
      x = formats.grouped_dot(x.astype(dtype), factor.astype(dtype), group_sizes)
    return x

  def convolves(self, rhs_spec, feature_group_count=1, batch_group_count=1) -> bool:
    """Whether `convolve` multiplies factor by factor: no groups, no base, matching roles."""
    out_axis, *reduced = rhs_spec
    roles = self.layout.axes
    return (feature_group_count == batch_group_count == 1 and not self.layout.batch
            and self.base is None and self.gain is None and roles.output == (out_axis,)
            and set(roles.reduction) == set(reduced) and self._saves())

  def merge_multiply_adds(self):
    base = self.base.merge_multiply_adds() if formats.is_format(self.base) else 0
    return base + self.size * self.u.shape[-1]

  def convolve(self, x, *, dimension_numbers=None, feature_group_count=1, batch_group_count=1,
               rhs_dilation=None, **params):
    """A convolution into `rank` channels, then a 1 x 1 one; None where that is not the layout."""
    names = jax.lax.conv_dimension_numbers(x.shape, self.shape, dimension_numbers)
    if not self.convolves(names.rhs_spec, feature_group_count, batch_group_count):
      return None
    roles, out_axis = self.layout.axes, names.rhs_spec[0]
    dtype = jnp.result_type(x, self.dtype)
    rank = self.u.shape[-1]
    narrow = [rank if a == out_axis else n for a, n in enumerate(self.shape)]
    u = axes.Layout(tuple(narrow), dtype, roles).from_matrix(formats.densify(self.u).astype(dtype))
    hidden = jax.lax.conv_general_dilated(
        x, u, dimension_numbers=names, rhs_dilation=rhs_dilation, **params)
    point = [1] * self.ndim
    point[out_axis], point[names.rhs_spec[1]] = self.shape[out_axis], rank
    v = formats.densify(self.v).astype(hidden.dtype)
    v = axes.Layout(tuple(point), dtype, roles).from_matrix(v)
    still = {k: p for k, p in params.items() if k in ('precision', 'preferred_element_type')}
    return jax.lax.conv_general_dilated(
        hidden, v, (1,) * (self.ndim - 2), 'VALID',
        dimension_numbers=names._replace(lhs_spec=names.out_spec), **still)

  def take(self, ids):
    """Rows of an embedding table; None when axis 0 is not the reduction axis."""
    bare = self.base is None and self.gain is None
    if self.layout.axes != axes.DimensionNumbers((0,), (1,)) or not bare:
      return None
    rows = formats.densify(self.u)[jnp.clip(ids, 0, self.shape[0] - 1)]
    return (rows @ formats.densify(self.v)).astype(self.dtype)

  def multiply_adds(self, rows):
    r, o = self.layout.matrix_shape[-2:]
    matrices = self.size // max(r * o, 1)
    factors = rows * matrices * self.u.shape[-1] * (r + o)
    if self.base is not None:
      own = formats.is_format(self.base)
      base = self.base.multiply_adds(rows) if own else super().multiply_adds(rows)
      return formats.Cost(base.executed + factors, base.ideal + factors)
    dense = rows * self.size
    if self._factors_pay(rows):
      return formats.Cost(factors, min(factors, dense))
    # Factors too thick for so many rows are multiplied out first.
    return formats.Cost(dense + self.size * self.u.shape[-1], dense)


def _thin(x, u, v):
  """`(x @ u) @ v`, each factor an array or a format."""
  times = lambda x, w: w.matmul(x) if formats.is_format(w) else x @ w
  return times(times(x, u), v)
