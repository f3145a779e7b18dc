"""Whole attention heads as a pattern."""

from jaxsparse.core import spelling as spell
from jaxsparse.sparsity import patterns


def head(axis: str | None = None, *, size: int | None = None) -> patterns.Pattern:
  """Whole attention heads of a projection, ranked by their mean score.

  A kernel `[in, heads, head_dim]` (query, key, value) or `[heads, head_dim, out]` says itself what
  a head is. Where heads are merged into one axis, `axis` and `size` do. Each projection ranks its
  own heads: Michel et al., "Are Sixteen Heads Really Better than One?" (arXiv:1905.10650).

  Args:
    axis: 'output' (query, key, value) or 'reduction' (the projection out); None for the one that
      has two natural axes.
    size: entries of a head along a merged `axis`; None where the axes are natural.

  Raises:
    ValueError: `axis` is neither, or `size` comes without it; or, in use, the weight has no such
      axes, or `size` does not divide its axis.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> kernel = jnp.array([[[1., 1.], [3., 0.]]])   # [in 1, heads 2, head_dim 2]
    >>> _, state = jsp.magnitude(0.5, pattern=jsp.head()).init({'query/kernel': kernel})
    >>> jsp.masks(state)['query/kernel'].tolist()
    [[[False, False], [True, True]]]
  """
  spelling = spell.call(head, locals())
  if axis not in (None, 'output', 'reduction'):
    raise ValueError(f"axis must be 'output', 'reduction' or None, got {axis!r}.")
  if size is not None:
    patterns.check_positive('size', size)
    if axis is None:
      raise ValueError("size is of a merged axis; say which: head('output', size=64).")

  def fit(layout):
    roles = [r for r in ('output', 'reduction') if len(getattr(layout.axes, r)) == 2]
    role = axis if axis is not None else roles[0] if len(roles) == 1 else None
    if role is None or (size is None and role not in roles):
      raise ValueError(f'no heads in a weight of shape {layout.shape} with the roles '
                       f'{layout.axes}; expected two output axes [in, heads, head_dim] or two '
                       "reduction axes [heads, head_dim, out]; head('output', size=...) takes "
                       'merged ones.')
    across, along = layout.matrix_shape[-2:] if role == 'output' else layout.matrix_shape[:-3:-1]
    width = layout.shape[getattr(layout.axes, role)[1]] if size is None else size
    if along % width:
      raise ValueError(f'the {role} axis of size {along} (shape {layout.shape}) is not divisible '
                       f'by size={width}.')
    tile = (across, width) if role == 'output' else (width, across)
    return patterns.block(*tile)

  def mask(scores, kept):
    raise ValueError('head depends on the weight: take the mask of pattern.on(layout).')

  return patterns.Pattern(lambda layout: fit(layout).units(layout), mask,
                          lambda w, mask, layout: fit(layout).pack(w, mask, layout), spelling,
                          fit=fit)
