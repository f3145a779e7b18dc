"""Who makes and who reads each value of a program: enough to find a layer next to another."""

import collections
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxsparse.trace import coupling as couplings
from jaxsparse.trace import dead
from jaxsparse.trace import jaxprs
from jaxsparse.trace import walk

_PRODUCTS = ('dot_general', 'conv_general_dilated')


def keeps_values(step: couplings.Step) -> bool:
  """Whether a step copies, or casts between floats: what is scaled before it is so after it."""
  name = step.eqn.primitive.name
  return name == 'copy' or name == 'convert_element_type' and all(
      jnp.issubdtype(v.aval.dtype, jnp.floating) for v in (step.eqn.invars[0], step.eqn.outvars[0]))


class Layer(NamedTuple):
  """A product of one weight, and what was added to its result before anything else.

  Attributes:
    weight: its name.
    axis: of the weight, its outputs; None where they are several axes.
    added: names of the biases.
  """

  weight: str
  axis: int | None
  added: tuple[str, ...]


class Flow:
  """The values of a traced program, by number, as `Coupling` counts them.

  Attributes:
    coupling: the flat program.
    made: {value: the step that makes it}.
    uses: {value: the steps that read it}; a result of the program is read by None.
    live: the values that depend on inputs, rather than on weights alone.
  """

  def __init__(self, program: jaxprs.Program):
    self.coupling = couplings.Coupling(program.jaxpr)
    self._names = dict(zip(self.coupling.ins, program.names))
    self._numbers = {name: n for n, name in self._names.items()}
    self._shapes = {name: aval.shape for name, aval in zip(program.names, program.jaxpr.in_avals)}
    self.made, self.uses = {}, collections.defaultdict(list)
    self.live = {n for n, name in self._names.items() if name is None}
    for step in self.coupling.steps:
      numbers = [v for v in step.ins if isinstance(v, int)]
      for value in numbers:
        self.uses[value].append(step)
      self.made.update((out, step) for out in step.outs)
      if self.live & set(numbers):
        self.live |= set(step.outs)
    for result in self.coupling.results:
      if isinstance(result, int):
        self.uses[result].append(None)
    found = walk.contractions_in(walk.nodes_of(program))
    self._roles = {c.name: c.axes for c in found}
    self._times = collections.Counter(c.name for c in found)

  def is_live(self, value: Any) -> bool:
    """Whether a value depends on inputs; a literal does not."""
    return isinstance(value, int) and value in self.live

  def leaf(self, value: Any) -> str | None:
    """The name of the weight that a value is, but for its layout; None where it is none."""
    while isinstance(value, int) and value in self.made:
      step = self.made[value]
      if step.eqn.primitive.name not in dead.LAYOUT and step.eqn.primitive.name != 'copy':
        return None
      value = step.ins[0]
    return self._names.get(value) if isinstance(value, int) else None

  def only_use(self, value: int):
    """The one step that reads a value; None where there are others, or none."""
    found = self.uses[value]
    return found[0] if len(found) == 1 else None

  def reads(self, name: str) -> int:
    """How many steps read a weight, changes of layout followed; a result of the program is one."""
    waiting, found = [self._numbers[name]], 0
    while waiting:
      for step in self.uses[waiting.pop()]:
        if step is not None and step.eqn.primitive.name in (*dead.LAYOUT, 'copy'):
          waiting.extend(step.outs)
        else:
          found += 1
    return found

  def behind(self, value: int) -> tuple[Layer | None, str]:
    """The layer whose result a value is, read by nobody else; or None, and why."""
    added = []
    while True:
      if self.only_use(value) is None:
        return None, 'something else reads what it normalizes, or scales, too'
      step = self.made.get(value)
      if step is None:
        return None, 'it comes right after an input'
      name, ins = step.eqn.primitive.name, step.ins
      if keeps_values(step):
        value = ins[0]
      elif name == 'add' and self.is_live(ins[0]) != self.is_live(ins[1]):
        value, other = ins if self.is_live(ins[0]) else ins[::-1]
        if self.leaf(other) is None:
          return None, 'what is added before it is no weight as it is'
        added.append(self.leaf(other))
      elif name in _PRODUCTS:
        return self._product(ins, tuple(added))
      else:
        return None, f'it comes after {name}, not after a product with a weight'

  def _product(self, ins, added):
    weights = [self.leaf(v) for v in ins if not self.is_live(v)]
    if len(weights) != 1 or weights[0] is None:
      return None, 'the product before it has no weight as it is'
    name, = weights
    roles = self._roles.get(name)
    if self._times[name] != 1 or roles is None:
      return None, f'{name} is used in {self._times[name]} products, or its axes are lost'
    layer = Layer(name, roles.output[0] if len(roles.output) == 1 else None, added)
    for used in (name, *added):
      if self.reads(used) != 1:
        return None, f'{used} is read elsewhere too'
    for bias in added:
      if layer.axis is not None and not self._per_channel(bias, layer):
        return None, f'{bias} {self._shapes[bias]} has not one entry for each output of {name}'
    return layer, ''

  def _per_channel(self, bias, layer):
    channels = self._shapes[layer.weight][layer.axis]
    axes = [a for a, size in enumerate(self._shapes[bias]) if size != 1]
    if len(axes) != 1:
      return not axes and channels == 1
    return self.coupling.find(self._numbers[bias], axes[0]) == self.coupling.find(
        self._numbers[layer.weight], layer.axis)

  def product_of(self, step: couplings.Step) -> str | None:
    """The name of the weight that a step multiplies by, if that is its only product."""
    if step.eqn.primitive.name not in _PRODUCTS:
      return None
    weights = [self.leaf(v) for v in step.ins if not self.is_live(v)]
    name = weights[0] if len(weights) == 1 else None
    known = self._times[name] == 1 and self._roles.get(name) is not None
    return name if known and self.reads(name) == 1 else None

  def axis_along(self, reader: str, layer: Layer) -> int | None:
    """The axis of the weight `reader` along which it reads the outputs of a layer, in turn.

    Either they are one axis in the program, or an axis of which the outputs are the fastest part
    (a convolution's channels, flattened). None where they are not, or something mixes them.
    """
    numbers = self._numbers
    channel = self.coupling.find(numbers[layer.weight], layer.axis)
    if self.coupling.frozen(*channel):
      return None
    flat = [whole for whole, parts, _ in couplings.merged(self.coupling) if parts[-1] == channel]
    found = []
    for axis in self._roles[reader].reduction:
      node = self.coupling.find(numbers[reader], axis)
      if node == channel or node in flat and not self.coupling.frozen(*node):
        found.append(axis)
    return found[0] if len(found) == 1 else None
