"""Scores of weights: functions `(w, *, grads, stats) -> scores`; larger is kept.

`w` is a matrix `[*batch, R, O]`; `grads` and `stats` are of the same weight, or None. A criterion
names the keywords it wants. To add one, write the function and pass it to `prune`.
"""

import jax
import jax.numpy as jnp


def magnitude(w: jax.Array) -> jax.Array:
  """`|w|` (Han et al., arXiv:1506.02626).

  Example:
    >>> magnitude(jnp.array([[-2.0]])).item()
    2.0
  """
  return jnp.abs(w.astype(jnp.float32))


def saliency(w: jax.Array, *, grads) -> jax.Array:
  """`|w dL/dw|`, the first-order change of the loss (Lee et al., "SNIP", arXiv:1810.02340).

  Raises:
    ValueError: no gradients were given: `init(params, grads=...)`, `update(..., grads=...)`.

  Example:
    >>> saliency(jnp.array([[-2.0]]), grads=jnp.array([[3.0]])).item()
    6.0
  """
  if grads is None:
    raise ValueError('saliency needs gradients; expected grads=, found None.')
  return jnp.abs(w.astype(jnp.float32) * grads.astype(jnp.float32))
