"""Hooks: observing or altering the operations that consume weights, without touching the model.

A hook is a function `(contraction, x, w) -> (y, aux)`: `y` stands for the operation's result
(`contraction.compute(x, w)` is the ordinary one), `aux` is a tree of arrays or None.
"""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from absl import logging

from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import interpreter
from jaxsparse.trace import jaxprs
from jaxsparse.trace import tracked

Hook = Callable[[contractions.Contraction, jax.Array, Any], tuple[jax.Array, Any]]


def hooked(fn: Callable, hook: Hook, merge: Callable | None = None) -> Callable:
  """Runs `fn` with `hook` in place of every operation that consumes a weight.

  Weights are followed by name through casts, transposes and other layout operations, `jit`,
  `remat`, custom derivatives, `scan`, `while` and `cond`. What else is done to a weight (a product
  with a mask, say) makes it an ordinary array.

  Args:
    fn: called as `fn(params, *args, **kwargs)`. Leaves of `args` that are not arrays (flags,
      strings, None, callables) are static.
    hook: `(contraction, x, w) -> (y, aux)`.
    merge: associative `(aux, aux) -> aux` for a weight used several times; sums by default.

  Returns:
    `fn'(params, *args, **kwargs) = (out, {name: aux})`. `params` may hold formats. Aux of a weight
    that a scan slices is stacked, `[layer, ...]`; aux of a weight that steps share is merged. Where
    no operation ran (the other branch of a `cond`) it is zero.

  Raises:
    ValueError: in the call, when a hook changes the shape of a result, or when aux of one weight
      comes both stacked and whole.

  Example:
    >>> def row_count(contraction, x, w):
    ...   return contraction.compute(x, w), jnp.float32(x.shape[0])
    >>> fn = hooked(lambda params, x: x @ params['w'], row_count)
    >>> y, aux = fn({'w': jnp.ones((4, 3))}, jnp.ones((5, 4)))
    >>> y.shape, float(aux['w'])
    ((5, 3), 5.0)
  """
  watched = watching(fn, hook, merge or add)

  @functools.wraps(fn)
  def call(params, *args, **kwargs):
    out, found = watched(params, *args, **kwargs)
    return out, {name: seen.value for name, seen in found.items()}

  return call


def watching(fn: Callable, hook: Hook, merge: Callable | None) -> Callable:
  """`hooked`, giving `{name: Seen}`; `merge=None` promises that the hook returns no aux."""
  report = reporter()

  @functools.wraps(fn)
  def call(params, *args, **kwargs):
    program = jaxprs.trace(fn, params, args, kwargs)
    out, found = interpreter.run(program, tracked.Run(hook, merge, report))
    return out, _by_name(found, merge)

  return call


def reporter() -> Callable[[str, str], None]:
  """A function `(name, what)` that logs the first remark on each weight."""
  said = set()

  def report(name, what):
    if name not in said:
      said.add(name)
      logging.warning('%s: %s.', name, what)

  return report


def add(a: Any, b: Any) -> Any:
  """The sum of two trees."""
  return jax.tree.map(jnp.add, a, b)


def _by_name(found, merge):
  merged = {}
  for key, seen in found.items():
    name = key.name
    if name in merged:
      shapes = [[x.shape for x in jax.tree.leaves(s.value)] for s in (merged[name], seen)]
      if shapes[0] != shapes[1]:
        raise ValueError(f'{name!r} is used both sliced by a scan and whole: aux of shapes '
                         f'{shapes[0]} and {shapes[1]} cannot be merged.')
      seen = tracked.combine(merged[name], seen, merge)
    merged[name] = seen
  return merged
