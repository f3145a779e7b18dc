"""A transform as an optax gradient transformation, for code that only knows optax."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import masks
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.optimizers import moments


class WrapState(NamedTuple):
  """State of a wrapped optimizer."""

  inner: Any       # the optimizer's
  transform: Any   # the transform's


def wrap(tx: optax.GradientTransformation,
         transform: transforms.Transform) -> optax.GradientTransformationExtraArgs:
  """`tx` on the latents of `transform`, whose state rides in the optimizer state.

  Take gradients at the effective weights, `transform.apply(params, opt_state.transform)`, and
  hand them over as they are; they are pulled back through `apply` here. Where the transform only
  sets entries to zero, the updates make pruned params zero.

  Args:
    tx: any optax optimizer; extra arguments are passed on to it, and `masks` as `masked_decay` and
      its like need them.
    transform: one whose latents have the structure of the params (pruning, `fake_quantize`).

  Returns:
    An optax transformation with state `WrapState(inner, transform)`.

  Raises:
    ValueError: (in `init`) the transform restructures params, or (in `update`) params are missing.

  Example:
    >>> import jaxsparse as jsp
    >>> tx = wrap(optax.sgd(0.1), jsp.magnitude(0.5))
    >>> params = {'kernel': jnp.array([[1.0, 2.0]])}
    >>> updates, _ = tx.update({'kernel': jnp.ones((1, 2))}, tx.init(params), params)
    >>> (params['kernel'] + updates['kernel']).tolist()
    [[0.0, 1.899999976158142]]
  """
  tx = optax.with_extra_args_support(tx)

  def init(params):
    latents, state = transform.init(params)
    if jax.tree.structure(latents) != jax.tree.structure(params):
      raise ValueError(
          f'{transforms.spell_or(transform, "This transform")} restructures params, so it cannot '
          'hide in an optimizer; use transform.init and train_step instead.')
    return WrapState(tx.init(latents), state)

  def update(grads, state, params=None, **extra):
    if params is None:
      raise ValueError('wrap needs params: tx.update(grads, state, params).')
    dense = lambda p: formats.densify(transform.apply(p, state.transform))
    _, pull = transforms.pullback(dense, params)
    extra = {'masks': masks.pruned_masks(state.transform)} | extra
    updates, inner = tx.update(pull(grads), state.inner, params, **extra)
    moved = optax.apply_updates(params, updates)
    new = transform.update(moved, state.transform, grads=grads)
    aligned = moved
    if transform.spec.regrows:
      aligned, inner = moments.realign(tx, moved, inner, state.transform, new)
    if transform.spec.projects:
      aligned = transform.apply(aligned, new)
    # Where a weight was zeroed the update is exactly -p; elsewhere it is the optimizer's own.
    updates = jax.tree.map(lambda u, p, m, a: jnp.where(m == a, u, a - p),
                           updates, params, moved, aligned)
    return updates, WrapState(inner, new)

  return optax.GradientTransformationExtraArgs(init, update)
