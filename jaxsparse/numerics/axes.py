"""Axes of a weight by role, and the matrix view every method works in.

A weight is held in its model's own shape; methods see `[*batch, R, O]`: R is the product of the
reduction axes, O of the output axes, and everything else (layers, experts) is batch.
The idea of naming axes by role is optax's (`optax.contrib.muon`).
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec


class DimensionNumbers(NamedTuple):
  """Which axes of a weight are contracted and which are produced; the others are batch axes."""

  reduction: tuple[int, ...]
  output: tuple[int, ...]


def default_axes(ndim: int) -> DimensionNumbers:
  """The last two axes, reduction first: a Flax or Haiku kernel `[..., in, out]`.

  Example:
    >>> default_axes(3)
    DimensionNumbers(reduction=(1,), output=(2,))
  """
  return DimensionNumbers((ndim - 2,), (ndim - 1,))


@dataclasses.dataclass(frozen=True)
class Layout:
  """The static description of one weight: `shape`, `dtype` and the roles of its axes.

  Example:
    >>> conv = Layout((3, 3, 8, 16), 'float32', DimensionNumbers((0, 1, 2), (3,)))
    >>> conv.matrix_shape
    (72, 16)
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  axes: DimensionNumbers

  def __post_init__(self):
    object.__setattr__(self, 'shape', tuple(int(n) for n in self.shape))
    object.__setattr__(self, 'dtype', jnp.dtype(self.dtype))
    axes = DimensionNumbers(tuple(map(int, self.axes[0])), tuple(map(int, self.axes[1])))
    object.__setattr__(self, 'axes', axes)
    used = [*axes.reduction, *axes.output]
    if len(set(used)) != len(used) or any(not 0 <= a < len(self.shape) for a in used):
      raise ValueError(f'{axes} does not name distinct axes of a weight of shape {self.shape}.')

  @property
  def batch(self) -> tuple[int, ...]:
    """Axes that are neither reduced nor produced, in order."""
    taken = {*self.axes.reduction, *self.axes.output}
    return tuple(a for a in range(len(self.shape)) if a not in taken)

  @property
  def matrix_shape(self) -> tuple[int, ...]:
    """`(*batch, R, O)`."""
    size = lambda axes: math.prod(self.shape[a] for a in axes)
    batch = tuple(self.shape[a] for a in self.batch)
    return (*batch, size(self.axes.reduction), size(self.axes.output))

  @property
  def order(self) -> tuple[int, ...]:
    """The permutation that brings the axes into batch, reduction, output order."""
    return (*self.batch, *self.axes.reduction, *self.axes.output)

  def to_matrix(self, w):
    """`w` of `shape` as `[*batch, R, O]`; no copy for a weight that is a matrix already."""
    if self.order != tuple(range(len(self.shape))):
      w = w.transpose(self.order)   # the array's own method: numpy arrays stay numpy's
    return w if w.shape == self.matrix_shape else w.reshape(self.matrix_shape)

  def from_matrix(self, m):
    """The inverse of `to_matrix`."""
    permuted = tuple(self.shape[a] for a in self.order)
    m = m if m.shape == permuted else m.reshape(permuted)
    if self.order == tuple(range(len(self.shape))):
      return m
    return m.transpose(tuple(int(a) for a in np.argsort(self.order)))

  def spec_of_part(self, spec: PartitionSpec, shape: tuple[int, ...], *,
                   stored: bool = False) -> PartitionSpec:
    """Where an array that belongs to the weight lies: a mask, a scale, a factor.

    Of the weight's shape it lies like the weight. Otherwise its axes are matched with those of the
    matrix, one of the same size has that axis' spec, size 1 or a new axis has none.

    Args:
      spec: of the weight.
      shape: of the array.
      stored: whether the array is a format's, where the weight is a matrix.

    Example:
      >>> layout = Layout((8, 2, 4), 'float32', DimensionNumbers((0,), (1, 2)))
      >>> layout.spec_of_part(PartitionSpec(None, 'x', None), (1, 8))
      P(None, 'x')
    """
    full = (*spec, *[None] * (len(self.shape) - len(spec)))
    if shape == self.shape and not stored:
      return PartitionSpec(*full)
    sizes, batch = self.matrix_shape, len(self.batch)
    merged = lambda axes: full[axes[0]] if axes and all(full[a] is None for a in axes[1:]) else None
    own = (*(full[a] for a in self.batch), merged(self.axes.reduction), merged(self.axes.output))
    out = [None] * len(shape)
    for i, n in enumerate(shape):
      # Batch axes lead; rows and columns are matched from the end, one number an output like it.
      j = i if i < batch else i - len(shape) + len(sizes)
      inside = i < batch or (j >= batch and len(sizes) - len(shape) in (0, 1))
      out[i] = own[j] if inside and n == sizes[j] and n > 1 else None
    return PartitionSpec(*out)

  def spec_of_whole(self, parts: list[tuple[tuple[int, ...], PartitionSpec]], *,
                    stored: bool = False) -> PartitionSpec:
    """Where the weight lies as the arrays that it is made of tell: the inverse of `spec_of_part`.

    Args:
      parts: shape and spec of each array; those that know an axis at its full size come first.
      stored: as in `spec_of_part`.

    Example:
      >>> layout = Layout((8, 4), 'float32', DimensionNumbers((0,), (1,)))
      >>> layout.spec_of_whole([((1, 4), PartitionSpec(None, 'x'))])
      P(None, 'x')
    """
    sizes = self.matrix_shape
    known, out = [None] * len(sizes), [None] * len(self.shape)
    for whole in (True, False):
      for shape, spec in parts:
        if not stored and shape == self.shape:
          out = [s if o is None and s not in out else o for o, s in zip(out, spec)]
        elif len(shape) == len(sizes):
          for i, s in enumerate(spec):
            if known[i] is None and (shape[i] == sizes[i] or not whole) and s not in known:
              known[i] = s
    for role, s in zip((*((a,) for a in self.batch), *self.axes), known):
      if role and s not in out and all(out[a] is None for a in role):
        out[role[0]] = s
    return PartitionSpec(*out)

  def drop_leading(self) -> 'Layout':
    """The layout of one slice along axis 0, as a `scan` body sees it.

    Raises:
      ValueError: axis 0 is not a batch axis.
    """
    if 0 not in self.batch:
      raise ValueError(f'Axis 0 of a weight of shape {self.shape} is not a batch axis.')
    shift = lambda axes: tuple(a - 1 for a in axes)
    axes = DimensionNumbers(shift(self.axes.reduction), shift(self.axes.output))
    return Layout(self.shape[1:], self.dtype, axes)

  def astype(self, dtype) -> 'Layout':
    """The same layout with another `dtype`."""
    return dataclasses.replace(self, dtype=jnp.dtype(dtype))
