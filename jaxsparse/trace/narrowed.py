"""Runs a traced program on values from which entries of coupled axes were removed.

What a program computes for the entries that stay does not change, so every equation is applied as
it stands, with the sizes in its parameters rewritten. A custom derivative keeps its own rule, which
is traced at the old sizes and narrowed in the same way.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import even_channels
from jaxsparse.trace import jaxprs
from jaxsparse.trace import relations

_ZERO = jax.dtypes.float0


class _Narrow:
  """Which entries every value of a program keeps."""

  def __init__(self, jaxpr, kept):
    self.coupling = couplings.Coupling(jaxpr)
    self.drops = {}
    for number, axes in zip(self.coupling.ins, kept):
      for axis, keep in enumerate(axes):
        if keep is not None:
          self._drop(number, axis, keep)
    couplings.settle(self.coupling, self.drops)
    for node, drop in self.drops.items():
      if drop.any() and (why := self.coupling.frozen(*node)):
        raise ValueError(f'Shrunk at the example inputs, an axis of {drop.size} entries cannot be '
                         f'at these: {why}. Shrink with inputs shaped like those to come.')

  def _drop(self, number, axis, keep):
    node = self.coupling.find(number, axis)
    drop = np.ones(self.coupling.size(node), bool)
    drop[keep] = False
    if node in self.drops and (self.drops[node] != drop).any():
      raise ValueError('Two axes that these inputs couple were shrunk differently; shrink with '
                       'inputs shaped like those to come.')
    self.drops[node] = drop

  def kept(self, atom) -> tuple:
    """For each axis of a value the entries it keeps, or None for all."""
    if not isinstance(atom, int):
      return ()
    masks = [self.drops.get(self.coupling.find(atom, a))
             for a in range(len(self.coupling.shapes[atom]))]
    return tuple(np.flatnonzero(~m) if m is not None and m.any() else None for m in masks)

  def shape(self, atom) -> tuple[int, ...]:
    """The new shape of a value."""
    if not isinstance(atom, int):
      return np.shape(atom.val)
    return tuple(size if keep is None else len(keep)
                 for size, keep in zip(self.coupling.shapes[atom], self.kept(atom)))

  def is_cut(self, atom) -> bool:
    """Whether a value is smaller than it was."""
    return any(keep is not None for keep in self.kept(atom))

  def steps(self, steps, env):
    """Runs steps in place over `{number: value}`."""
    read = lambda atom: env[atom] if isinstance(atom, int) else atom.val
    for step in steps:
      operands = [read(atom) for atom in step.ins]
      with jaxprs.context(step.eqn):
        if not any(self.is_cut(atom) for atom in (*step.ins, *step.outs)):
          found = jaxprs.bind(step.eqn.primitive, step.eqn.params, operands)
        elif step.copies:
          found = self._custom(step)(*operands)
        else:
          params = step.eqn.params
          if step.relation:
            shapes = [self.shape(atom) for atom in step.ins]
            params = relations.resized(step.eqn, shapes, self.shape(step.outs[0]))
          conv = step.eqn.primitive.name == 'conv_general_dilated'
          bind = even_channels.bind if conv else jaxprs.bind
          found = bind(step.eqn.primitive, params, operands)
      env.update(zip(step.outs, found))

  def _custom(self, step):
    """The function with the derivative it was given, at the new sizes."""
    eqn, kept = step.eqn, [self.kept(atom) for atom in step.ins]
    full = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    outs = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
    original = lambda *values: jaxprs.bind(eqn.primitive, eqn.params, values)

    def primal(*values):
      env = dict(zip((a for a in step.ins), values))
      env = {a: v for a, v in env.items() if isinstance(a, int)}
      for number, const in self.coupling.inner_consts:
        env[number] = cut(const, self.kept(number))
      self.steps(step.inside, env)
      return [env[a] if isinstance(a, int) else a.val for a, _ in step.copies]

    if eqn.primitive.name == 'custom_jvp_call':
      return _with_jvp(primal, original, full, kept)
    return _with_vjp(primal, original, full, kept, outs, [self.kept(a) for a in step.outs])


def _with_jvp(primal, original, full, kept):
  moving = [i for i, x in enumerate(full) if jnp.issubdtype(x.dtype, jnp.inexact)]

  def derivative(values, tangents):
    every = [np.zeros(x.shape, _ZERO) for x in values]
    for i, tangent in zip(moving, tangents):
      every[i] = tangent
    return jax.jvp(original, values, every)

  def rule(values, tangents):
    tangents = [tangents[i] for i in moving]
    inputs = (full, [full[i] for i in moving])
    closed, shape = jax.make_jaxpr(derivative, return_shape=True)(*inputs)
    run = narrowed(closed.jaxpr, closed.consts, [*kept, *(kept[i] for i in moving)])
    return jax.tree.structure(shape).unflatten(run(*values, *tangents))

  fn = jax.custom_jvp(primal)
  fn.defjvp(rule)
  return fn


def _with_vjp(primal, original, full, kept, outs, kept_outs):
  def pull(values, cotangents):
    return jax.vjp(original, *values)[1](cotangents)

  def backward(values, cotangents):
    closed = jax.make_jaxpr(pull)(full, outs)
    run = narrowed(closed.jaxpr, closed.consts, [*kept, *kept_outs])
    return tuple(run(*values, *cotangents))

  fn = jax.custom_vjp(primal)
  fn.defvjp(lambda *values: (primal(*values), values), backward)
  return fn


def cut(value: Any, kept: tuple) -> Any:
  """The entries of an array that stay: for each axis their positions, or None for all."""
  take = np.take if isinstance(value, np.ndarray) else jnp.take
  for axis, keep in enumerate(kept):
    if keep is not None:
      value = take(value, keep, axis=axis)
  return value


def narrowed(jaxpr: Any, consts: list, kept: list[tuple]) -> Callable:
  """A flat function that runs a jaxpr on smaller inputs.

  Args:
    jaxpr: traced at the old sizes.
    consts: values of its constants, at the old sizes.
    kept: for each input, for each of its axes, the positions kept or None for all.

  Returns:
    A function of the smaller inputs to the list of results, smaller where they are coupled to
    what was removed.

  Raises:
    ValueError: the program couples axes that were cut differently, or does with one what is not
      understood.
  """
  narrow = _Narrow(jaxpr, kept)

  def run(*values):
    env = dict(zip(narrow.coupling.ins, values))
    for number, const in [*zip(narrow.coupling.consts, consts), *narrow.coupling.inner_consts]:
      env[number] = cut(const, narrow.kept(number))
    narrow.steps(narrow.coupling.steps, env)
    return [env[a] if isinstance(a, int) else a.val for a in narrow.coupling.results]

  return run
