"""The noun: `Transform`, a reparametrization of a tree of weights, with memory.

Precedent: optax's `GradientTransformation`. Four pure functions and a static `spec`; everything
in the library is a factory that returns one, or a combinator that takes and returns them.
"""

from typing import Any, Callable, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxsparse.core import spelling as spell

Params = chex.ArrayTree   # the model's own container: linen dict, nnx.State, dataclass, ...
State = chex.ArrayTree    # arrays; what is static about each weight is in the tree's structure


def never(count: int) -> bool:
  """No expensive update is ever due."""
  del count
  return False


class Spec(NamedTuple):
  """What is static about a transform.

  Attributes:
    spelling: its spelled form; None when it was made by hand.
    due: whether `update` has expensive work at a count (an int), such as new masks.
    restructures: whether latent params may have another structure than the model's.
    parts: transforms a combinator is made of, in the order of its state tuple.
    takes_formats: whether `apply` and `pack` accept formats that an earlier stage returned; they
      are densified before a stage that does not.
    projects: whether `apply` only sets entries to zero, so that doing it twice is doing it once and
      latents may be kept as it leaves them: a training step then projects what the optimizer
      made, in the same pass, and the forward pass reads the weights as they are.
    regrows: whether `update` may bring back what was pruned, which `realign` then sets to zero.
    dense_updates: whether `apply` returns formats while `update` ranks what they leave out, so that
      a step with an expensive update differentiates the dense weights.
    final_masks: `{key: Layout}` to `{key: bool [*batch, R, O]}`: masks with the zeros that the
      schedule ends with, where the pattern allows them; None for what does not prune.
    backward_masks: likewise of a state's field `backward`: entries that have a gradient, kept or
      not, where `apply` sees each entry by itself and `update` needs no gradient. None elsewhere.
    needs: what `init` cannot do without: `'stats'`, statistics of the observer `gram`, and the kind
      of its `grads`: `'mean_gradient'`, `'rms_gradient'`, `'hessian_gradient'` or
      `'flow_gradient'`, functions of `jaxsparse.criteria`.
    next_stage: `(params, state, stages.Course) -> stages.Turn or None`: host code that a run asks
      between two steps, which may answer with the transform to go on with; None stays for good.
  """

  spelling: Any = None
  due: Callable[[int], bool] = never
  restructures: bool = False
  parts: tuple['Transform', ...] = ()
  takes_formats: bool = False
  projects: bool = False
  regrows: bool = True
  dense_updates: bool = False
  final_masks: Callable | None = None
  backward_masks: Callable | None = None
  needs: frozenset[str] = frozenset()
  next_stage: Callable | None = None


class Transform(NamedTuple):
  """A reparametrization of a tree of weights, with memory.

  Attributes:
    init: `(params, *, stats=None, grads=None, axes=None, **extra) -> (params, state)`. The right
      inverse of `apply`: takes effective weights, returns latents in the same container, a leaf
      replaced by an array, a NamedTuple of arrays, or `Frozen()`. `stats` are calibration
      statistics by weight name, `grads` a tree like `params`, `axes` roles by weight name; `only`
      a set of weight names: others are left as they are, and the state says nothing of them.
    apply: `(params, state) -> effective params`; all that the loss differentiates through.
      Returns arrays, or formats where a factored computation is wanted (`densify` them).
    update: `(params, state, *, grads=None, refresh=None, **extra) -> state`. `grads` is the
      gradient with respect to this transform's output. `refresh` None decides inside, from the
      state's count; True or False is a straight-line program.
    pack: `(params, state) -> effective params`, with compressed weights as formats.
    spec: what is static.

  The optimizer owns `params`, the transform owns `state`; neither writes the other's.
  """

  init: Callable[..., tuple[Params, State]]
  apply: Callable[[Params, State], Params]
  update: Callable[..., State]
  pack: Callable[[Params, State], Params]
  spec: Spec = Spec()

  def __repr__(self):
    return f'Transform({spell_or(self, "made by hand")})'


def spell_or(transform: Transform, otherwise: str) -> str:
  """The spelled form, or `otherwise` where there is none."""
  try:
    return spell_transform(transform)
  except ValueError:
    return otherwise


def spell_transform(transform: Transform) -> str:
  """The spelled form of a transform: `parse(spell(t))` makes an equal one.

  Raises:
    ValueError: it was made by hand, or from an argument without a spelled form.

  Example:
    >>> import jaxsparse as jsp
    >>> jsp.spell(jsp.chain(jsp.nm(2, 4), jsp.fake_quantize('int8')))
    "nm(2, 4) | fake_quantize('int8')"
  """
  if transform.spec.spelling is None:
    raise ValueError('This transform was made by hand; only registered words have a spelled form.')
  return spell.spell_value(transform.spec.spelling)


def identity() -> Transform:
  """Leaves every weight as it is.

  Example:
    >>> identity().apply({'w': 1.0}, ())
    {'w': 1.0}
  """
  return Transform(
      init=lambda params, **_: (params, ()),
      apply=lambda params, state: params,
      update=lambda params, state, **_: state,
      pack=lambda params, state: params,
      spec=Spec(spell.call(identity, {}), takes_formats=True, projects=True,
                regrows=False))


def is_floating(x: Any) -> bool:
  """Whether `x` is an array that can be differentiated."""
  return hasattr(x, 'dtype') and jnp.issubdtype(x.dtype, jnp.inexact)


def is_traced(tree: Any) -> bool:
  """Whether an array of the tree, formats included, has no values yet."""
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


def pullback(fn: Callable, params: Params):
  """`fn(params)` and its vector-Jacobian product, with integer leaves carried along as they are.

  Args:
    fn: of a tree; returns a tree.
    params: a tree.

  Returns:
    `(out, pull)`; `pull(cotangents like out)` is a tree like `params`, zeros at integer leaves.
  """
  leaves, treedef = jax.tree.flatten(params)
  inputs = [x for x in leaves if is_floating(x)]

  def merged(inputs):
    inputs = iter(inputs)
    return treedef.unflatten([next(inputs) if is_floating(x) else x for x in leaves])

  outside = []

  def floating_outputs(inputs):
    out, structure = jax.tree.flatten(fn(merged(inputs)))
    outside[:] = [(structure, [None if is_floating(x) else x for x in out])]
    return [x for x in out if is_floating(x)]

  outputs, vjp = jax.vjp(floating_outputs, inputs)
  structure, others = outside[0]
  outputs = iter(outputs)
  out = structure.unflatten([next(outputs) if x is None else x for x in others])

  def pull(cotangents):
    given = structure.flatten_up_to(cotangents)
    (grads,) = vjp([g for g, x in zip(given, others) if x is None])
    grads = iter(grads)
    return treedef.unflatten([next(grads) if is_floating(x) else jnp.zeros_like(x)
                              for x in leaves])

  return out, pull
