"""One backward pass, two gradients: of the weights the model saw and of the latents behind them."""

from typing import Any, Callable

import jax

from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats


def value_and_grad(loss_fn: Callable, transform: transforms.Transform, *, has_aux: bool = False,
                   dense: bool = True, projected: bool = False) -> Callable:
  """The loss with gradients of latent and of effective parameters.

  The loss is differentiated once, with respect to the effective weights; that gradient is then
  pulled back through `transform.apply`. RigL grows by the one, the optimizer steps by the other.

  Args:
    loss_fn: `(effective params, *args) -> loss`, or `(loss, aux)` with `has_aux`.
    transform: any transform.
    has_aux: whether the loss returns auxiliary outputs.
    dense: hand the loss arrays; False hands formats to a dispatched loss.
    projected: the params are already what `apply` makes of them, as `Spec.projects` allows: the
      loss reads them as they are.

  Returns:
    `fn(params, state, *args) -> (loss or (loss, aux), grads, effective_grads)`. Integer leaves
    have zero gradients.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(1, 2)
    >>> params, state = transform.init({'kernel': jnp.array([[1.0], [2.0]])})
    >>> fn = value_and_grad(lambda p: p['kernel'].sum(), transform)
    >>> loss, grads, effective_grads = fn(params, state)
    >>> float(loss), grads['kernel'].tolist(), effective_grads['kernel'].tolist()
    (2.0, [[0.0], [1.0]], [[1.0], [1.0]])
  """
  def fn(params: Any, state: Any, *args):
    def view(p):
      effective = transform.apply(p, state)
      return formats.densify(effective) if dense else effective

    effective, pull = transforms.pullback(view, params)
    effective = params if projected else effective
    leaves, treedef = jax.tree.flatten(effective)
    floating = [transforms.is_floating(x) for x in leaves]

    def loss_of(inputs):
      inputs = iter(inputs)
      merged = [next(inputs) if f else x for f, x in zip(floating, leaves)]
      return loss_fn(treedef.unflatten(merged), *args)

    value, found = jax.value_and_grad(loss_of, has_aux=has_aux)(
        [x for f, x in zip(floating, leaves) if f])
    found = iter(found)
    effective_grads = treedef.unflatten(
        [next(found) if f else jax.numpy.zeros_like(x) for f, x in zip(floating, leaves)])
    return value, pull(effective_grads), effective_grads

  return fn
