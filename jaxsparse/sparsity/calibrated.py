"""What methods that prune by calibration share: targets, patterns and masks."""

import jax.numpy as jnp

from jaxsparse.core import masks
from jaxsparse.core import parametrization
from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
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
      spelling, projects=True, final_masks=final))


def check_pattern(word: str, pattern) -> None:
  """Raises ValueError where `pattern` is neither None nor n:m."""
  if pattern is not None and pattern.spelling.name != 'n_m':
    raise ValueError(f'{word} prunes single entries; pattern must be None or n_m(n, m), got '
                     f'{spell.spell_value(pattern)}.')


def n_of_m(pattern: patterns.Pattern | None, layout) -> tuple[int, int]:
  """`(n, m)` of a pattern that fits a weight, `(0, 0)` of None."""
  if pattern is None:
    return 0, 0
  m = pattern.units(layout)
  return masking.kept_of(m, pattern.fixed), m
