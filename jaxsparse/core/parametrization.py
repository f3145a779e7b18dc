"""How one weight is held, and the lift from one weight to a tree."""

from typing import Callable, NamedTuple

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.numerics import axes
from jaxsparse.numerics import hashing


class Parametrization(NamedTuple):
  """How one weight is held. Sees a matrix `[*batch, R, O]`.

  Each function receives, of the keywords offered, those that it names. `seed` is a PRNG key made
  of the transform's seed, the weight's name and, except in `init`, the count.

  Attributes:
    init: `(w, *, stats, grads, seed, layout, name) -> (latents, state)`; `stats` and `grads` are
      this weight's, or None. Latents are an array or a NamedTuple of arrays; a class attribute
      `__latents__` of the latter lists the fields that stages to the left may transform (a field
      `w` then keeps the weight's name). Without it all fields count, each under its own name.
    apply: `(latents, state, *, count, seed, layout) -> w`, a matrix or a format.
    update: `(latents, state, *, count, seed, grads, refresh) -> state`; None keeps the state.
    pack: `(latents, state, *, layout, stored) -> format or matrix`; None means `apply`. `stored`
      is the format an earlier stage of a chain packed this weight to, or the latents where it
      packed some of those to formats, or None.
  """

  init: Callable
  apply: Callable
  update: Callable | None = None
  pack: Callable | None = None


def leafwise(parametrization: Parametrization, *, seed: int = 0,
             spec: transforms.Spec = transforms.Spec()) -> transforms.Transform:
  """Lifts one weight's story to every selected weight of a tree.

  It selects floating arrays of rank 2 or more within what `at` let through, no biases and scales
  of norms, hands each over as the matrix `[*batch, R, O]` of its roles, keys state by weight, and
  counts updates.

  Args:
    parametrization: how one weight is held.
    seed: what random methods derive their noise from.
    spec: what is static.

  Returns:
    A Transform.

  Example:
    >>> import jax.numpy as jnp
    >>> double = leafwise(Parametrization(lambda w: (w / 2, ()), lambda w, state: w * 2))
    >>> params, state = double.init({'kernel': jnp.ones((2, 2))})
    >>> float(params['kernel'][0, 0]), float(double.apply(params, state)['kernel'][0, 0])
    (0.5, 1.0)
  """
  p = parametrization
  one = lambda tree, key: None if tree is None else tree.get(key)

  def init(matrices, *, layouts, stats, grads, **extra):
    latents, states = {}, {}
    for key, w in matrices.items():
      name = names.name_of(key)
      try:
        latents[key], states[key] = weights.offered(
            p.init, stats=one(stats, key), grads=one(grads, key), layout=layouts[key], name=name,
            seed=hashing.key_of(seed, key), **extra)(w)
      except ValueError as error:
        if str(error).startswith(name):
          raise
        raise ValueError(f'{name}: {error}') from error
    return latents, states

  def each(function):
    def run(latents, states, *, layouts, count, stored):
      return {key: weights.offered(
          function, layout=layouts[key], count=count, stored=stored[key],
          seed=hashing.key_of(seed, key, count))(x, states[key]) for key, x in latents.items()}
    return run

  def update(latents, states, *, layouts, count, grads, refresh, **extra):
    return {key: weights.offered(
        p.update, layout=layouts[key], count=count, grads=one(grads, key), refresh=refresh,
        seed=hashing.key_of(seed, key, count), **extra)(x, states[key])
            for key, x in latents.items()}

  return weights.treewise(init, each(p.apply), update if p.update else None,
                          each(p.pack) if p.pack else None, spec=spec)


def freeze(parametrization: Parametrization) -> Parametrization:
  """The same weight with nothing left to train: its latents move into state.

  Example:
    >>> frozen = freeze(Parametrization(lambda w: (w, ()), lambda w, state: w))
    >>> frozen.init(1.0)
    (Frozen(), (1.0, ()))
  """
  p = parametrization

  def init(w, **offer):
    return names.Frozen(), weights.offered(p.init, **offer)(w)

  def lift(function):
    return lambda latents, state, **offer: weights.offered(function, **offer)(*state)

  return Parametrization(init, lift(p.apply), None, lift(p.pack) if p.pack else None)


def of_transform(transform: transforms.Transform) -> Parametrization:
  """A transform as the story of one matrix, so that one method takes another as an argument.

  The matrix is handed over as a tree of one leaf, under the weight's name; no method needs to
  know another (`lora(base=nf4())`). Latents are that tree.
  """
  def init(w, *, name, stats=None, grads=None):
    return transform.init(
        {name: w}, axes={name: axes.default_axes(w.ndim)},
        stats=None if stats is None else {name: stats},
        grads=None if grads is None else {name: grads})

  def only(tree):
    (value,) = tree.values()
    return value

  return Parametrization(
      init, lambda latents, state: only(formats.densify(transform.apply(latents, state))),
      None, lambda latents, state: only(transform.pack(latents, state)))
