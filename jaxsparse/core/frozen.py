"""Weights that are not trained: held in state, where no optimizer keeps moments of them."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats


def frozen() -> transforms.Transform:
  """Holds every floating array it is given, whatever its rank, exactly as it is.

  `rules([('.*/kernel', lora(8)), ('.*', frozen())])` trains the adapters and nothing else: the
  optimizer sees no other parameter, and keeps no moments for them.

  Returns:
    A Transform whose latents are `Frozen()`, whose state is the arrays; integers stay as they are.

  Example:
    >>> import jaxsparse as jsp
    >>> params, state = frozen().init({'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)})
    >>> params, frozen().apply(params, state)['bias'].tolist()
    ({'bias': Frozen(), 'kernel': Frozen()}, [1.0, 1.0])
  """
  def init(params, *, only=None, **_):
    leaves, rebuild = names.named_leaves(params)
    picked = {leaf.key: jnp.asarray(formats.densify(leaf.value)) for leaf in leaves
              if transforms.is_floating(leaf.value) and (only is None or leaf.name in only)}
    entries = tuple((key, weights.Entry(_layout(x), 'Frozen()')) for key, x in picked.items())
    state = weights.WeightsState(jnp.zeros([], jnp.int32), picked, entries)
    return rebuild([names.Frozen() if leaf.key in picked else leaf.value
                    for leaf in leaves]), state

  def apply(params, state):
    leaves, rebuild, _, found = weights.matched(params, state)
    return rebuild([state.weights[leaf.key] if leaf.key in found else leaf.value
                    for leaf in leaves])

  def update(params, state, **_):
    weights.matched(params, state)
    return dataclasses.replace(state, count=optax.safe_increment(state.count))

  return transforms.Transform(init, apply, update, apply, transforms.Spec(
      spell.call(frozen, {}), restructures=True, takes_formats=True, regrows=False))


def _layout(x: jax.Array) -> roles.Layout:
  # A vector is all output: it has the roles of no matrix.
  axes = roles.axes.default_axes(x.ndim) if x.ndim >= 2 else ((), tuple(range(x.ndim)))
  return roles.Layout(x.shape, x.dtype, roles.DimensionNumbers(*axes))
