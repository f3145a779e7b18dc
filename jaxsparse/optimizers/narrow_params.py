"""Parameters in bfloat16 whose small updates are not lost.

`optax.apply_updates` rounds the sum of a weight and its update to the nearest bfloat16, so that an
update below 1/512 of the weight vanishes. Here it is rounded up or down by chance (Zamirai et al.,
"Revisiting BFloat16 Training", arXiv:2010.06192, section 4.1), or what was lost is carried along
(Kahan summation, section 4.2).

The wrapped transformation sees float32 gradients and params, so its state is float32 (or whatever
`quantized_state` makes of it). The updates are float32 too, and such that `apply_updates` gives
exactly the number chosen.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxsparse.core import names
from jaxsparse.numerics import hashing
from jaxsparse.numerics import rounding


class StochasticRoundingState(NamedTuple):
  """State of `stochastic_rounding`."""

  count: jax.Array   # int32 (), updates so far
  inner: Any         # the optimizer's


class KahanState(NamedTuple):
  """State of `kahan`."""

  lost: Any    # like params, bfloat16: what is to be subtracted from the next update
  inner: Any   # the optimizer's


def stochastic_rounding(tx: optax.GradientTransformation, *,
                        seed: int = 0) -> optax.GradientTransformationExtraArgs:
  """`tx` for bfloat16 params, the new params rounded up or down by chance.

  The mean of the new weight is what float32 would have made it. Noise is a hash of the seed, the
  weight's name, the count and the index. Params of other dtypes are updated as usual.

  Args:
    tx: any optax optimizer; extra arguments are passed on to it.
    seed: an integer.

  Returns:
    An optax transformation with state `StochasticRoundingState`; outermost, so that what it makes
    of the updates is what `apply_updates` adds.

  Raises:
    ValueError: the seed is no integer; or, in `update`, params are missing.

  Example:
    >>> tx = stochastic_rounding(optax.sgd(1e-4))
    >>> params = {'w': jnp.ones(10_000, jnp.bfloat16)}
    >>> updates, _ = tx.update({'w': jnp.ones(10_000)}, tx.init(params), params)
    >>> mean = optax.apply_updates(params, updates)['w'].astype(jnp.float32).mean()
    >>> abs(float(mean) - 0.9999) < 5e-5
    True
  """
  hashing.check_seed(seed)
  tx = optax.with_extra_args_support(tx)

  def init(params):
    return StochasticRoundingState(jnp.zeros([], jnp.int32), tx.init(_wide(params)))

  def update(updates, state, params=None, **extra):
    _check(params, 'stochastic_rounding')
    updates, inner = tx.update(_wide(updates), state.inner, _wide(params), **extra)

    def chosen(path, p, u):
      if not _narrow(p):
        return u
      there = p.astype(jnp.float32)
      name = hashlib.sha256(names.weight_name(path).encode()).digest()
      here = rounding.mix(seed, int.from_bytes(name[:4], 'little'), state.count)
      return rounding.stochastic(there + u.astype(jnp.float32), here).astype(jnp.float32) - there

    updates = jax.tree_util.tree_map_with_path(chosen, params, updates)
    return updates, StochasticRoundingState(optax.safe_increment(state.count), inner)

  return optax.GradientTransformationExtraArgs(init, update)


def kahan(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """`tx` for bfloat16 params, with what rounding loses kept in a second bfloat16.

  Two bytes more for each weight, sixteen bits of precision in all. Params of other dtypes are
  updated as usual.

  Args:
    tx: any optax optimizer; extra arguments are passed on to it.

  Returns:
    An optax transformation with state `KahanState`; outermost.

  Raises:
    ValueError: in `update`, params are missing.

  Example:
    >>> tx, params = kahan(optax.sgd(1e-4)), {'w': jnp.ones(1, jnp.bfloat16)}
    >>> state = tx.init(params)
    >>> for _ in range(100):
    ...   updates, state = tx.update({'w': jnp.ones(1)}, state, params)
    ...   params = optax.apply_updates(params, updates)
    >>> float(params['w'][0])
    0.98828125
  """
  tx = optax.with_extra_args_support(tx)
  nothing = lambda p: jnp.zeros_like(p) if _narrow(p) else jnp.zeros([], jnp.bfloat16)

  def init(params):
    return KahanState(jax.tree.map(nothing, params), tx.init(_wide(params)))

  def update(updates, state, params=None, **extra):
    _check(params, 'kahan')
    updates, inner = tx.update(_wide(updates), state.inner, _wide(params), **extra)

    def step(p, u, lost):
      if not _narrow(p):
        return u
      there = p.astype(jnp.float32)
      wanted = u.astype(jnp.float32) - lost.astype(jnp.float32)
      return (there + wanted).astype(jnp.bfloat16).astype(jnp.float32) - there

    def left(p, u, lost, moved):
      if not _narrow(p):
        return lost
      return (moved - (u.astype(jnp.float32) - lost.astype(jnp.float32))).astype(lost.dtype)

    moved = jax.tree.map(step, params, updates, state.lost)
    lost = jax.tree.map(left, params, updates, state.lost, moved)
    return moved, KahanState(lost, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def _narrow(p) -> bool:
  return getattr(p, 'dtype', None) == jnp.bfloat16


def _wide(tree):
  return jax.tree.map(lambda x: x.astype(np.float32) if _narrow(x) else x, tree)


def _check(params, word):
  if params is None:
    raise ValueError(f'{word} needs params: tx.update(grads, state, params).')
