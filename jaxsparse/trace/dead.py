"""Finds the entries of coupled axes that add nothing to any sum."""

from typing import NamedTuple

import numpy as np

from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import jaxprs
from jaxsparse.trace import relations
from jaxsparse.trace import zeros

LAYOUT = frozenset({'reshape', 'transpose', 'squeeze', 'broadcast_in_dim', 'convert_element_type'})


class Dead(NamedTuple):
  """What can be removed.

  Attributes:
    drops: {class: bool mask of entries to drop}.
    zero: {value number of a weight: for each axis its zero slices}.
    blocks: {class: [(mask of entries that must stay, why)]}.
    frozen: {class: why}.
  """

  drops: dict
  zero: dict
  blocks: dict
  frozen: dict

  def why(self, node: tuple[int, int], stays: np.ndarray) -> str:
    """Why entries of a class stay although a weight is zero there."""
    if node in self.frozen:
      return self.frozen[node]
    for mask, reason in self.blocks.get(node, []):
      if (mask & stays).any():
        return reason
    return 'part of a merged axis that stays'


def find(coupling: couplings.Coupling, program: jaxprs.Program) -> Dead:
  """Finds what can be removed; what that makes dead in turn too.

  Args:
    coupling: of the program.
    program: traced with concrete weights.
  """
  freeze_ends(coupling, program)
  weights = {n: np.array(v) for n, name, v in
             zip(coupling.ins, program.names, program.values) if name is not None}
  first = {n: zeros.of_array(v).zero for n, v in weights.items()}
  labels = _labels(coupling, program)
  drops: dict = {}
  while True:
    known = known_of(coupling, program, weights)
    found, blocks = _round(coupling, known, labels)
    before = sum(int(m.sum()) for m in drops.values())
    drops = found
    if sum(int(m.sum()) for m in drops.values()) == before:
      frozen = {coupling.find(v, a): why for v in weights for a in range(weights[v].ndim)
                if (why := coupling.frozen(v, a))}
      return Dead(drops, first, blocks, frozen)
    for number, value in weights.items():
      for axis in range(value.ndim):
        drop = drops.get(coupling.find(number, axis))
        if drop is not None:
          value[(slice(None),) * axis + (drop,)] = 0


def known_of(coupling: couplings.Coupling, program: jaxprs.Program, weights: dict) -> dict:
  """What is known of every value of a program, given weights by value number."""
  known = {n: zeros.of_array(v) for n, v in zip(coupling.consts, program.consts)}
  for number, name in zip(coupling.ins, program.names):
    known[number] = (zeros.of_input(coupling.shapes[number]) if name is None
                     else zeros.of_array(weights[number]))
  zeros.propagate(coupling, known)
  return known


def freeze_ends(coupling: couplings.Coupling, program: jaxprs.Program) -> None:
  """Keeps the axes of inputs and results, and those that nothing sums over."""
  for number, name in zip(coupling.ins, program.names):
    if name is None:
      for axis in range(len(coupling.shapes[number])):
        coupling.freeze(number, axis, 'an axis of an input')
  for number in coupling.results:
    if isinstance(number, int):
      for axis in range(len(coupling.shapes[number])):
        coupling.freeze(number, axis, 'an axis of an output')
  summed = {coupling.find(*total.axes[0]) for total in coupling.sums}
  summed |= {coupling.find(*n) for whole, parts in coupling.merges for n in (whole, *parts)}
  for number in coupling.ins:
    for axis in range(len(coupling.shapes[number])):
      if coupling.find(number, axis) not in summed:
        coupling.freeze(number, axis, 'never summed over')


def _labels(coupling, program):
  labels = {n: name for n, name in zip(coupling.ins, program.names) if name}
  for step in coupling.steps:
    source = step.ins[0] if step.eqn.primitive.name in LAYOUT else None
    if isinstance(source, int) and source in labels:
      labels[step.outs[0]] = labels[source]
  return labels


def _round(coupling, known, labels):
  stays, blocks = {}, {}
  for total in coupling.sums:
    node = coupling.find(*total.axes[0])
    must = ~np.logical_or.reduce([known[v].zero[a] for v, a in total.axes])
    stays[node] = stays.get(node, np.zeros(len(must), bool)) | must
    weight = next((labels[v] for v, _ in total.axes if v in labels), None)
    where = f'{weight} reads it, and it need not be zero' if weight else f'{total.site} reads it'
    blocks.setdefault(node, []).append((must, where))
  drops = {node: ~must for node, must in stays.items()}
  for whole, parts in coupling.merges:
    for node in (coupling.find(*n) for n in (whole, *parts)):
      drops.setdefault(node, np.ones(coupling.size(node), bool))
  for node, drop in drops.items():
    if coupling.frozen(*node):
      drop[:] = False
  _agree(coupling, drops)
  for node, drop in drops.items():
    if drop.all():
      drop[:1] = False
      blocks.setdefault(node, []).append((~drop, 'all of the axis is dead, and one entry stays'))
  _agree(coupling, drops)
  return {node: drop for node, drop in drops.items() if drop.any()}, blocks


def _agree(coupling, drops):
  """Takes back what merged axes cannot both drop, until nothing changes."""
  changed = True
  while changed:
    changed = False
    for whole, parts, sizes in couplings.merged(coupling):
      for part, able in zip(parts, relations.gathered(drops[whole], sizes)):
        if (drops[part] & ~able).any():
          drops[part], changed = drops[part] & able, True
      joint = relations.spread([drops[p] for p in parts])
      if (drops[whole] & ~joint).any():
        drops[whole], changed = drops[whole] & joint, True
