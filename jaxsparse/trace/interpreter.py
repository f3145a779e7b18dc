"""Running a jaxpr while following weights: every contraction of a weight is given to a hook.

What a hook returns besides the operation's own result is kept as `{Key: Seen}`: aux of a weight
that a scan slices is stacked, any other is merged.
"""

import dataclasses
from typing import Any

import jax

from jaxsparse.numerics import explicit_axes
from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import jaxprs
from jaxsparse.trace import lazy
from jaxsparse.trace import loops
from jaxsparse.trace import origins
from jaxsparse.trace import tracked
from jaxsparse.trace import walk


def run(program: jaxprs.Program, how: tracked.Run) -> tuple[Any, dict]:
  """Runs a program; returns its output and `{Key: Seen}`."""
  inputs = [value if name is None else tracked.Tracked(value, origins.origin(name, value.shape))
            for name, value in zip(program.names, program.values)]
  outs, found = evaluate(program.jaxpr, program.consts, inputs, how, contractions.Place())
  outs = [tracked.plain(out, atom) for out, atom in zip(outs, program.jaxpr.outvars)]
  return program.out_tree.unflatten(outs), found


def evaluate(jaxpr: Any, consts: list, inputs: list, how: tracked.Run,
             place: contractions.Place) -> tuple[list, dict]:
  """Evaluates an open jaxpr.

  Args:
    jaxpr: the program.
    consts: values of its constants.
    inputs: arrays and Tracked weights.
    how: hook, merge and report.
    place: where the jaxpr is called.

  Returns:
    `(outputs, aux)`; Tracked weights may be among the outputs.
  """
  env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs)))
  found = {}
  for step, eqn in enumerate(jaxpr.eqns):
    values = [jaxprs.read(env, atom) for atom in eqn.invars]
    with jaxprs.context(eqn):
      outs, more = _equation(eqn, values, how, place.inside(step))
    env.update(zip(eqn.outvars, outs))
    found = tracked.join(found, more, how.merge)
  return [jaxprs.read(env, atom) for atom in jaxpr.outvars], found


def _equation(eqn, values, how, place):
  sources = [tracked.source_of(v) for v in values]
  if not any(sources):
    return jaxprs.bind(eqn.primitive, eqn.params, values), {}
  name = eqn.primitive.name
  found = contractions.recognize(eqn, sources, place)
  if found:
    return _contract(eqn, values, found, how)
  if name in loops.RULES:
    return loops.RULES[name](eqn, values, how, place, evaluate)
  if name in walk.INLINED or (name in walk.CUSTOM and _contracts(eqn, sources, place, how)):
    jaxpr, consts = jaxprs.opened(jaxprs.called(eqn))
    return evaluate(jaxpr, consts, values, how, place)
  outs = lazy.apply(eqn, values)
  if outs is not None:
    return outs, {}
  arrays = tracked.densified(values, eqn.invars, name, how)
  outs = jaxprs.bind(eqn.primitive, eqn.params, arrays)
  return [tracked.Tracked(out, source) if source else out
          for out, source in zip(outs, origins.follow(eqn, sources))], {}


def _contract(eqn, values, contraction, how):
  weight = values[contraction.operand]
  if weight.packed and not contraction.takes(weight.value):
    tracked.report_dense(weight, f'This {eqn.primitive.name}', how)
  others = [None if i == contraction.operand else v for i, v in enumerate(values)]
  others = tracked.densified(others, eqn.invars, eqn.primitive.name, how)
  out = eqn.outvars[0].aval
  y, aux = _hooked(how.hook, contraction, out)(others, weight.value)
  if y.shape != out.shape:
    raise ValueError(f'The hook returned shape {y.shape} for the {contraction.kind} with '
                     f'{contraction.name!r}; return {out.shape}, as contraction.compute does.')
  y = y if y.dtype == out.dtype else y.astype(out.dtype)
  key = tracked.Key(contraction.name, contraction.origin.scanned)
  return [y], {} if aux is None else {key: tracked.Seen(None, aux)}


def _hooked(hook, contraction, out):
  """The hook of the operands; on a mesh of explicit axes the result lies where the program has it.

  What else the hook returns lies on every device.
  """
  def place(found, *given):
    del given
    return [out.sharding.spec, *[jax.P() for _ in jax.tree.leaves(found)[1:]]]

  @explicit_axes.left_to_xla(place)
  def run(others, w):
    filled = dataclasses.replace(contraction, operands=tuple(others))
    return hook(filled, others[contraction.input], w)

  return run


def _contracts(eqn, sources, place, how):
  """Whether a custom derivative has a contraction of a weight inside; if so, says it is dropped.

  Around anything else it is bound as it is, and its derivative survives.
  """
  nodes, _ = walk.walk(jaxprs.called(eqn), sources, place)
  found = walk.contractions_in(nodes)
  for contraction in found:
    how.report(contraction.name, f'{eqn.primitive.name} contains its {contraction.kind} and is '
               'replaced by its function, without the custom derivative')
  return bool(found)
