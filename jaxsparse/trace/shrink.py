"""Removes dead channels, neurons, heads and features, so that a stock model becomes a smaller one.

An entry of an axis is dead if every sum over it adds zeros: what is multiplied is zero, or what it
is multiplied with. All axes that are one axis in the program (`coupling`) lose the same entries.
What is removed therefore never changes the function; what would, stays, and the plan says why.

    >>> import jax.numpy as jnp
    >>> fn = lambda p, x: jnp.tanh(x @ p['up']) @ p['down']
    >>> params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
    >>> small = shrink(fn, params, jnp.ones((5, 3)))
    >>> small.params['up'].shape, small.params['down'].shape
    ((3, 3), (3, 2))
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import dead
from jaxsparse.trace import jaxprs
from jaxsparse.trace import narrowed


class Resized(NamedTuple):
  """One weight in a plan.

  Attributes:
    name: of the weight.
    before: its shape.
    after: its new shape.
    kept: for each axis the positions that stay, or None for all.
    notes: for each axis with zero slices that stay, why they do.
  """

  name: str
  before: tuple[int, ...]
  after: tuple[int, ...]
  kept: tuple
  notes: tuple[str, ...] = ()


class Shrunk(NamedTuple):
  """A smaller model; `str` of it is a table of the weights.

  Attributes:
    params: the smaller weights in the container they came in.
    apply: `(params, *args, **kwargs)`: the model on smaller weights. It traces the stock model each
      time it is called, so jit it.
    plan: one `Resized` a weight.
  """

  params: Any
  apply: Callable
  plan: tuple[Resized, ...]

  def carry(self, tree: Any) -> Any:
    """Cuts whatever mirrors the weights, such as an optimizer's state, the way they were cut.

    Args:
      tree: a leaf whose path ends in a weight's name is cut if it has the weight's old shape;
        other leaves stay.

    Returns:
      The same tree, smaller.

    Raises:
      ValueError: a leaf is named like a weight that was cut and has some other shape.

    Example:
      >>> import jax.numpy as jnp
      >>> fn = lambda p, x: jnp.tanh(x @ p['up']) @ p['down']
      >>> params = {'up': jnp.ones((3, 4)).at[:, 1].set(0), 'down': jnp.ones((4, 2))}
      >>> small = shrink(fn, params, jnp.ones((5, 3)))
      >>> moments = {'mu': params, 'count': jnp.zeros(())}
      >>> small.carry(moments)['mu']['down'].shape
      (3, 2)
    """
    by_name = {row.name: row for row in self.plan}

    def move(path, leaf):
      parts = names.weight_name(path).split('/')
      suffixes = ('/'.join(parts[i:]) for i in range(len(parts)))
      row = next((by_name[s] for s in suffixes if s in by_name), None)
      if row is None or row.before == row.after or not np.shape(leaf):
        return leaf
      if np.shape(leaf) != row.before:
        raise ValueError(f'{"/".join(parts)} has shape {np.shape(leaf)}, but {row.name}, after '
                         f'which it is named, had {row.before}; make this leaf anew.')
      return narrowed.cut(leaf, row.kept)

    return jax.tree_util.tree_map_with_path(move, tree)

  def __str__(self) -> str:
    lines = ['| weight | before | after | stays because |', '|---|---|---|---|']
    for row in self.plan:
      lines.append(f'| {row.name} | {_times(row.before)} | {_times(row.after)} | '
                   f'{"; ".join(row.notes)} |')
    return '\n'.join(lines)


def _times(shape):
  return '×'.join(map(str, shape)) or 'scalar'


def shrink(apply_fn: Callable, params: Any, *args, **kwargs) -> Shrunk:
  """Removes what is dead from a model, and returns a smaller one with the same outputs.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`; any stock model.
    params: effective weights, with zeros where they were pruned; formats are densified. Anything
      with a channel axis of its own, such as running statistics, belongs in here too or in the
      closure: axes of inputs are never cut.
    *args: example inputs; those to come may have another batch size.
    **kwargs: likewise.

  Returns:
    A `Shrunk`. Of an axis that is dead altogether one entry stays.

  Raises:
    ValueError: the outputs on the example inputs differ from those of the full model.

  Example:
    >>> import jax.numpy as jnp
    >>> fn = lambda p, x: jnp.tanh(x @ p['up']) @ p['down']
    >>> params = {'up': jnp.ones((3, 4)), 'down': jnp.ones((4, 2)).at[0].set(0)}
    >>> print(shrink(fn, params, jnp.ones((5, 3))))
    | weight | before | after | stays because |
    |---|---|---|---|
    | down | 4×2 | 3×2 |  |
    | up | 3×4 | 3×3 |  |
  """
  params = formats.densify(params)
  program = jaxprs.trace(apply_fn, params, args, kwargs)
  coupling = couplings.Coupling(program.jaxpr)
  found = dead.find(coupling, program)
  plan = tuple(_resized(number, name, coupling, found)
               for number, name in zip(coupling.ins, program.names) if name is not None)
  leaves, rebuild = names.named_leaves(params)
  by_name = {row.name: row for row in plan}
  small = rebuild([narrowed.cut(leaf.value, by_name[leaf.name].kept) if leaf.name in by_name
                   else leaf.value for leaf in leaves])
  shrunk = Shrunk(small, _apply(apply_fn, by_name), plan)
  _check(shrunk, apply_fn(params, *args, **kwargs), args, kwargs)
  return shrunk


def _resized(number, name, coupling, found):
  before = coupling.shapes[number]
  kept, notes = [], []
  for axis in range(len(before)):
    drop = found.drops.get(coupling.find(number, axis))
    kept.append(np.flatnonzero(~drop) if drop is not None and drop.any() else None)
    zero = found.zero[number][axis]
    left = zero & ~drop if drop is not None else zero
    if left.any() and not zero.all() and len(before) > 1:
      why = found.why(coupling.find(number, axis), left)
      notes.append(f'{int(left.sum())} of axis {axis}: {why}')
  after = tuple(n if k is None else len(k) for n, k in zip(before, kept))
  return Resized(name, before, after, tuple(kept), tuple(notes))


def _apply(apply_fn, by_name):
  def apply(params, *args, **kwargs):
    leaves, rebuild = names.named_leaves(params)
    old, kept = [], []
    for leaf in leaves:
      row = by_name.get(leaf.name)
      if row is None:
        old.append(leaf.value)
        continue
      if leaf.value.shape != row.after:
        raise ValueError(f'{leaf.name} has shape {leaf.value.shape}; shrunk, it has {row.after}.')
      old.append(jax.ShapeDtypeStruct(row.before, leaf.value.dtype))
      kept.append(row.kept)
    program = jaxprs.trace(apply_fn, rebuild(old), args, kwargs)
    inputs = program.values[len(kept):]
    kept += [(None,) * np.ndim(x) for x in inputs]
    run = narrowed.narrowed(program.jaxpr, program.consts, kept)
    values = [leaf.value for leaf in leaves if leaf.name in by_name]
    return program.out_tree.unflatten(run(*values, *inputs))

  return apply


def _check(shrunk, expected, args, kwargs):
  found = jax.jit(lambda params: shrunk.apply(params, *args, **kwargs))(shrunk.params)
  floating = [x.dtype for x in jax.tree.leaves((shrunk.params, expected))
              if hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jnp.inexact)]
  eps = max((float(jnp.finfo(d).eps) for d in floating), default=0.0)
  for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(found)):
    want, got = (np.asarray(x).astype(np.float64) for x in (want, got))
    finite = np.isfinite(want)
    limit = max(1e-5, 16 * eps) * max(1.0, np.abs(want[finite]).max(initial=0.0))
    off = np.abs(want - got)[finite].max(initial=0.0)
    if not off <= limit or (np.isfinite(got) != finite).any():
      cut = [row.name for row in shrunk.plan if row.before != row.after]
      raise ValueError(f'Without the dead parts of {cut} the outputs differ by {off:.2g} (limit '
                       f'{limit:.2g}); exclude these weights and report the model.')
