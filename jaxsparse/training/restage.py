"""Structure changes in the middle of training: host code, explicit, one recompilation."""

from typing import Any

import optax

from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.optimizers import moments


def restage(old: transforms.Transform, new: transforms.Transform, params: Any, state: Any,
            opt_state: Any, tx: optax.GradientTransformation, **extra) -> tuple[Any, Any, Any]:
  """Goes on with another transform: same effective weights, matching optimizer state carried over.

  Args:
    old: the transform so far.
    new: the one from here on.
    params: latents of `old`.
    state: state of `old`.
    opt_state: of `tx` on `params`.
    tx: the optimizer.
    **extra: what `new.init` takes besides params.

  Returns:
    `(params, state, opt_state)` of `new`; leaves of the optimizer state with the same path, shape
    and dtype keep their values, the step count among them.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> old, new, tx = jsp.identity(), jsp.low_rank(1), optax.adam(0.1)
    >>> params, state = old.init({'kernel': jnp.ones((4, 4))})
    >>> params, state, _ = restage(old, new, params, state, tx.init(params), tx)
    >>> params['kernel'].u.shape
    (4, 1)
  """
  params, state = new.init(formats.densify(old.apply(params, state)), **extra)
  return params, state, moments.transplant(tx.init(params), opt_state)
