"""Absmax scales of a matrix, per tensor, output channel or group along the reduction axis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

GRANULARITIES = ('tensor', 'channel', 'group')


@functools.partial(jax.jit, static_argnames=('limit', 'granularity', 'group'))
def absmax(w: jax.Array, limit: float, *, granularity: str, group: int | None = None) -> jax.Array:
  """The scale that maps the largest magnitude of each cell to `limit`; 1 where all are zero.

  The division by `limit` is a multiplication by its float32 reciprocal: XLA rewrites a division
  by a constant in just this way under `jit`, and eager and compiled codes must be the same.

  Args:
    w: `[..., R, O]`.
    limit: the grid's largest magnitude.
    granularity: 'tensor' (one cell a matrix), 'channel' (one an output) or 'group' (one every
      `group` rows of an output; the tail may be shorter).
    group: rows of a group.

  Returns:
    float32 `[..., 1, 1]`, `[..., 1, O]` or `[..., ceil(R / group), O]`.
  """
  scale = _peaks(w, granularity, group) * np.float32(1.0 / limit)
  return jnp.where(scale >= _TINY, scale, 1.0)


@functools.partial(jax.jit, static_argnames=('limit', 'granularity', 'group'))
def used(w: jax.Array, limit: float, *, granularity: str, group: int | None = None) -> jax.Array:
  """Which cells `absmax` found something in, bool like its result; the others' scale is free."""
  return _peaks(w, granularity, group) * np.float32(1.0 / limit) >= _TINY


# A peak so small that its scale underflows is as good as zero.
_TINY = np.finfo(np.float32).tiny


def _peaks(w, granularity, group):
  magnitude = jnp.abs(w.astype(jnp.float32))
  if granularity == 'tensor':
    return magnitude.max((-2, -1), keepdims=True, initial=0.0)
  if granularity == 'channel':
    return magnitude.max(-2, keepdims=True, initial=0.0)
  rows, outputs = w.shape[-2:]
  padding = [(0, 0)] * (w.ndim - 2) + [(0, -rows % group), (0, 0)]
  cells = jnp.pad(magnitude, padding).reshape(*w.shape[:-2], -1, group, outputs)
  return cells.max(-2)


def expand(scale: jax.Array, rows: int, group: int | None) -> jax.Array:
  """`scale` broadcastable against `[..., rows, O]`: groups are repeated, the tail cut."""
  if group is None or scale.shape[-2] == 1:
    return scale
  return jnp.repeat(scale, group, axis=-2)[..., :rows, :]
