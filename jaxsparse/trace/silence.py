"""Zeroes what is left of a removed channel: its bias and its normalization.

A mask on kernels leaves a channel without weights at the value of its bias, and after a
normalization at its shift. Whoever removes a channel means it to be zero.
"""

from typing import Any, Callable

import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import dead
from jaxsparse.trace import jaxprs

_PRODUCTS = frozenset({'dot_general', 'conv_general_dilated', 'gather'})


def silence(apply_fn: Callable, params: Any, *args, **kwargs) -> Any:
  """Zeroes biases, scales and shifts of channels that no input reaches any more.

  A channel (an entry of coupled axes) is silenced if some product makes zeros of it and nothing
  else that depends on the inputs enters it; axes of the model's results are left alone. The
  function changes, to the one in which the channel
  is absent; compare `shrink` with this one. Weights that a product consumes are not touched.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    params: effective weights, with zeros where they were pruned; formats are densified.
    *args: example inputs.
    **kwargs: likewise.

  Returns:
    `params` with more zeros.

  Example:
    >>> import jax.numpy as jnp
    >>> fn = lambda p, x: jnp.tanh(x @ p['up'] + p['bias'][None]) @ p['down']
    >>> up = jnp.ones((3, 4)).at[:, 1].set(0)
    >>> params = {'up': up, 'bias': jnp.ones(4), 'down': jnp.ones((4, 2))}
    >>> silence(fn, params, jnp.ones((5, 3)))['bias']
    Array([1., 0., 1., 1.], dtype=float32)
  """
  params = formats.densify(params)
  program = jaxprs.trace(apply_fn, params, args, kwargs)
  coupling = couplings.Coupling(program.jaxpr)
  dead.freeze_ends(coupling, program)
  weights = {n: v for n, name, v in zip(coupling.ins, program.names, program.values)
             if name is not None}
  known = dead.known_of(coupling, program, weights)
  products, consumed, varying = set(), set(), {}
  for step in couplings.every(coupling.steps):
    if step.eqn.primitive.name in _PRODUCTS:
      products |= set(step.outs)
      consumed |= {_source(coupling, v) for v in step.ins if isinstance(v, int)}
  for number, facts in known.items():
    for axis, fixed in enumerate(facts.fixed):
      node = coupling.find(number, axis)
      varying[node] = varying.get(node, False) | ~fixed
  silent = {}
  for number in products:
    for axis, zero in enumerate(known[number].zero):
      node = coupling.find(number, axis)
      if not coupling.frozen(*node):
        silent[node] = silent.get(node, False) | (zero & ~varying[node])
  return _zeroed(params, coupling, program, silent, consumed)


def _source(coupling, number):
  """The weight behind a value that layout operations made of it."""
  sources = {step.outs[0]: step.ins[0] for step in coupling.steps
             if step.eqn.primitive.name in dead.LAYOUT and isinstance(step.ins[0], int)}
  while number in sources:
    number = sources[number]
  return number


def _zeroed(params, coupling, program, silent, consumed):
  masks = {}
  for number, name in zip(coupling.ins, program.names):
    if name is None or number in consumed:
      continue
    for axis in range(len(coupling.shapes[number])):
      mask = silent.get(coupling.find(number, axis))
      if mask is not None and np.any(mask):
        masks.setdefault(name, []).append((axis, mask))
  leaves, rebuild = names.named_leaves(params)
  values = []
  for leaf in leaves:
    value = leaf.value
    for axis, mask in masks.get(leaf.name, []):
      keep = jnp.asarray(~mask).reshape([-1 if a == axis else 1 for a in range(value.ndim)])
      value = jnp.where(keep, value, jnp.zeros((), value.dtype))
    values.append(value)
  return rebuild(values)
