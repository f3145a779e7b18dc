"""Optax transformations that know which weights are pruned: decay, clipping, updates.

The gradient of a pruned latent is zero, yet optax sees an ordinary weight: decay pulls at its
stale value, a norm counts what momentum or decay still sends it, and momentum from before moves
it. These leave pruned weights out of the sums, and their updates at zero.

Which weights those are changes from step to step, so masks are no constructor argument but an
extra argument of `update`, `masks={weight name: bool}`, by name so that they pass through `chain`,
`masked`, `partition`, `MultiSteps` and `inject_hyperparams`. `train_step` and `wrap` hand them
over; in a loop of your own it is `tx.update(grads, opt_state, params, masks=jsp.masks(state))`.
Weights without a mask count whole. So do weights whose dense latents train on behind a mask
(`straight_through`, `top_kast`): `train_step` hands over no mask of those.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import explicit_axes


def masked_decay(weight_decay: Any) -> optax.GradientTransformationExtraArgs:
  """Adds `weight_decay * w` to the updates of kept weights; those of pruned ones become zero.

  `optax.add_decayed_weights` for sparse weights, at the same place of a chain.

  Args:
    weight_decay: a number, or an array as `optax.inject_hyperparams` makes it.

  Returns:
    An optax transformation whose `update` needs `params` and `masks`.

  Example:
    >>> tx, params = masked_decay(0.5), {'w': jnp.array([2.0, 4.0])}
    >>> updates, _ = tx.update({'w': jnp.zeros(2)}, tx.init(params), params,
    ...                        masks={'w': jnp.array([True, False])})
    >>> updates['w'].tolist()
    [1.0, 0.0]
  """
  def decayed(u, p):
    return (u + weight_decay * p).astype(u.dtype) if transforms.is_floating(p) else u

  return _on_kept(lambda updates, params: jax.tree.map(decayed, updates, params))


def masked_updates() -> optax.GradientTransformationExtraArgs:
  """Zeroes the updates of pruned weights, so that momentum gathered before does not move them.

  Last in a chain: it keeps latents where they were pruned.

  Example:
    >>> tx, params = masked_updates(), {'w': jnp.ones(2)}
    >>> updates, _ = tx.update({'w': jnp.ones(2)}, tx.init(params), params,
    ...                        masks={'w': jnp.array([True, False])})
    >>> updates['w'].tolist()
    [1.0, 0.0]
  """
  return _on_kept(lambda updates, params: updates)


def masked_clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
  """Scales updates so that their global norm over kept weights is at most `max_norm`.

  `optax.clip_by_global_norm` for sparse weights; updates of pruned weights become zero.

  Args:
    max_norm: largest l2 norm of all kept updates together.

  Example:
    >>> tx, params = masked_clip(5.0), {'w': jnp.ones(3)}
    >>> updates, _ = tx.update({'w': jnp.array([6.0, 8.0, 100.0])}, tx.init(params), params,
    ...                        masks={'w': jnp.array([True, True, False])})
    >>> updates['w'].tolist()
    [3.0, 4.0, 0.0]
  """
  def clip(updates, params):
    clipped, _ = optax.clip_by_global_norm(max_norm).update(updates, optax.EmptyState(), params)
    return clipped

  return _on_kept(clip)


def masked_rms_clip(threshold: float) -> optax.GradientTransformationExtraArgs:
  """Scales each weight's update so that its root mean square over kept entries is at most this.

  `optax.clip_by_block_rms` for sparse weights: the mean is over what is kept, where zeros of
  pruned entries would hide a large step. A weight with nothing left has no update.

  Args:
    threshold: largest root mean square of one weight's kept updates.

  Example:
    >>> tx, params = masked_rms_clip(2.0), {'w': jnp.ones(4)}
    >>> updates, _ = tx.update({'w': jnp.array([4.0, -4.0, 0.0, 0.0])}, tx.init(params), params,
    ...                        masks={'w': jnp.array([True, True, False, False])})
    >>> updates['w'].tolist()
    [2.0, -2.0, 0.0, 0.0]
  """
  def clip(updates, params, kept):
    def one(k, u):
      squares = jnp.square(u.astype(jnp.float32)).sum()
      count = k.sum() if k.ndim else jnp.asarray(u.size)
      rms = jnp.sqrt(squares / jnp.maximum(count, 1))
      return (u / jnp.maximum(1.0, rms / threshold)).astype(u.dtype)
    return _by_weight(one, kept, updates)

  return _on_kept(clip, counts=True)


def masked_adaptive_clip(clipping: float, eps: float = 1e-3
                         ) -> optax.GradientTransformationExtraArgs:
  """Clips each unit's update to a fraction of the norm of its kept weights.

  `optax.adaptive_grad_clip` (Brock et al., arXiv:2102.06171) for sparse weights: a unit that lost
  most of its inputs has a small norm, whatever stale values its pruned latents hold.

  Args:
    clipping: largest ratio of the update's norm to the weight's, by unit.
    eps: least norm a weight is taken to have.

  Example:
    >>> tx, params = masked_adaptive_clip(0.5), {'w': jnp.array([[2.0], [100.0]])}
    >>> updates, _ = tx.update({'w': jnp.array([[7.0], [0.0]])}, tx.init(params), params,
    ...                        masks={'w': jnp.array([[True], [False]])})
    >>> updates['w'].tolist()
    [[1.0], [0.0]]
  """
  def clip(updates, params):
    agc = optax.adaptive_grad_clip(clipping, eps)
    return agc.update(updates, agc.init(params), params)[0]

  return _on_kept(clip)


def _on_kept(change: Callable, counts: bool = False) -> optax.GradientTransformationExtraArgs:
  """`change(updates, params)`, both zero where pruned; with `counts` it gets the masks too."""
  @explicit_axes.left_to_xla(_places)
  def update(updates, state, params=None, *, masks, **extra):
    del extra
    if params is None:
      raise ValueError('This transformation needs params: tx.update(updates, state, params, '
                       'masks=...).')
    leaves, rebuild = names.named_leaves(params)
    kept = rebuild([_mask_of(leaf, masks) for leaf in leaves])
    zeroed = lambda tree: _by_weight(lambda k, x: jnp.where(k, x, jnp.zeros_like(x)), kept, tree)
    arguments = (zeroed(updates), zeroed(params)) + ((kept,) if counts else ())
    return zeroed(change(*arguments)), state

  return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _places(out, updates, *others, **extra):
  del out, others, extra
  return [explicit_axes.spec_of(u) for u in jax.tree.leaves(updates)]


def _by_weight(fn, kept, tree):
  # A format is one weight, and several arrays.
  return jax.tree.map(lambda k, part: jax.tree.map(lambda x: fn(k, x), part), kept, tree)


def _mask_of(leaf, masks):
  mask = masks.get(leaf.name)
  if mask is None:
    return jnp.ones((), bool)
  if mask.shape != jnp.shape(leaf.value):
    raise ValueError(f'{leaf.name}: the mask does not match the weight: found shape {mask.shape}, '
                     f'expected {jnp.shape(leaf.value)}.')
  return mask
