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


def check_double_quantize(value) -> int | None:
  """Scales that share a second scale, or None: True is the 256 of QLoRA's paper.

  Raises:
    ValueError: it is neither a bool nor a positive integer.
  """
  if isinstance(value, bool):
    return 256 if value else None
  if not isinstance(value, int) or value < 1:
    raise ValueError('double_quantize must be True, False or how many scales share a second one, '
                     f'got {value!r}.')
  return value


def on_grid(grid: grids.Grid, granularity: str, group: int | None,
            scale_group: int | None = None) -> parametrization.Parametrization:
  """A weight whose codes on `grid` are its state; `scale_group` scales share a second one."""
  def init(w, *, layout):
    cells = {'granularity': granularity, 'group': group}
    scale = scales.absmax(w, grid.limit, **cells)
    if scale_group is not None:
      scale = quantized.QuantizedScale.encode(
          scale, scales.used(w, grid.limit, **cells), scale_group)
    plain = layout.astype(w.dtype)
    return names.Frozen(), quantized.QArray.encode(w, scale, plain, grid, group)

  return parametrization.Parametrization(
      init, lambda latents, state: state.dense_matrix(), None, lambda latents, state: state)
