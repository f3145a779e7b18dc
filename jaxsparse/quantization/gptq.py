"""GPTQ: rounding row by row, each row's error made good by the rows after it.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers"
(arXiv:2210.17323), algorithm 1. Letters: W `[R, O]` a weight, X `[rows, R]` its inputs,
`H = X^T X + damping mean(diag) I`, U the upper Cholesky factor of its inverse.

Row i is rounded, its error `E_i = (W_i - Q_i) / U_ii` taken from the rows after it,
`W_k -= U_ik E_i`: at once inside a block of rows, for the rest when the block is done.
In activation order the row with the largest H_ii goes first; a group stays rows that lie together,
so that nothing need be looked up later, and its scale is that of the weight as it was ("static
groups" in the authors' code). In the order of rows a group's scale is fitted when it is reached.

Unlike the authors' code, a dead input (one that was never active) keeps its weights, rounded.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import linalg
from jaxsparse.numerics import scales
from jaxsparse.quantization import frozen
from jaxsparse.quantization import scheme as schemes

_BLOCK = 128    # rows between updates of the rest of the matrix; no result depends on it


def gptq(dtype: str = 'int4', *, granularity: str | None = None, group: int | None = None,
         scale: Any = None, act_order: bool = True,
         damping: float = 0.01) -> transforms.Transform:
  """Rounds weights so that each layer's output changes least, once; nothing is left to train.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`; `one_shot(gptq(...), apply_fn,
  params, batches)` takes those of each layer from the layers that are rounded already. Arithmetic
  is float32. Zeros stay zeros on grids that have one (not 'binary', nor those of `hqq`), so
  `chain(sparsegpt(...), gptq(...))` stays as sparse as it was.

  Args:
    dtype: a grid; one with zero points ('uint4') is asymmetric.
    granularity: 'tensor', 'channel' or 'group', as for `quantize`.
    group: rows of a group; the last may be shorter.
    scale: the scale rule, as for `quantize`.
    act_order: rows in the order of falling activation, with scales of the weight as it was.
    damping: added to the diagonal of X^T X, as a fraction of its mean.

  Returns:
    A Transform whose state is the codes; packs to `QArray`.

  Raises:
    ValueError: what `quantize` raises, `damping` out of [0, 1], an `act_order` that is no bool,
      blocks; or, in `init`, a weight has no statistics, or ones that do not fit it, are not finite,
      or ask for more damping.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.4], [0.6], [7.0]])}
    >>> same = jnp.array([[4.0, 4.0, 0.0], [4.0, 4.0, 0.0], [0.0, 0.0, 1.0]])
    >>> transform = gptq('int4', damping=1e-5)
    >>> transform.apply(*transform.init(params, stats={'kernel': same}))['kernel'].ravel().tolist()
    [1.0, 1.0, 7.0]
  """
  spelling = spell.call(gptq, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  calibration.check_damping(damping)
  if not isinstance(act_order, bool):
    raise ValueError(f'act_order must be True or False, got {act_order!r}.')
  if scheme.granularity == 'block':
    raise ValueError('gptq fits scales while it rounds rows; granularity is tensor, channel or '
                     'group, got block.')
  static = act_order or scheme.granularity != 'group' or (
      scheme.rule in ('power_of_two', 'two_level'))

  def find(x, gram, scale):
    values, codes, steps, zeros = solve(x, gram, scale, damping, scheme=scheme, act_order=act_order)
    return values, codes, None if static else scales.Scale(steps, zeros)

  return frozen.from_gram(scheme, spelling, find, fits=static)


# Compiled by shape: weights of one shape in many layers share a program.
@functools.partial(jax.jit, static_argnames=('scheme', 'act_order'))
def solve(w: jax.Array, gram: jax.Array, scale: scales.Scale | None, damping: float, *,
          scheme: schemes.Scheme, act_order: bool) -> tuple:
  """Algorithm 1 of the paper; the size of its program does not depend on R.

  Args:
    w: float32 `[*batch, R, O]`.
    gram: float32 `[*batch, R, R]`.
    scale: float32 `[*batch, G, O]`, or None to fit the scale of each group when it is reached.
    damping: of the gram, as a fraction of its mean diagonal.
    scheme: what is rounded to.
    act_order: whether rows go by falling activation.

  Returns:
    The rounded weight and its codes `[*batch, R, O]`, scales and zero points `[*batch, G, O]`.
  """
  run = functools.partial(_ordered if act_order else _matrix, scheme=scheme, damping=damping)
  for _ in w.shape[:-2]:
    run = jax.vmap(run)
  return run(w, gram, scale)


def _ordered(w, gram, scale, *, scheme, damping):
  order = jnp.argsort(-jnp.diagonal(gram), stable=True)
  back = jnp.argsort(order)
  values, codes, steps, zeros = _matrix(w[order], gram[order][:, order], scale, scheme=scheme,
                                        damping=damping, rows=order)
  return values[back], codes[back], steps, zeros


def _matrix(w, gram, scale, *, scheme, damping, rows=None):
  total, columns = w.shape
  group = min(scheme.group or total, total)
  block = _BLOCK if scale is not None else _block(group)
  blocks = -(-total // block)
  extra = blocks * block - total
  place = jnp.arange(blocks * block)
  cell = place if rows is None else jnp.pad(rows, (0, extra))
  cell = cell // group if scheme.granularity == 'group' else cell * 0
  upper = linalg.inverse_cholesky(gram, damping)
  # Rows that pad the last block are zeros, and change nothing.
  w = jnp.pad(w, ((0, extra), (0, 0)))
  kept = w != 0   # what was pruned stays so, and the weights that come after make up for it
  upper = jnp.pad(upper, (0, extra)) + jnp.diag((place >= total).astype(jnp.float32))
  refit = functools.partial(_refit, group=group, total=total, scheme=scheme)
  fitted = scale
  if scale is None:
    cells = jnp.zeros((-(-total // group), columns))
    zero = cells.astype(scales.zero_dtype(scheme.rule)) if scheme.grid.zero_point else None
    fitted = scales.Scale(cells, zero)

  def of_block(b, carry):
    w, codes, fitted = carry
    start = b * block
    if scale is None and group > block:
      fitted = jax.lax.cond(start % group == 0, lambda: refit(fitted, w, start, start),
                            lambda: fitted)
    factor = jax.lax.dynamic_slice_in_dim(upper, start, block)
    square = jax.lax.dynamic_slice_in_dim(factor, start, block, axis=1)
    part = jax.lax.dynamic_slice_in_dim(w, start, block)

    def of_row(i, carry):
      values, codes, errors, fitted = carry
      if scale is None and group <= block:
        current = lambda: part - jnp.einsum('ki,ko->io', square, errors, precision='highest')
        begins = (i % group == 0) & (start + i < total)
        fitted = jax.lax.cond(begins, lambda: refit(fitted, current(), i, start + i),
                              lambda: fitted)
      pick = functools.partial(jax.lax.dynamic_index_in_dim, index=cell[start + i])
      steps = jax.tree.map(pick, fitted)
      # What the rows before it left; the errors of those from i on are zero still.
      left = jnp.einsum('k,ko->o', square[:, i], errors, precision='highest')
      row = jax.lax.dynamic_index_in_dim(part, i) - left[None]
      code = scales.encode(jnp.where(jax.lax.dynamic_index_in_dim(kept, start + i), row, 0), steps,
                           scheme.grid)
      value = scales.decode(code, steps, scheme.grid)
      error = (row - value) / square[i, i]
      put = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new[0], i, 0)
      return put(values, value), put(codes, code), put(errors, error), fitted

    start_values = jnp.zeros_like(part), jnp.zeros(part.shape, codes.dtype), jnp.zeros_like(part)
    values, new, errors, fitted = jax.lax.fori_loop(0, block, of_row, (*start_values, fitted))
    after = jnp.where(place >= start + block, factor, 0)
    w = jax.lax.dynamic_update_slice_in_dim(w, values, start, 0)
    w -= jnp.einsum('ik,io->ko', after, errors, precision='highest')
    return w, jax.lax.dynamic_update_slice_in_dim(codes, new, start, 0), fitted

  kind = jnp.uint8 if scheme.grid.zero_point else jnp.int8
  w, codes, fitted = jax.lax.fori_loop(
      0, blocks, of_block, (w, jnp.zeros(w.shape, kind), fitted))
  return w[:total], codes[:total], fitted.scale, fitted.zero


def _block(group):
  """Rows in a block: a multiple of the group, or a divisor of it, near `_BLOCK`."""
  if group <= _BLOCK:
    return group * (_BLOCK // group)
  return next(n for n in range(_BLOCK, 0, -1) if group % n == 0)


def _refit(fitted, w, here, row, *, group, total, scheme):
  """`fitted`, of the group that begins at `row` anew from the rows of `w` from `here` on."""
  tail, index = total % group, row // group
  channel = scheme._replace(granularity='channel', group=None)
  fit = lambda size: channel.fit(jax.lax.dynamic_slice_in_dim(w, here, size))
  if tail:
    found = jax.lax.cond(index == total // group, lambda: fit(tail), lambda: fit(group))
  else:
    found = fit(group)
  put = lambda old, new: jax.lax.dynamic_update_index_in_dim(old, new[0], index, 0)
  return jax.tree.map(put, fitted, found)
