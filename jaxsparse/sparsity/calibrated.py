"""What methods that prune by calibration share: targets, and statistics in a weight's own terms.

Statistics come from `calibrate(apply_fn, params, batches, gram)`: X^T X `[*batch, R, R]`; or from
the observer `input_norm`: `[*batch, R]`. A grouped convolution's have a group axis before R, and
the output columns belong to its groups in turn.
"""

import jax
import jax.numpy as jnp

from jaxsparse.core import masks
from jaxsparse.core import parametrization
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import axes
from jaxsparse.numerics import select
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns


def target(sparsity: float | None, pattern: patterns.Pattern | None) -> float:
  """The sparsity asked for: the pattern's own, else one half, where none is given.

  Raises:
    ValueError: `pattern` is no pattern, or the sparsity is outside [0, 1) or not the pattern's.

  Example:
    >>> target(None, patterns.n_m(1, 4)), target(None, None)
    (0.75, 0.5)
  """
  if pattern is not None and not isinstance(pattern, patterns.Pattern):
    raise ValueError(f'pattern must be a pattern such as n_m(2, 4), got {pattern!r}.')
  fixed = None if pattern is None else pattern.fixed
  if sparsity is None:
    sparsity = 0.5 if fixed is None else fixed
  sparsity = schedules.check_sparsity(sparsity)
  if fixed is not None and abs(sparsity - fixed) > 1e-6:
    raise ValueError(f'{spell.spell_value(pattern)} has sparsity {fixed:g}, but {sparsity:g} was '
                     'asked for: conflicting targets.')
  return sparsity


def by_column() -> patterns.Pattern:
  """Any entry, each output column competing by itself.

  Example:
    >>> by_column().mask(jnp.array([[1.0, 9.0], [2.0, 8.0]]), 1).tolist()
    [[False, True], [True, False]]
  """
  return patterns.unstructured()._replace(
      units=lambda layout: layout.matrix_shape[-2], entries=False,
      mask=lambda scores, kept: select.top_k_mask(scores, kept, axes=(-2,)))


def one_shot_masks(init, pattern: patterns.Pattern, sparsity: float,
                   spelling) -> transforms.Transform:
  """The Transform of a mask chosen in `init(w, *, stats, layout) -> (w, mask)`, for good."""
  def masked(w, *, stats, layout):
    latents, mask = init(w, stats=stats, layout=layout)
    return latents, masks.MaskState(mask)

  story = parametrization.Parametrization(
      masked, lambda w, state: jnp.where(state.mask, w, 0),
      pack=lambda w, state, *, layout: pattern.pack(w, state.mask, layout.astype(w.dtype)))
  final = masking.final_masks(pattern, schedules.constant(sparsity), distributions.uniform)
  return parametrization.leafwise(story, spec=transforms.Spec(
      spelling, projects=True, final_masks=final, needs=frozenset(['stats'])))


def check_pattern(word: str, pattern) -> None:
  """Raises ValueError where `pattern` is neither None nor n:m."""
  if pattern is not None and pattern.spelling.name != 'n_m':
    raise ValueError(f'{word} prunes single entries; pattern must be None or n_m(n, m), got '
                     f'{spell.spell_value(pattern)}.')


def check_damping(damping) -> None:
  """Raises ValueError where `damping` is no fraction in [0, 1]."""
  if isinstance(damping, bool) or not isinstance(damping, (int, float)) or not 0 <= damping <= 1:
    raise ValueError('damping must be a fraction of the mean diagonal in [0, 1], got '
                     f'{damping!r}.')


def n_of_m(pattern: patterns.Pattern | None, layout) -> tuple[int, int]:
  """`(n, m)` of a pattern that fits a weight, `(0, 0)` of None."""
  if pattern is None:
    return 0, 0
  m = pattern.units(layout)
  return masking.kept_of(m, pattern.fixed), m


def by_group(compress, w: jax.Array, gram: jax.Array, columns: int):
  """`compress(w [*batch, R, O], gram) -> (w, mask)`, the groups of a convolution as batch axes.

  Raises:
    ValueError: the result is not finite.
  """
  grouped = gram.ndim > w.ndim
  x = w.astype(jnp.float32)
  if grouped:
    x = jnp.moveaxis(x.reshape(*x.shape[:-1], gram.shape[-3], -1), -2, -3)
  new, mask = compress(x, gram)
  if not isinstance(new, jax.core.Tracer) and not bool(jnp.isfinite(new).all()):
    raise ValueError('the Gram of its inputs is not positive definite even when damped; pass a '
                     'larger damping, or more calibration data.')
  if grouped:
    join = lambda x: jnp.moveaxis(x, -3, -2).reshape(*x.shape[:-3], x.shape[-2], columns)
    new, mask = join(new), join(mask)
  # What is compensated may be beyond the largest float16.
  limit = float(jnp.finfo(w.dtype).max)
  return jnp.clip(new, -limit, limit).astype(w.dtype), mask


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
