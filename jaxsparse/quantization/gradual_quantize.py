"""Fewer bits as training goes on.

Zhuang et al., "Towards Effective Low-bitwidth Convolutional Neural Networks" (arXiv:1711.00205),
section 3.2, progressive quantization: each precision starts from the one before.
"""

from typing import Any

import jax

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.numerics import rounding
from jaxsparse.quantization import scheme as schemes


def gradual_quantize(dtypes: tuple[str, ...], *, every: int, granularity: str | None = None,
                     group: Any = None, scale: Any = None) -> transforms.Transform:
  """`fake_quantize` to the first of `dtypes`, then the next after each `every` updates.

  The precision is that of the count in the state, so that one program serves all of training.
  Inside a trace `pack` takes the last dtype; outside, that of the moment.

  Args:
    dtypes: as for `fake_quantize`, in the order of use.
    every: updates for each but the last.
    granularity: as for `fake_quantize`, as are group and scale.
    group: rows of a group, or `(rows, outputs)`.
    scale: the scale rule.

  Raises:
    ValueError: what `fake_quantize` raises, no dtypes, or `every` is no positive integer.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = gradual_quantize(('int8', 'int3'), every=1)
    >>> params, state = transform.init({'kernel': jnp.array([[3.0], [1.4]])})
    >>> later = transform.update(params, state)
    >>> [round(float(transform.apply(params, s)['kernel'][1, 0]), 2) for s in (state, later)]
    [1.39, 1.0]
  """
  spelling = spell.call(gradual_quantize, locals())
  if not isinstance(dtypes, (tuple, list)) or not dtypes:
    raise ValueError(f'dtypes must be a tuple of grids in the order of use, got {dtypes!r}.')
  if isinstance(every, bool) or not isinstance(every, int) or every < 1:
    raise ValueError(f'every must be a positive number of updates, got {every!r}.')
  stages = [schemes.scheme(dtype, granularity, group, scale) for dtype in dtypes]
  last = len(stages) - 1

  def apply(w, state, *, count):
    place = jax.lax.min(count // every, last)
    fixed = jax.lax.stop_gradient(w)
    return rounding.straight_through(
        w, jax.lax.switch(place, [stage.round for stage in stages], fixed))

  def pack(w, state, *, layout, stored, count):
    now = last if isinstance(count, jax.core.Tracer) else min(int(count) // every, last)
    source = stored if isinstance(stored, formats.SparseFormat) else None
    return stages[now].store(w, layout, stored=source)

  return parametrization.leafwise(
      parametrization.Parametrization(lambda w: (w, ()), apply, pack=pack),
      spec=transforms.Spec(spelling))
