"""Which axes of a program's values must have the same entries removed.

A program is flattened to steps over numbered values, and axes that are one axis (through
arithmetic, transposes, products...) fall into one class. A class is frozen if something touches it
that is not understood.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxsparse.trace import jaxprs
from jaxsparse.trace import relations
from jaxsparse.trace import walk


class Step(NamedTuple):
  """One equation; operands and results are value numbers, literals among the operands.

  Attributes:
    eqn: of the jaxpr.
    ins: value number or literal of each operand.
    outs: value number of each result.
    inside: steps of a custom derivative's function, which reads `ins` and makes `outs`.
    copies: `(from, to)`: values of `inside` that are the results.
    relation: of its axes, if known.
  """

  eqn: Any
  ins: tuple
  outs: tuple
  inside: tuple = ()
  copies: tuple = ()
  relation: Any = None


class Sum(NamedTuple):
  """A contraction or sum over a class: `axes` are `(value, axis)`, `site` says where."""

  axes: tuple
  site: str


class Coupling:
  """A flat program and the classes of its axes; final once built.

  Attributes:
    steps: in program order.
    shapes: of every numbered value.
    ins: numbers of the jaxpr's inputs.
    consts: numbers of its constants.
    results: numbers or literals of its results.
    sums: contractions, to be asked which terms are zero.
    merges: `(whole, parts)` of classes, as `(value, axis)` each.
  """

  def __init__(self, jaxpr: Any):
    self.shapes, self.sums, self.merges = [], [], []
    self._parent, self._why = {}, {}
    env = {}
    self.consts = [self._number(env, v) for v in jaxpr.constvars]
    self.ins = [self._number(env, v) for v in jaxpr.invars]
    self.inner_consts = []
    self.steps = self._flatten(jaxpr, env)
    self.results = [self._atom(env, v) for v in jaxpr.outvars]

  def find(self, value: int, axis: int) -> tuple[int, int]:
    """The representative of an axis' class."""
    node = (value, axis)
    while (up := self._parent.get(node, node)) != node:
      self._parent[node] = self._parent.get(up, up)
      node = up
    return node

  def freeze(self, value: int, axis: int, why: str) -> None:
    """Keeps a class whole, for a reason."""
    self._why.setdefault(self.find(value, axis), why)

  def frozen(self, value: int, axis: int) -> str | None:
    """Why an axis' class is whole, or None."""
    return self._why.get(self.find(value, axis))

  def size(self, node: tuple[int, int]) -> int:
    """How many entries an axis has."""
    return self.shapes[node[0]][node[1]]

  def _union(self, left, right):
    left, right = self.find(*left), self.find(*right)
    if left != right:
      self._parent[right] = left
      if right in self._why:
        self._why.setdefault(left, self._why.pop(right))

  def _number(self, env, var):
    env[var] = len(self.shapes)
    self.shapes.append(tuple(getattr(var.aval, 'shape', ())))
    return env[var]

  def _atom(self, env, atom):
    return atom if jaxprs.is_literal(atom) else env[atom]

  def _flatten(self, jaxpr, env):
    steps = []
    for eqn in jaxpr.eqns:
      name = eqn.primitive.name
      ins = tuple(self._atom(env, v) for v in eqn.invars)
      if name in walk.INLINED or name in walk.CUSTOM:
        steps += self._call(eqn, env, ins, name in walk.CUSTOM)
        continue
      outs = tuple(self._number(env, v) for v in eqn.outvars)
      steps.append(self._relate(Step(eqn, ins, outs)))
    return steps

  def _call(self, eqn, env, ins, custom):
    inner, consts = jaxprs.opened(jaxprs.called(eqn))
    inside = dict(zip(inner.invars, ins))
    for var, value in zip(inner.constvars, consts):
      self.inner_consts.append((self._number(inside, var), value))
    steps = self._flatten(inner, inside)
    made = [self._atom(inside, v) for v in inner.outvars]
    if not custom:
      env.update(zip(eqn.outvars, made))
      return steps
    outs = tuple(self._number(env, v) for v in eqn.outvars)
    for source, out in zip(made, outs):
      for axis in range(len(self.shapes[out])):
        if isinstance(source, int):
          self._union((source, axis), (out, axis))
    return [Step(eqn, ins, outs, tuple(steps), tuple(zip(made, outs)))]

  def _relate(self, step):
    name = step.eqn.primitive.name
    shapes = [self.shapes[v] if isinstance(v, int) else np.shape(v.val) for v in step.ins]
    known = None
    if len(step.outs) == 1:
      known = relations.relation(step.eqn, shapes, self.shapes[step.outs[0]])
    if name == 'optimization_barrier':
      for source, out in zip(step.ins, step.outs):
        for axis in range(len(self.shapes[out])):
          self._union((source, axis), (out, axis))
      return step
    if known is None:
      for value in (*step.ins, *step.outs):
        if isinstance(value, int):
          for axis in range(len(self.shapes[value])):
            self.freeze(value, axis, f'{name} is not understood')
      return step
    self._couple(step, known, name)
    return step._replace(relation=known)

  def _couple(self, step, known, name):
    out, used = step.outs[0], set()
    for axis, sources in enumerate(known.out):
      for i, a in sources or ():
        used.add((i, a))
        if isinstance(step.ins[i], int):
          self._union((step.ins[i], a), (out, axis))
    for pairs in known.sums:
      used |= set(pairs)
      nodes = tuple((step.ins[i], a) for i, a in pairs)
      if all(isinstance(v, int) for v, _ in nodes):
        for node in nodes[1:]:
          self._union(nodes[0], node)
        self.sums.append(Sum(nodes, name))
    merged = set()
    for merge in known.merges:
      sides = {'in': step.ins[0], 'out': out}
      whole, *parts = [(sides[side], a) for side, a in (merge.whole, *merge.parts)]
      self.merges.append((whole, tuple(parts)))
      used |= {(0, a) for side, a in (merge.whole, *merge.parts) if side == 'in'}
      merged |= {a for side, a in (merge.whole, *merge.parts) if side == 'out'}
    for axis, sources in enumerate(known.out):
      if sources is None and axis not in merged:
        self.freeze(out, axis, f'{name} mixes it')
    for i, value in enumerate(step.ins):
      if isinstance(value, int):
        for a, size in enumerate(self.shapes[value]):
          if (i, a) not in used and size != 1:
            self.freeze(value, a, f'{name} mixes it')


def every(steps: tuple | list):
  """Yields steps, and those inside custom derivatives."""
  for step in steps:
    yield step
    yield from every(step.inside)


def merged(coupling: Coupling):
  """Yields each merged axis with its parts, as classes, and the parts' sizes."""
  for whole, parts in coupling.merges:
    parts = [coupling.find(*p) for p in parts]
    yield coupling.find(*whole), parts, [coupling.size(p) for p in parts]


def settle(coupling: Coupling, drops: dict) -> None:
  """Carries what is dropped across merged axes, both ways, until nothing changes.

  Args:
    coupling: of the program.
    drops: {class: bool mask of dropped entries}, filled in place.
  """
  changed = True
  while changed:
    changed = False
    for whole, parts, sizes in merged(coupling):
      masks = [drops.get(p, np.zeros(n, bool)) for p, n in zip(parts, sizes)]
      before = drops.get(whole, np.zeros(coupling.size(whole), bool))
      found = relations.gathered(before, sizes)
      for part, mask, new in zip(parts, masks, found):
        if (new & ~mask).any():
          drops[part], changed = mask | new, True
      after = before | relations.spread(masks)
      if (after != before).any():
        drops[whole], changed = after, True
