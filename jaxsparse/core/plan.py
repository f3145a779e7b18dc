"""What a transform will do to each weight, before it does it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import bitmask
from jaxsparse.formats import format as formats


class Row(NamedTuple):
  """One weight of a plan.

  Attributes:
    name: the weight's name.
    shape: its shape.
    roles: reduction and output axes, or None where it stays dense.
    scheme: the spelled form of what is done to it, or why it stays dense.
    sparsity: the final fraction of zeros; None where nothing prunes it, or several stages do,
      whose masks overlap as the weights decide.
    kept: the entries left at that sparsity; None where `sparsity` is.
    size_bytes: of the dense weight.
    packed_bytes: at the final sparsity; None where a method keeps its masks to itself.
  """

  name: str
  shape: tuple[int, ...]
  roles: Any
  scheme: str
  sparsity: float | None
  kept: int | None
  size_bytes: int
  packed_bytes: int | None


class Plan(tuple):
  """Rows of a plan; prints as a table."""

  def __str__(self):
    head = ('weight', 'shape', 'reduce->out', 'scheme', 'sparsity', 'kept', 'bytes', 'packed')
    rows = [head] + [_cells(row) for row in self]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(head))]
    line = lambda cells: '  '.join(c.ljust(w) for c, w in zip(cells, widths)).rstrip()
    return '\n'.join([line(head), line(['-' * w for w in widths]), *map(line, rows[1:])])

  __repr__ = __str__


def plan(transform: transforms.Transform, params: Any, **extra) -> Plan:
  """One row a leaf: what will be done to it, its target and its bytes. Allocates masks alone.

  Args:
    transform: any transform.
    params: arrays or `jax.ShapeDtypeStruct`s.
    **extra: what `transform.init` needs besides (`axes`, `stats`, `grads`).

  Returns:
    A tuple of `Row`s that prints as a table.

  Raises:
    ValueError: what `transform.init` raises: a pattern matches nothing, an axis does not divide.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> print(jsp.plan(jsp.nm(2, 4), {'kernel': jnp.ones((8, 4)), 'bias': jnp.ones(4)}))
    weight  shape  reduce->out  scheme               sparsity  kept  bytes  packed
    ------  -----  -----------  -------------------  --------  ----  -----  ------
    bias    4      -            dense: rank below 2  -         -     16     16
    kernel  8x4    0->1         nm(2, 4)             0.5000    16    128    68
  """
  abstract = jax.eval_shape(lambda p: p, params)
  latents, state = jax.eval_shape(lambda p: transform.init(p, **extra), abstract)
  done: dict[str, list] = {}
  state = _finish(transform, state, done)
  packed = _packed_bytes(transform, latents, state)
  leaves, _ = names.named_leaves(abstract)
  return Plan(_row(leaf, _of(leaf, done), packed.get(leaf.key)) for leaf in leaves)


def _finish(transform, state, done):
  """The state with the masks that schedules end with.

  Appends (scheme, layout, kept) to `done[key]` for each stage that takes a weight.
  """
  spelling, parts = transform.spec.spelling, transform.spec.parts
  if isinstance(spelling, spell.Call) and spelling.name == 'packed_blocks':
    _finish(parts[0], state, done)
    return state   # these masks stay as large as they are
  if isinstance(spelling, spell.Call) and spelling.name in ('at', 'packed_masks'):
    return _finish(parts[0], state, done)
  if parts and isinstance(state, tuple) and len(parts) == len(state):
    return tuple(_finish(part, s, done) for part, s in zip(parts, state))
  if not isinstance(state, weights.WeightsState):
    return state
  layouts = {key: entry.layout for key, entry in state.entries}
  final = transform.spec.final_masks(layouts) if transform.spec.final_masks else {}
  final = {key: np.asarray(mask) for key, mask in final.items()}
  for key, layout in layouts.items():
    scheme = transforms.spell_or(transform, 'made by hand')
    kept = int(final[key].sum()) if key in final else None
    done.setdefault(key, []).append((scheme, layout, kept))
  new = {key: value._replace(mask=layouts[key].from_matrix(final[key])) if key in final else value
         for key, value in state.weights.items()}
  return dataclasses.replace(state, weights=new)


def _of(leaf, done):
  """The stages of a leaf: its own, and those of latents that stand in its place."""
  inner = [stage for key, stages in done.items() if key.startswith(leaf.key + ':')
           for stage in stages]
  return list(dict.fromkeys([*inner, *done.get(leaf.key, [])]))


def _packed_bytes(transform, latents, state):
  # Masks are concrete, as they decide the shapes of bitmasks and blocks; all else is abstract.
  leaves, treedef = jax.tree.flatten(state)
  is_abstract = [isinstance(x, jax.ShapeDtypeStruct) for x in leaves]

  def pack(latents, inputs):
    inputs = iter(inputs)
    merged = [next(inputs) if a else x for a, x in zip(is_abstract, leaves)]
    return transform.pack(latents, treedef.unflatten(merged))

  try:
    packed = jax.eval_shape(pack, latents, [x for a, x in zip(is_abstract, leaves) if a])
  except bitmask.TracedMaskError:   # a mask inside another method's state, such as LoRA's base
    return {}
  return {leaf.key: formats.nbytes(leaf.value) for leaf in names.named_leaves(packed)[0]}


def _row(leaf, stages, packed_bytes) -> Row:
  x = leaf.value
  size_bytes = formats.nbytes(x)
  shape = tuple(getattr(x, 'shape', ()))
  if not stages:
    return Row(leaf.name, shape, None, f'dense: {_reason(leaf)}', None, None, size_bytes,
               size_bytes)
  counts = [n for _, layout, n in stages if n is not None and layout.shape == shape]
  # Masks of several stages overlap as the weights decide.
  kept = counts[0] if len(counts) == 1 else None
  sparsity = None if kept is None else 1 - kept / math.prod(shape)
  return Row(leaf.name, shape, stages[-1][1].axes, ' | '.join(s for s, *_ in stages),
             sparsity, kept, size_bytes, packed_bytes)


def _reason(leaf) -> str:
  if not hasattr(leaf.value, 'ndim'):
    return 'not an array'
  if leaf.value.ndim < 2:
    return 'rank below 2'
  if not leaf.is_weight:
    return 'no entries' if not leaf.value.size else f'dtype {leaf.value.dtype}'
  return 'not selected'


def _cells(row: Row) -> tuple[str, ...]:
  axes = lambda a: ','.join(map(str, a))
  roles = '-' if row.roles is None else f'{axes(row.roles.reduction)}->{axes(row.roles.output)}'
  shown = lambda x, form: '-' if x is None else format(x, form)
  return (row.name, 'x'.join(map(str, row.shape)) or '()', roles, row.scheme,
          shown(row.sparsity, '.4f'), shown(row.kept, 'd'), str(row.size_bytes),
          '?' if row.packed_bytes is None else str(row.packed_bytes))
