"""Statistics of calibration in a weight's own terms, and the loss on its batches.

They come from `calibrate(apply_fn, params, batches, gram)`: X^T X `[*batch, R, R]`; or from the
observer `input_norm`: `[*batch, R]`. A grouped convolution's have a group axis before R, and the
output columns belong to its groups in turn.
"""

import math
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import axes


def mean_loss(loss_fn: Callable, batches: list) -> Callable[[Any, str], float]:
  """`(params, where) -> the mean loss over the batches`, compiled once for each tree of params.

  Args:
    loss_fn: `(params, batch) -> loss`.
    batches: at least one.

  Returns:
    A function; it raises a ValueError that begins with `where` if the mean is not finite.

  Example:
    >>> mean_loss(lambda p, x: p * x, [1.0, 3.0])(2.0, 'dense')
    4.0
  """
  loss = jax.jit(loss_fn)

  def mean(params, where):
    found = float(np.mean([float(loss(params, batch)) for batch in batches]))
    if not math.isfinite(found):
      raise ValueError(f'{where}: the loss is {found}; expected a finite one.')
    return found

  return mean


def check_damping(damping) -> None:
  """Raises ValueError where `damping` is no fraction in [0, 1]."""
  if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping <= 1:
    raise ValueError('damping must be a fraction of the mean diagonal in [0, 1], got '
                     f'{damping!r}.')


def by_group(compress: Callable, w: jax.Array, gram: jax.Array, columns: int) -> tuple:
  """`compress(w [*batch, R, O], gram) -> (w, ...)`, the groups of a convolution as batch axes.

  Args:
    compress: returns the new float32 weight and further arrays `[*batch, ..., O]`, or None.
    w: `[*batch, R, O]`.
    gram: `[*batch, R, R]` or `[*batch, group, R, R]`.
    columns: O.

  Returns:
    What `compress` returns, the weight in its own dtype.

  Raises:
    ValueError: the new weight is not finite.
  """
  grouped = gram.ndim > w.ndim
  x = w.astype(jnp.float32)
  if grouped:
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], gram.shape[-3], -1), -2, -3)
  new, *rest = compress(x, gram)
  if not isinstance(new, jax.core.Tracer) and not bool(jnp.isfinite(new).all()):
    raise ValueError('the Gram of its inputs is not positive definite even when damped; pass a '
                     'larger damping, or more calibration data.')
  if grouped:
    join = lambda x: jnp.moveaxis(x, -3, -2).reshape(*x.shape[:-3], x.shape[-2], columns)
    new, *rest = (None if part is None else join(part) for part in (new, *rest))
  # What is compensated may be beyond the largest float16.
  limit = float(jnp.finfo(w.dtype).max)
  return jnp.clip(new, -limit, limit).astype(w.dtype), *rest


def norms_of(stats, layout: axes.Layout) -> jax.Array:
  """The l2 norm of each input feature, float32 `[*batch, R, 1]`, or `[*batch, R, O]` by group.

  Args:
    stats: of `input_norm`, or of `gram`, whose diagonal has the same.
    layout: of the weight.

  Raises:
    ValueError: there are none, or they do not fit, or are not finite.
  """
  norms = _check(stats, 'input_norm')
  rank = len(layout.matrix_shape) - 1
  if _is_gram(norms, layout):
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(norms, axis1=-2, axis2=-1), 0))
  if norms.shape == layout.matrix_shape[:-1]:
    return norms[..., None]
  if norms.ndim != rank + 1:
    raise _misfit(stats, layout)
  groups = _groups(norms.shape[:-1], norms.shape[-1:], stats, layout)
  return jnp.repeat(jnp.swapaxes(norms, -1, -2), layout.matrix_shape[-1] // groups, axis=-1)


def gram_of(stats, layout: axes.Layout) -> jax.Array:
  """X^T X, float32 `[*batch, R, R]`, or `[*batch, group, R, R]` of a grouped convolution.

  Raises:
    ValueError: there is none, or it does not fit, or is not finite.
  """
  gram = _check(stats, 'gram')
  rows = layout.matrix_shape[-2]
  if gram.shape == (*layout.matrix_shape[:-1], rows):
    return gram
  if gram.ndim != len(layout.matrix_shape) + 1:
    raise _misfit(stats, layout)
  _groups(gram.shape[:-2], gram.shape[-2:], stats, layout)
  return gram


def gram_if(stats, layout: axes.Layout) -> jax.Array | None:
  """X^T X `[*batch, R, R]` where the statistic is one, None where it is norms."""
  found = _check(stats, 'gram')
  return found if len(found.shape) == len(layout.matrix_shape) and _is_gram(found, layout) else None


def _is_gram(found, layout):
  rows = layout.matrix_shape[-2]
  if found.shape[-2:] != (rows, rows):
    return False
  # The norms of as many groups as there are rows look like it, but only a Gram is symmetric.
  lopsided = (jnp.abs(found - jnp.swapaxes(found, -1, -2)) > 1e-3 * jnp.abs(found).max()).any()
  return isinstance(lopsided, jax.core.Tracer) or not lopsided


def _groups(lead, tail, stats, layout):
  *batch, rows, columns = layout.matrix_shape
  if list(lead[:-1]) != batch or {*tail} != {rows} or columns % lead[-1]:
    raise _misfit(stats, layout)
  return lead[-1]


def _check(stats, observer):
  if stats is None:
    raise ValueError('no statistics of its inputs; pass init(params, stats=calibrate(apply_fn, '
                     f'params, batches, {observer})), or exclude the weight with at(...).')
  if not hasattr(stats, 'shape'):
    raise ValueError(f'expected the statistic of {observer}, an array, found '
                     f'{type(stats).__name__}.')
  stats = jnp.asarray(stats, jnp.float32)
  # Inside a trace this is no number, even of a concrete statistic.
  bad = stats.size - jnp.isfinite(stats).sum()
  if not isinstance(bad, jax.core.Tracer) and bad:
    raise ValueError(f'{bad} of {stats.size} values of its statistic are NaN or infinite; '
                     'expected finite calibration data.')
  return stats


def _misfit(stats, layout):
  shape = (*layout.matrix_shape[:-1], layout.matrix_shape[-2])
  return ValueError(f'a statistic of shape {tuple(stats.shape)} does not fit its matrix '
                    f'{layout.matrix_shape}; expected that of gram, {shape}, or, where norms will '
                    f'do, of input_norm, {shape[:-1]}: calibrate this model, and pass the roles '
                    'of its weights, init(..., axes=axes_of(apply_fn, params, *inputs)).')
