"""One-shot compression with calibration data, layer by layer.

A method such as SparseGPT makes good, in each layer, the error of that layer's output. Statistics
taken from the dense model do not know what the layers before have become; sequential ones do.
"""

import functools
import itertools
from typing import Any, Callable, Iterable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.trace import jaxprs
from jaxsparse.trace import observers
from jaxsparse.trace import statistics
from jaxsparse.trace import walk


class _Step(NamedTuple):
  """One weight in execution order; of a scanned stack one layer, along the scanned axis."""

  name: str
  axis: int | None = None
  layer: int | None = None


def one_shot(transform: transforms.Transform, apply_fn: Callable, params: Any, batches: Iterable, *,
             sequential: bool = True,
             observer: observers.Observer = observers.gram) -> tuple[Any, Any]:
  """Calibrates and initializes a transform, weight by weight in execution order.

  The statistics of each weight come from the model whose earlier weights are compressed already,
  those of a scanned stack layer by layer. It takes one pass over the batches for each weight (or
  layer), in which only that weight's statistic is computed, by one compiled program; and `init` of
  each weight twice, of a stack once more for each layer.

  Args:
    transform: any transform; `wanda`, `sparsegpt`, `optimal_brain` or a chain of them want
      statistics.
    apply_fn: called as `apply_fn(params, *batch)`.
    params: tree of weights.
    batches: each a tuple of arguments, or a single argument; kept, to be passed over many times.
    sequential: False takes all statistics from the model as it is, in one pass.
    observer: the statistic; `gram` serves every method, `input_norm` is smaller and enough for
      `wanda`.

  Returns:
    `(params, state)`: `transform.init` of `params` with those statistics.

  Raises:
    ValueError: what `calibrate` and `transform.init` raise.

  Example:
    >>> import jaxsparse as jsp
    >>> fn = lambda params, x: jax.nn.relu(x @ params['up']) @ params['down']
    >>> params = {'up': jnp.ones((4, 8)), 'down': jnp.ones((8, 2))}
    >>> latents, state = one_shot(jsp.sparsegpt(0.5), fn, params, [jnp.eye(4)])
    >>> jsp.sparsity(state)
    0.5
  """
  batches = list(batches)
  statistics.check_weights(params)
  collect = statistics.collector(apply_fn, observer)
  stats = collect(params, batches)
  first = batches[0] if type(batches[0]) is tuple else batches[:1]
  init = functools.partial(transform.init, params, axes=walk.axes_of(apply_fn, params, *first))
  if not sequential:
    return init(stats=stats)
  taken = _taken(transform, init, params, stats)
  current = params
  for step in _steps(walk.contractions(apply_fn, params, *first), taken):
    # The first weight's inputs are the data themselves.
    if step.name in stats and current is not params:
      fresh = collect(current, batches, only={step.name})[step.name]
      stats[step.name] = _merged(step, stats[step.name], fresh, axis=0)
    made = formats.densify(transform.apply(*init(stats=stats, only={step.name})))
    current = _replaced(step, current, made)
  return init(stats=stats)


def _taken(transform, init, params, stats) -> set[str] | None:
  """Names of the weights that a transform takes; None where its state does not say."""
  arrays, static = jaxprs.split(params)
  # Abstractly: what is wanted are the entries of the state, not yet the weights.
  run = lambda arrays, stats: transform.init(
      static.merge(arrays), **(init.keywords | {'stats': stats}))[1]
  is_state = lambda x: isinstance(x, weights.WeightsState)
  nodes = jax.tree.leaves(jax.eval_shape(run, arrays, stats), is_leaf=is_state)
  if not all(map(is_state, nodes)):
    return None
  return {names.name_of(key.split(':')[0]) for node in nodes for key, _ in node.entries}


def _steps(contractions, taken) -> list[_Step]:
  """Every weight once, where it is first used; the layers of one scan after one another."""
  steps, seen = [], set()
  scan_of = lambda c: c.origin.scanned[0][1] if c.origin.scanned else None
  for scan, members in itertools.groupby(contractions, key=scan_of):
    new = []
    for c in members:
      if c.name not in seen and (taken is None or c.name in taken):
        seen.add(c.name)
        new.append(c)
    if scan is None:
      steps += [_Step(c.name) for c in new]
    elif new:
      axes = [c.origin.scanned[0][0] for c in new]
      steps += [_Step(c.name, axis, layer) for layer in range(new[0].shape[axes[0]])
                for c, axis in zip(new, axes)]
  return steps


def _merged(step, old, new, axis):
  """`new`, of a stack only the step's layer of it, the rest as it was."""
  if step.layer is None:
    return new
  def one(old, new):
    sizes = [-1 if a == axis else 1 for a in range(old.ndim)]
    here = jnp.arange(old.shape[axis]).reshape(sizes) == step.layer
    return jnp.where(jnp.broadcast_to(here, old.shape), new, old)
  return jax.tree.map(one, old, new)


def _replaced(step, current, made):
  leaves, rebuild = names.named_leaves(current)
  found = {leaf.name: leaf.value for leaf in names.named_leaves(made)[0]}
  dense = lambda x: jnp.asarray(formats.densify(x))
  return rebuild([_merged(step, dense(leaf.value), found[leaf.name], axis=step.axis)
                  if leaf.name == step.name else leaf.value for leaf in leaves])
