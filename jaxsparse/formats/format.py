"""The Format interface, and the operations that accept an array or a format alike.

A format stores one weight as its matrix `[*batch, R, O]` (`layout` gives the weight's own shape
and roles). Concrete formats are final frozen dataclasses registered with jax: arrays are data,
shapes and bits are static, so a packed tree passes through `jit`, `scan` and checkpoints.
"""

import abc
import contextlib
import dataclasses
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.kernels import grouped_matmul
from jaxsparse.numerics import axes
from jaxsparse.numerics import explicit_axes


class Cost(NamedTuple):
  """Multiply-adds of one product: what the implementation executes, and what it must (ideal)."""

  executed: int
  ideal: int


class Format(abc.ABC):
  """A stored weight. Interface only: subclasses are final frozen dataclasses with a `layout`."""

  layout: axes.Layout

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the dense weight."""
    return self.layout.shape

  @property
  def ndim(self) -> int:
    """Rank of the dense weight."""
    return len(self.layout.shape)

  @property
  def size(self) -> int:
    """Number of entries of the dense weight."""
    return math.prod(self.layout.shape)

  @property
  def dtype(self):
    """Dtype of the dense weight."""
    return self.layout.dtype

  @property
  def nbytes(self) -> int:
    """Bytes of the arrays held: what a checkpoint of this weight costs; int4 codes take a half."""
    return sum(map(_bytes, jax.tree.leaves(self)))

  @abc.abstractmethod
  def dense_matrix(self) -> jax.Array:
    """The weight as `[*batch, R, O]`, of `dtype`."""

  @property
  def spec(self) -> jax.sharding.PartitionSpec:
    """Where the dense weight lies on a mesh of explicit axes, as the stored arrays do."""
    stored = [(x.shape, explicit_axes.spec_of(x)) for x in jax.tree.leaves(self)]
    return self.layout.spec_of_whole(stored, stored=True)

  @explicit_axes.left_to_xla(lambda out, fmt: [fmt.spec])
  def todense(self) -> jax.Array:
    """The weight in its own shape and dtype."""
    return self.layout.from_matrix(self.dense_matrix())

  def matmul(self, x: jax.Array) -> jax.Array:
    """`x @ matrix`: `[*batch, M, R]` to `[*batch, M, O]`. The reference densifies first."""
    return x @ self.dense_matrix()

  def matmuls(self) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """The ways to compute `matmul`, by name, for whoever measures which is fastest.

    `'stored'` is `matmul` itself; `'dense'` writes the weight out first.
    """
    return {'stored': self.matmul, 'dense': lambda x: x @ self.dense_matrix()}

  def multiply_adds(self, rows: int) -> Cost:
    """Multiply-adds of `matmul` with `rows` rows in each batch element."""
    dense = rows * self.size
    return Cost(dense, dense)

  def merge_multiply_adds(self) -> int:
    """Multiply-adds of `todense` itself; decoding multiplies entry by entry and counts as none."""
    return 0

  def astype(self, dtype) -> 'Format':
    """The same storage, read as another floating dtype."""
    return dataclasses.replace(self, layout=self.layout.astype(dtype))

  def stored_as(self, sparse: Any) -> 'Format':
    """The same weight with what it stores in the form of `sparse`, where that is smaller."""
    del sparse
    return self

  def drop_leading(self) -> 'Format':
    """Adjusts the static layout after every array was sliced along a leading batch axis.

    `jax.tree.map(lambda a: a[0], fmt).drop_leading()` is layer 0 of a stack.
    """
    inner = {f.name: getattr(self, f.name).drop_leading() for f in dataclasses.fields(self)
             if is_format(getattr(self, f.name))}
    return dataclasses.replace(self, layout=self.layout.drop_leading(), **inner)


class Wrapper(Format):
  """A format that multiplies by another one in its own way. Interface only."""

  stored: Format

  @property
  def layout(self) -> axes.Layout:
    """That of the stored weight."""
    return self.stored.layout

  def dense_matrix(self):
    return self.stored.dense_matrix()

  def multiply_adds(self, rows):
    return self.stored.multiply_adds(rows)

  def astype(self, dtype):
    return dataclasses.replace(self, stored=self.stored.astype(dtype))

  def drop_leading(self):
    return dataclasses.replace(self, stored=self.stored.drop_leading())


class SparseFormat(Format):
  """A format that keeps some entries of the matrix; the others are zero. Interface only."""

  @abc.abstractmethod
  def map_values(self, f: Callable[[jax.Array], Any]) -> 'SparseFormat':
    """The format of `f(matrix)` at the kept positions; `f` keeps the shape and maps 0 to 0.

    The result has the dtype of `f`'s output, so `f` may return integer codes.
    """

  @abc.abstractmethod
  def with_bits(self, bits: int) -> 'SparseFormat':
    """Stores integer values of `bits` bits (signed), packed."""


def is_format(x: Any) -> bool:
  """Whether `x` is a stored weight."""
  return isinstance(x, Format)


def unstacked(w: Format) -> Format:
  """`w` with the layout of what it holds, where `vmap` or `scan` sliced the arrays of a stack.

  Raises:
    ValueError: the arrays are not those of the layout, nor of a slice along its leading axes.
  """
  if not w.layout.batch:
    return w
  found, made = w, _matrix_shape(w)
  while made != found.layout.matrix_shape and 0 in found.layout.batch:
    found = found.drop_leading()
    made = _matrix_shape(found)
  if made == found.layout.matrix_shape:
    return found
  if made is None:
    return w   # it is no one matrix: the adapters of several examples
  raise ValueError(f'the arrays of this {type(w).__name__} make a matrix {made}, which is neither '
                   f'that of a weight of shape {w.shape} nor of its slices along leading axes.')


def _matrix_shape(w):
  """Shape of the matrix that the arrays make; None where they make none with this layout."""
  # Shapes alone: on a mesh of explicit axes their types might refuse what decodes them.
  bare = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), w)
  try:
    return jax.eval_shape(lambda f: f.dense_matrix(), bare).shape
  except (TypeError, ValueError):
    return None


def densify(tree: Any) -> Any:
  """The tree with every format replaced by its array.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.ones((8, 4))}
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init(params))
    >>> float(jsp.densify(packed)['kernel'].mean())
    0.5
  """
  return jax.tree.map(lambda x: x.todense() if is_format(x) else x, tree, is_leaf=is_format)


def nbytes(tree: Any) -> int:
  """Bytes of all arrays of a tree, formats included.

  Example:
    >>> nbytes({'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)})
    144
  """
  return sum(_bytes(x) for x in jax.tree.leaves(tree) if hasattr(x, 'dtype'))


def _bytes(x) -> int:
  dtype = jnp.dtype(x.dtype)
  narrow = jnp.issubdtype(dtype, jnp.integer)   # numpy says a byte of int4 and int2 too
  bits = jnp.iinfo(dtype).bits if narrow else 8 * dtype.itemsize
  return -(-math.prod(x.shape) * bits // 8)


def can_dot(w: Any, dimension_numbers) -> bool:
  """Whether `dot` multiplies by the stored form: the contraction reduces `w` over its own roles."""
  (_, contracted), (_, batch) = dimension_numbers
  return (is_format(w) and set(contracted) == set(w.layout.axes.reduction)
          and set(batch) == set(w.layout.batch))


def dot(x: jax.Array, w: Any, dimension_numbers, *, precision=None, preferred_element_type=None):
  """`jax.lax.dot_general(x, w, dimension_numbers)` for a `w` that may be a format.

  Args:
    x: the left operand, an array.
    w: the right operand, an array or a format, addressed by its dense axes.
    dimension_numbers: `((x contracting, w contracting), (x batch, w batch))`.
    precision: as in `dot_general`; a stored form knows default, high and highest.
    preferred_element_type: dtype of the result.

  Returns:
    What `dot_general` returns for the dense weight: batch, free axes of `x`, free axes of `w`.
  """
  if not can_dot(w, dimension_numbers):
    return jax.lax.dot_general(x, densify(w), dimension_numbers, precision=precision,
                               preferred_element_type=preferred_element_type)
  (x_contracted, w_contracted), (x_batch, w_batch) = dimension_numbers
  roles, layout = w.layout.axes, w.layout
  partner = dict(zip((*w_contracted, *w_batch), (*x_contracted, *x_batch)))
  free = [a for a in range(x.ndim) if a not in (*x_contracted, *x_batch)]
  order = [*(partner[a] for a in layout.batch), *free, *(partner[a] for a in roles.reduction)]
  batch = [layout.shape[a] for a in layout.batch]
  free_shape = [x.shape[a] for a in free]
  if preferred_element_type and jnp.issubdtype(preferred_element_type, jnp.floating):
    # A wider accumulator is a wider operand: stored forms multiply in the operands' dtype.
    x = x.astype(jnp.promote_types(x.dtype, preferred_element_type))
  rows = x.transpose(order).reshape(*batch, math.prod(free_shape), w.layout.matrix_shape[-2])
  with _matmul_precision(precision):
    out = w.matmul(rows)
  produced = [layout.shape[a] for a in roles.output]
  out = out.reshape(*batch, *free_shape, *produced)
  # dot_general lists batch axes in the order given and free axes of w in ascending order.
  by_batch = [layout.batch.index(a) for a in w_batch]
  offset = len(batch) + len(free)
  ascending = [offset + roles.output.index(a) for a in sorted(roles.output)]
  permutation = [*by_batch, *range(len(batch), offset), *ascending]
  if permutation != list(range(out.ndim)):
    out = out.transpose(permutation)
  dtype = preferred_element_type or jnp.result_type(x.dtype, w.dtype)
  return out.astype(dtype)


def _matmul_precision(precision):
  first = precision[0] if isinstance(precision, tuple) else precision
  if not isinstance(first, jax.lax.Precision):
    return contextlib.nullcontext()
  return jax.default_matmul_precision(first.name.lower())


def grouped_dot(x: jax.Array, w: Any, group_sizes: jax.Array) -> jax.Array:
  """`jax.lax.ragged_dot(x, w, group_sizes)` for a `w` that may be a format with one batch axis.

  A format may define `grouped_matmul`, as low rank does (two grouped products); others are
  densified, and their matrices multiplied with the rows of their own group only.
  """
  if not is_format(w):
    return grouped_matmul.grouped_matmul(x, w, group_sizes)
  own = getattr(w, 'grouped_matmul', None)
  out = None if own is None else own(x, group_sizes)
  return grouped_matmul.grouped_matmul(x, w.dense_matrix(), group_sizes) if out is None else out


def convolve(x: jax.Array, w: Any, **params):
  """`jax.lax.conv_general_dilated(x, w, **params)` for a `w` that may be a format.

  A format may define `convolve`, as low rank does (two convolutions); others are densified.
  """
  own = getattr(w, 'convolve', None) if is_format(w) else None
  out = None if own is None else own(x, **params)
  return jax.lax.conv_general_dilated(x, densify(w), **params) if out is None else out


def take(w: Any, ids: jax.Array) -> jax.Array:
  """Rows of a table that may be a format: `jnp.take(dense, ids, axis=0, mode='clip')`.

  Negative ids count from the end, as everywhere in numpy; ids beyond either end are clipped.

  A format may define `take`, to read only the rows asked for; others are densified.
  """
  ids = jnp.asarray(ids, jnp.int32)   # a byte cannot hold the bound it is clipped to
  ids = jnp.where(ids < 0, ids + w.shape[0], ids)
  own = getattr(w, 'take', None) if is_format(w) else None
  out = None if own is None else own(ids)
  return jnp.take(densify(w), ids, axis=0, mode='clip') if out is None else out
