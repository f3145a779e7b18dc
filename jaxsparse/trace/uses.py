"""What each packed weight costs where a model uses it: convolutions, lookups, experts, products.

A table of products (`costs`) knows matrices and rows. A convolution's cost hangs on strides and the
size of the image, and a table may be looked up, multiplied by, or both. Here the operations that a
model runs are found in its trace, and each is timed, or compiled, with the weight stored and with
it dense.
"""

import dataclasses
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.trace import costs as costs_of
from jaxsparse.trace import hooks
from jaxsparse.trace import timing
from jaxsparse.trace.dispatch import chosen  # the room's `dispatch` is the function


def measure_uses(fn: Callable, packed: Any, *args, costs: costs_of.Costs | None = None,
                 **kwargs) -> dict[str, costs_of.Ratio]:
  """Times every operation of `fn` with a packed weight, and the same with the weight dense.

  Runs eagerly, outside of `jit`: about a tenth of a second and two compilations for each
  operation. Inputs are noise, indices are drawn evenly, and ragged groups are even.

  Args:
    fn: called as `fn(packed, *args, **kwargs)`; it is traced, not run.
    packed: a tree of concrete weights with formats in it.
    *args: of the shapes that count.
    costs: what `dispatch` will be given.
    **kwargs: as well.

  Returns:
    `{weight name: time of all its operations over the time with the weight dense}`, for
    `fastest(packed, costs, uses=...)` and `explain(packed, costs=costs, uses=...)`. A weight that
    no operation uses is not in it.

  Raises:
    TypeError: a weight is traced.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.magnitude(0.5)
    >>> packed = transform.pack(*transform.init({'table': jnp.ones((8, 4))}))
    >>> uses = measure_uses(lambda params, ids: params['table'][ids], packed, jnp.array([1, 2]))
    >>> [*uses], uses['table'].kind
    (['table'], 'measured')
  """
  for name, weight in _stored(packed).items():
    if transforms.is_traced(weight):
      raise TypeError(f'{name}: measure_uses runs operations, so it takes concrete weights: call '
                      'it outside of jit.')

  def times(with_dense, with_stored, contraction, x, dense, weight):
    given, dense = _input(contraction, x), timing.noise(1, dense)
    found = timing.interleaved({'dense': lambda: with_dense(given, dense),
                                'stored': lambda: with_stored(given, weight)})
    base, ratio = found['dense'][0], found['stored'][1]
    return base, base * ratio

  return _ratios(fn, packed, args, kwargs, costs, times, 'measured')


def compile_uses(fn: Callable, packed: Any, *args, costs: costs_of.Costs | None = None,
                 device: jax.Device | None = None, **kwargs) -> dict[str, costs_of.Ratio]:
  """What XLA counts in every operation of `fn` with a packed weight, over the same with it dense.

  For machines that are not there, as `compile_costs`: nothing runs, and weights and arguments may
  be `jax.ShapeDtypeStruct`s.

  Args:
    fn, packed, args, costs, kwargs: as of `measure_uses`.
    device: of `jax.devices()`, or of a topology that libtpu describes; None takes the first.

  Returns:
    As `measure_uses`, of kind 'compiled': operations, or bytes where they are more.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.low_rank(2)
    >>> packed = transform.pack(*transform.init({'kernel': jnp.ones((3, 3, 32, 64))}))
    >>> conv = lambda params, x: jax.lax.conv_general_dilated(
    ...     x, params['kernel'], (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    >>> uses = compile_uses(conv, packed, jnp.ones((2, 16, 16, 32)))
    >>> uses['kernel'].kind, uses['kernel'].value < 0.5
    ('compiled', True)
  """
  count = costs_of.counter(device)

  def counts(with_dense, with_stored, contraction, x, dense, weight):
    given = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return count(with_dense, given, dense), count(with_stored, given, weight)

  return _ratios(fn, packed, args, kwargs, costs, counts, 'compiled')


def _ratios(fn, packed, args, kwargs, costs, price, kind):
  """`{weight name: what all its operations cost stored, over dense}`.

  `price` takes the operation as a jitted function of its input and weight, dense and stored, then
  the operation, its input's type, the dense weight's and the stored weight; it returns two costs.
  """
  stored, found = _stored(packed), []

  def watch(contraction, x, w):
    if formats.is_format(w):
      found.append((contraction, jax.typeof(x), w))
    return contraction.compute(x, w), None

  with_weights = lambda params, *inputs: hooks.watching(fn, watch, None)(
      params, *inputs, **kwargs)[0]
  jax.eval_shape(with_weights, packed, *args)
  totals = {}
  for contraction, x, w in found:
    contraction = dataclasses.replace(contraction, operands=tuple(
        _even(v, x) if n > 1 else v for n, v in enumerate(contraction.operands)))

    def with_stored(x, w, contraction=contraction):
      if costs is not None and contraction.kind == 'dot':
        w = chosen(costs, contraction, x, w)
      return contraction.compute(x, w)

    dense, whole = price(
        jax.jit(contraction.compute), jax.jit(with_stored), contraction, x,
        jax.ShapeDtypeStruct(contraction.operand_shape, contraction.dtype),
        costs_of.slice_of(stored[contraction.name], w.ndim))
    total = totals.setdefault(contraction.name, [0.0, 0.0])
    total[0] += whole * contraction.repeats
    total[1] += dense * contraction.repeats
  return {name: costs_of.Ratio(whole / dense, kind) for name, (whole, dense) in totals.items()}


def _stored(packed):
  """`{weight name: format}`."""
  return {leaf.name: leaf.value for leaf in names.named_leaves(packed)[0]
          if formats.is_format(leaf.value)}


def _input(contraction, x):
  if not jnp.issubdtype(x.dtype, jnp.integer):
    return timing.noise(0, jax.ShapeDtypeStruct(x.shape, x.dtype))
  least = min(contraction.operand_shape, default=1)   # inside whichever axis is looked up
  return jnp.asarray(np.random.default_rng(0).integers(0, max(least, 1), x.shape), x.dtype)


def _even(sizes, x):
  """Even sizes of ragged groups, which a trace does not know: what operations take beside x, w."""
  return jnp.full(sizes.shape, x.shape[-2] // max(sizes.shape[-1], 1), sizes.dtype)
