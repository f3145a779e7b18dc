"""Codes that are not trained, and the check of granularities that quantizers share."""

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales


def check_granularity(granularity: str, group: int | None) -> int | None:
  """The group size, or None for one scale a column or matrix.

  Raises:
    ValueError: the granularity is unknown, or `group` is given without it or the reverse.
  """
  if granularity not in scales.GRANULARITIES:
    raise ValueError(f'granularity must be one of {", ".join(scales.GRANULARITIES)}, '
                     f'got {granularity!r}.')
  if (granularity == 'group') != (group is not None):
    raise ValueError(f'group= goes with granularity=\'group\'; got granularity={granularity!r}, '
                     f'group={group!r}.')
  if group is not None and (isinstance(group, bool) or not isinstance(group, int) or group < 1):
    raise ValueError(f'group must be a positive number of rows, got {group!r}.')
  return group


def on_grid(grid: grids.Grid, granularity: str,
            group: int | None) -> parametrization.Parametrization:
  """A weight whose codes on `grid` are its state."""
  def init(w, *, layout):
    scale = scales.absmax(w, grid.limit, granularity=granularity, group=group)
    plain = layout.astype(w.dtype)
    return names.Frozen(), quantized.QArray.encode(w, scale, plain, grid, group)

  return parametrization.Parametrization(
      init, lambda latents, state: state.dense_matrix(), None, lambda latents, state: state)
