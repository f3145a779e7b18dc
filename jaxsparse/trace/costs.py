"""What a product with a packed weight costs, as a ratio to the dense product of the same shape.

Three kinds of figure, never mixed up: *measured* on this machine, *compiled* (operations and bytes
that XLA counts in the compiled product), *declared* (the format's own count of multiply-adds).
"""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.numerics import axes
from jaxsparse.trace import cost_cache
from jaxsparse.trace import timing

DENSE = 'dense array'   # the product with the weight held dense: what everything is compared with
TOLERANCE = 1.05   # what a clock on a busy machine cannot tell from 1
# Operations a device does while it moves a byte, rounded: what a compiled count of bytes weighs.
_BALANCE = {'cpu': 8, 'gpu': 128, 'tpu': 256}


class Ratio(NamedTuple):
  """A cost over that of the dense product; `kind` is 'measured', 'compiled' or 'declared'."""

  value: float
  kind: str


@dataclasses.dataclass(frozen=True)
class Costs:
  """A table of what products cost; empty, it knows what formats declare.

  Attributes:
    table: `{key of a format and rows: {way to multiply: cost}}` with 'dense array' among the ways;
      costs of one entry share a unit.
    kind: of the entries, 'measured' or 'compiled'.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init({'w': jnp.ones((8, 4))}))
    >>> Costs().ratios(packed['w'], rows=2)
    {'stored': Ratio(value=1.0, kind='declared')}
  """

  table: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
  kind: str = 'measured'

  def ratios(self, weight: formats.Format, rows: int) -> dict[str, Ratio]:
    """The cost of each way to multiply `rows` rows by a weight.

    Args:
      weight: a format, concrete or traced; of a stack, what one of its matrices costs.
      rows: rows of activations. Of those in the table the nearest, as a ratio, within a factor of
        two counts.
    """
    entry = self._entry(weight, rows)
    if entry is None:
      dense = max(rows * weight.size, 1)
      return {'stored': Ratio(weight.multiply_adds(rows).executed / dense, 'declared')}
    return {way: Ratio(cost / entry[DENSE], self.kind) for way, cost in entry.items()
            if way != DENSE}

  def best(self, weight: formats.Format, rows: int) -> str:
    """The cheapest way to multiply by the weight as it is stored."""
    found = self.ratios(weight, rows)
    return min(found, key=lambda way: found[way].value)

  def _entry(self, weight, rows):
    stem = description(weight)
    near = [(abs(math.log2(there / max(rows, 1))), there) for there in self._rows(stem)]
    near = [there for far, there in sorted(near) if far <= 1]
    return self.table[_key(stem, near[0])] if near else None

  def _rows(self, stem):
    return [int(key.rpartition(' x')[2]) for key in self.table if key.startswith(stem + ' x')]


def description(weight: formats.Format) -> str:
  """What the program of a product depends on: class, shapes, dtypes and static numbers.

  A matrix of a stack is described as the matrix alone, however its axes lie.
  """
  one = _one(weight)
  leaves, structure = jax.tree.flatten(one)
  static = repr([structure, *((tuple(a.shape), str(a.dtype)) for a in leaves)])
  shape = 'x'.join(map(str, one.layout.matrix_shape))
  return f'{type(weight).__name__} {shape} {hashlib.sha256(static.encode()).hexdigest()[:12]}'


def measure_costs(packed: Any, rows: Sequence[int] | int = (1, 32), *,
                  cache: pathlib.Path | str | None = None) -> Costs:
  """Times every way to multiply by each packed weight, and the dense product beside them.

  Runs eagerly, outside of `jit`, and takes about a tenth of a second and a compilation for each
  way, number of rows and *different* weight: layers of one shape and balance are measured once, and
  what was measured in an earlier process is read from the user's cache.

  Args:
    packed: a tree of concrete weights with formats in it; of a stack, the first matrix is measured.
    rows: rows of activations, the products of their leading axes.
    cache: the file to keep times in; None takes `costs.json` in `$JAXSPARSE_CACHE` or in the
      user's cache folder.

  Returns:
    The table, for `dispatch(fn, costs=...)`, `fastest` and `explain`.

  Raises:
    TypeError: a weight is traced.
    ValueError: `rows` are not positive.

  Example:
    >>> import tempfile, jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init({'w': jnp.ones((8, 4))}))
    >>> costs = jsp.measure_costs(packed, 2, cache=tempfile.mkdtemp() + '/costs.json')
    >>> sorted(costs.ratios(packed['w'], rows=2))
    ['dense', 'stored']
  """
  wanted = _wanted(packed, rows)
  for weight, _ in wanted.values():
    if transforms.is_traced(weight):
      raise TypeError('measure_costs runs products, so it takes concrete weights: call it outside '
                      'of jit.')
  path = cost_cache.default_path() if cache is None else pathlib.Path(cache)
  known = cost_cache.read(path) if wanted else {}
  found = {key: known[key] for key in wanted if DENSE in known.get(key, {})}
  new = {}
  for key, (weight, count) in wanted.items():
    if key not in found:
      logging.info('Measuring %s.', key)
      programs, given = _programs(weight, count)
      runs = {way: functools.partial(run, *given[way]) for way, run in programs.items()}
      new[key] = {way: time for way, (time, _) in timing.interleaved(runs).items()}
  if new:
    cost_cache.write(path, new)
  return Costs(found | new, 'measured')


def compile_costs(packed: Any, rows: Sequence[int] | int = (1, 32), *, device=None) -> Costs:
  """Costs as XLA counts them in each compiled product: operations, or bytes where they are more.

  For machines that are not there: nothing runs, and weights may be `jax.ShapeDtypeStruct`s.

  Args:
    packed: a tree with formats in it.
    rows: rows of activations.
    device: of `jax.devices()`, or of a topology that libtpu describes; None takes the first.

  Returns:
    The table. The figures rank programs, they are no times: a byte is weighed as 8 operations on
    CPUs, 128 on GPUs and 256 on TPUs.

  Raises:
    ValueError: `rows` are not positive.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> packed, _ = jsp.low_rank(2).init({'w': jnp.ones((64, 64))})
    >>> packed = jsp.low_rank(2).pack(packed, _)
    >>> jsp.compile_costs(packed, 32).ratios(packed['w'], rows=32)['stored'].value < 0.7
    True
  """
  count, table = counter(device), {}
  for key, (weight, number) in _wanted(packed, rows).items():
    programs, given = _programs(_abstract(weight), number)
    table[key] = {way: count(run, *given[way]) for way, run in programs.items()}
  return Costs(table, 'compiled')


def counter(device: jax.Device | None) -> Callable[..., float]:
  """`count(jitted, *arguments)`: operations of the compiled program, or bytes where they are more.

  Nothing runs on `device`, and of arguments only shapes and dtypes count. The figure is that of
  `compile_costs`.
  """
  device = jax.devices()[0] if device is None else device
  placed = jax.sharding.SingleDeviceSharding(device)
  balance = _BALANCE.get(device.platform, _BALANCE['gpu'])

  def count(run, *given):
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed), given)
    counted = run.lower(*given).compile().cost_analysis()
    return max(counted.get('flops', 0.0), balance * counted.get('bytes accessed', 0.0), 1.0)

  return count


def slice_of(weight: formats.Format, ndim: int) -> formats.Format:
  """The first of a stacked weight's slices that has `ndim` axes, concrete or not."""
  while weight.ndim > ndim:
    weight = jax.tree.map(_first, weight).drop_leading()
  return weight


def fastest(packed: Any, costs: Costs, rows: int = 1, *,
            uses: Mapping[str, Ratio] | None = None) -> Any:
  """The tree with every weight held dense that no way to multiply makes as fast as dense.

  Args:
    packed: a tree with formats in it.
    costs: of `measure_costs` or `compile_costs`; what it does not know stays as it is.
    rows: rows of activations that count.
    uses: of `measure_uses` or `compile_uses`: what a weight costs where a model uses it, in place
      of what `costs` says of a product. Convolutions, lookups and experts are known by it alone.

  Returns:
    The tree: formats whose best way costs at most 1.05 of the dense product, and arrays.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> packed = transform.pack(*transform.init({'w': jnp.ones((512, 512))}))
    >>> costs = jsp.compile_costs(packed, 1)      # decoding reads and writes the weight
    >>> jsp.is_format(jsp.fastest(packed, costs, rows=1)['w'])
    False
  """
  def held(name, weight):
    if not formats.is_format(weight):
      return weight
    _, ratio = ratio_of(name, weight, rows, costs, uses)
    return weight.todense() if ratio.value > TOLERANCE else weight

  leaves, rebuild = names.named_leaves(packed)
  return rebuild([held(leaf.name, leaf.value) for leaf in leaves])


def ratio_of(name: str, weight: formats.Format, rows: int, costs: Costs,
             uses: Mapping[str, Ratio] | None) -> tuple[str, Ratio]:
  """The way a weight is multiplied, and what that costs: where it is used, or of a product."""
  way = costs.best(weight, rows)
  return way, (uses or {}).get(name) or costs.ratios(weight, rows)[way]


def _wanted(packed, rows):
  """`{key: (one matrix, rows)}`, each once."""
  rows = [rows] if isinstance(rows, int) else list(rows)
  if not rows or min(rows) < 1:
    raise ValueError(f'rows must be positive, got {rows}.')
  stored = [leaf.value for leaf in names.named_leaves(packed)[0] if formats.is_format(leaf.value)]
  return {_key(description(weight), count): (weight, count)
          for weight in stored if weight.size for count in rows}


def _key(stem, rows):
  return f'{stem} x{rows}'


def _programs(weight, rows):
  """`({way: jitted program}, {way: its arguments})`, the dense product first."""
  one = _one(weight)
  abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(one))
  x = jax.ShapeDtypeStruct((rows, one.layout.matrix_shape[0]), one.dtype)
  dense = jax.ShapeDtypeStruct(one.layout.matrix_shape, one.dtype)
  if not abstract:
    x, dense = timing.noise(0, x), one.dense_matrix()
  programs = {DENSE: jax.jit(lambda x, w: x @ w)}
  given = {DENSE: (x, dense)}
  for way in one.matmuls():
    programs[way] = jax.jit(lambda x, w, way=way: w.matmuls()[way](x))
    given[way] = (x, one)
  return programs, given


def _abstract(weight):
  return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weight)


def _one(weight):
  """The first matrix of a stack, its layout and those of formats in it in matrix order."""
  return slice_of(_matrix_order(weight), 2)


def _matrix_order(weight):
  inner = {f.name: _matrix_order(getattr(weight, f.name)) for f in dataclasses.fields(weight)
           if formats.is_format(getattr(weight, f.name))}
  if isinstance(weight, formats.Wrapper):   # its layout is that of what it wraps
    return dataclasses.replace(weight, **inner)
  shape = weight.layout.matrix_shape
  layout = axes.Layout(shape, weight.dtype, axes.default_axes(len(shape)))
  return dataclasses.replace(weight, layout=layout, **inner)


def _first(a):
  if isinstance(a, (jax.ShapeDtypeStruct, jax.core.Tracer)):
    return jax.ShapeDtypeStruct(a.shape[1:], a.dtype)
  return a[0]
