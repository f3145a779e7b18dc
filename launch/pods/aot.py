"""What a training step will take on a TPU slice that is not there: compiled for real, run never.

The step is the one `launch.run` would run, from the same `loop.program`; libtpu compiles it for
the slice. Its figures are the compiler's and are called so. What the compiler does not know, such
as how often a loop's body runs, is counted from the program's own jaxpr by `jsp.flops`.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

import jaxsparse as jsp
from launch.pods import topology
from launch.runs import loop

_KINDS = ('all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute')
_COLLECTIVE = re.compile(rf' ({"|".join(_KINDS)})(?:-start)?\(')
_TOO_LARGE = re.compile(
  r'\(([\d.]+)([BKMGT]?)\) exceeds available HBM|Used ([\d.]+)([BKMGT]?) of [\d.]+[BKMGT]? hbm',
  re.IGNORECASE,
)
_UNIT = {unit: 2 ** (10 * power) for power, unit in enumerate('BKMGT')}
# Of what belongs to no weight, or is no image of one: counts, step sizes, small tables.
_SMALL_BYTES = 2**16


class Memory(NamedTuple):
  """Bytes of one device.

  Attributes:
    arguments: state, batch and keys.
    outputs: what is returned, most of it in the arguments' place.
    aliased: outputs in the arguments' place.
    temporaries: at the worst moment of the step.
    code: the program.
  """

  arguments: int
  outputs: int
  aliased: int
  temporaries: int
  code: int

  @property
  def total(self) -> int:
    """What must fit."""
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code


class Compiled(NamedTuple):
  """What the compiler says of a program on one device.

  Attributes:
    memory: None where the program does not fit.
    needed: bytes the compiler wanted where it does not fit, None where it does not say.
    flops: operations; a loop's body counts once. None where it does not fit.
    bytes_accessed: of HBM; likewise.
    collectives: sites by kind; None where the compiler cannot print the program.
    reason: why something above is None; '' where nothing is.
  """

  memory: Memory | None
  needed: int | None
  flops: float | None
  bytes_accessed: float | None
  collectives: dict[str, int] | None
  reason: str


class Role(NamedTuple):
  """State of one role: params, masks, state besides masks, or optimizer.

  Attributes:
    total: bytes of the whole.
    a_device: bytes on one device.
    expected: bytes divided by the number of shards of the weight each leaf belongs to.
  """

  total: int
  a_device: int
  expected: float


def devices(where: topology.Topology) -> list:
  """The devices of a slice, as libtpu lays them out.

  Raises:
    ValueError: libtpu is not installed, or does not know the slice.
  """
  if importlib.util.find_spec('libtpu') is None and 'TPU_LIBRARY_PATH' not in os.environ:
    raise ValueError("libtpu is not installed: pip install libtpu, or jaxsparse's tpu extra.")
  try:
    found = topologies.get_topology_desc(
      platform='tpu', topology_name=where.name, **where.chip.options
    ).devices
  except jax.errors.JaxRuntimeError as error:
    raise ValueError(f'libtpu does not lay out {where.name}: {_first_line(error)}') from error
  if len(found) != where.devices:
    raise ValueError(
      f'libtpu lays out {where.name} with {len(found)} devices, expected {where.devices}.'
    )
  return found


def make_mesh(where: topology.Topology, sizes: dict[str, int]) -> jax.sharding.Mesh:
  """Returns the mesh of a slice's devices, as `loop.make_mesh` lays out those of a machine.

  Args:
    where: the slice.
    sizes: by axis; -1 stands for all devices.

  Raises:
    ValueError: the sizes do not multiply to the number of devices; or from `devices`.
  """
  shape = {axis: where.devices if size == -1 else size for axis, size in sizes.items()}
  wanted = math.prod(shape.values())
  if wanted != where.devices:
    asked = ','.join(f'{axis}:{size}' for axis, size in shape.items())
    each = f' ({where.chips} chips of {where.chip.devices})' if where.chip.devices > 1 else ''
    raise ValueError(
      f'--mesh={asked} needs {wanted} devices, {where.name} has {where.devices}{each}.'
    )
  auto = (jax.sharding.AxisType.Auto,) * len(shape)
  found = devices(where)
  try:
    return jax.make_mesh(tuple(shape.values()), tuple(shape), devices=found, axis_types=auto)
  except NotImplementedError as error:
    said = f'JAX cannot lay this mesh out on {where.name}: {_first_line(error)}'
    raise ValueError(said) from error


def arguments(program: loop.Program) -> tuple:
  """Abstract arguments of the program's step, each where the loop puts it.

  Raises:
    ValueError: the batch cannot be split over the mesh's data axis.
  """
  count = program.mesh.shape['data']
  place = NamedSharding(program.mesh, PartitionSpec('data'))

  def abstract(x):
    if x.shape[0] % count:
      raise ValueError(
        f'The batch of {x.shape[0]} is not divisible by data:{count}; --set="batch_size=..." '
        'changes it.'
      )
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)

  batch = jax.tree.map(abstract, program.task.batch(0))
  key = np.asarray(jax.random.key_data(jax.random.key(0)))
  return (*program.like[:3], batch, key, np.int32(0))


def compile_step(program: loop.Program, *, refresh: bool) -> Compiled:
  """Compiles one of the two programs of a step and reads its figures.

  Args:
    program: from `loop.program`, on a mesh of `make_mesh`.
    refresh: the program that updates masks, instead of the ordinary one.
  """
  args = arguments(program)
  with jax.set_mesh(program.mesh):  # as the loop does
    lowered = program.step.compiled.lower(refresh, *args)
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    said = str(error)
    if 'CompileTimeHbmOom' not in said and not re.search('out of memory.*hbm', said, re.I | re.S):
      raise
    return Compiled(None, needed_bytes(said), None, None, None, _first_line(error))
  stats = compiled.memory_analysis()
  memory = Memory(
    arguments=stats.argument_size_in_bytes,
    outputs=stats.output_size_in_bytes,
    aliased=stats.alias_size_in_bytes,
    temporaries=stats.temp_size_in_bytes,
    code=stats.generated_code_size_in_bytes,
  )
  cost = compiled.cost_analysis() or {}
  try:
    sites, reason = collectives(compiled.as_text()), ''
  except jax.errors.JaxRuntimeError as error:
    # libtpu 0.0.52 cannot print some programs of v5p and tpu7x that it compiles well.
    sites, reason = None, _first_line(error)
  return Compiled(memory, None, cost.get('flops'), cost.get('bytes accessed'), sites, reason)


def collectives(text: str) -> dict[str, int]:
  """Counts the collectives in a compiled program's text, by kind; a loop's body counts once.

  Example:
    >>> collectives('%a = f32[8] all-gather-start(%b)\\n%c = f32[8] all-gather-done(%a)')
    {'all-gather': 1}
  """
  found = _COLLECTIVE.findall(text)
  return {kind: found.count(kind) for kind in _KINDS if kind in found}


def needed_bytes(said: str) -> int | None:
  """The bytes that a compiler's complaint about memory names, None if it names none.

  Example:
    >>> needed_bytes('total memory required (1.50T) exceeds available HBM (15.75G).') // 2**30
    1536
  """
  match = _TOO_LARGE.search(said)
  if match is None:
    return None
  number, unit = [group for group in match.groups() if group is not None][:2]
  return int(float(number) * _UNIT[unit.upper() or 'B'])


def count_flops(program: loop.Program) -> int:
  """Floating point operations of one ordinary step of the whole mesh, recomputation included."""
  step = lambda *args: program.step.compiled(False, *args)
  return jsp.flops(step, *arguments(program)).executed


def account(program: loop.Program) -> tuple[dict[str, Role], list[str]]:
  """Adds up the state that a step carries, and finds what is replicated by accident.

  A leaf belongs to the weight whose name is in its path. One of the weight's shape (a mask, a
  moment) must be split into as many parts as the weight; any other (scales, factors) must at least
  be split where the weight is, unless it is small.

  Args:
    program: from `loop.program`.

  Returns:
    `{role: Role}`, and a sentence for each leaf that is not split as its weight is.
  """
  weights = jax.eval_shape(program.task.init)
  specs = program.task.specs(weights) if program.task.specs else None
  owners = {}
  for path, weight in jax.tree.leaves_with_path(weights):
    spec = _at(specs, path) if specs is not None else PartitionSpec()
    shards = _shards(NamedSharding(program.mesh, spec), weight.shape)
    owners[_name(path)] = (weight.shape, shards)
  roles, accidents = {}, []
  parts = (
    ('params', program.like.params),
    ('state', program.like.state),
    ('optimizer', program.like.opt_state),
  )
  for part, tree in parts:
    for path, leaf in jax.tree.leaves_with_path(tree):
      name, size = _name(path), math.prod(leaf.shape) * leaf.dtype.itemsize
      owner = max((o for o in owners if f'/{o}/' in f'/{name}/'), key=len, default=None)
      shape, wanted = owners.get(owner, ((), 1))
      split = _shards(leaf.sharding, leaf.shape)
      role = 'masks' if part == 'state' and name.endswith('/mask') else part
      before = roles.get(role, Role(0, 0, 0.0))
      roles[role] = Role(
        before.total + size, before.a_device + size // split, before.expected + size / wanted
      )
      if split < wanted and (leaf.shape == shape or (split == 1 and size > _SMALL_BYTES)):
        accidents.append(f'{role} {name} is split {split} ways, its weight {wanted}')
  return roles, accidents


def _name(path) -> str:
  """A key path with `/` between its parts, as weights are named."""
  return jax.tree_util.keystr(path, simple=True, separator='/').replace(':', '/')


def _at(specs, path):
  leaves = jax.tree.leaves_with_path(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
  return next(spec for where, spec in leaves if where == path)


def _shards(sharding, shape) -> int:
  """Into how many different parts a leaf is split."""
  return math.prod(shape) // max(1, math.prod(sharding.shard_shape(shape)))


def _first_line(error) -> str:
  return str(error).strip().partition('\n')[0][:300]
