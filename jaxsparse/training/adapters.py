"""Adapters saved alone: what was trained beside a base, its recipe, and which base that was."""

import pathlib
from typing import Any

import jax

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.formats import low_rank
from jaxsparse.training import fingerprints
from jaxsparse.training import store as stores


def save_adapter(directory: Any, transform: transforms.Transform, params: Any,
                 state: Any) -> pathlib.Path:
  """Writes the latents that stand in weights' places, and no base: kilobytes, not the model.

  Args:
    directory: a new one.
    transform: such as `lora`, with a spelled form, which is saved as the recipe.
    params: its latents.
    state: its state; of the bases in it only fingerprints are saved.

  Returns:
    The directory.

  Raises:
    ValueError: no weight shows a base with an adapter, a stage to its left compresses the factors
      themselves (their masks would be lost: use `save_checkpoint`), the directory has an adapter
      already, or a latent is not finite; SaveError: it could not be written.

  Example:
    >>> import tempfile, jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.lora(1)
    >>> params, state = transform.init({'kernel': jnp.ones((2, 2)), 'bias': jnp.ones(2)})
    >>> trained = params | {'kernel': jsp.Lora(jnp.ones((2, 1)), jnp.ones((1, 2)))}
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   _ = save_adapter(directory, transform, trained, state)
    ...   load_adapter(directory, transform, params, state)['kernel'].b.tolist()
    [[1.0, 1.0]]
  """
  bases = _base_prints(transform, params, state)
  inside = sorted(names.name_of(key) for key in _states(state) if ':' in key)
  if inside:
    raise ValueError(f'{inside[0]}: an adapter whose factors are compressed themselves is not '
                     'saved alone; save it with its state, by save_checkpoint.')
  with stores.CheckpointStore(directory, transform, keep=None) as store:
    store.save(0, _latents(_settled(params, state)), extra={'bases': bases})
    store.wait()
  return pathlib.Path(directory)


def load_adapter(directory: Any, transform: transforms.Transform, params: Any, state: Any) -> Any:
  """Latents with a saved adapter in place of their own; what is not adapted stays.

  Args:
    directory: what `save_adapter` was given.
    transform: with the same spelled form.
    params: latents on the base at hand, such as those fresh from `transform.init`.
    state: their state.

  Returns:
    A tree like `params`.

  Raises:
    NoCheckpoint: there is no adapter; ValueError: the recipe or the shapes differ, or the adapter
      was trained on another base (the message names the weights).
  """
  bases = _base_prints(transform, params, state)
  with stores.CheckpointStore(directory, transform) as store:
    restored = store.restore(_latents(params), step=0)
  saved = restored.extra['bases']
  wrong = sorted(name for name in {*bases, *saved} if bases.get(name) != saved.get(name))
  if wrong:
    raise ValueError(f'{directory}: the adapter was trained on another base: '
                     f'{", ".join(wrong[:10])}{" and more" if len(wrong) > 10 else ""} '
                     'differ; initialize the transform on the weights that it was trained on.')
  leaves, rebuild = names.named_leaves(params)
  return rebuild([restored.tree.get(leaf.key, leaf.value) for leaf in leaves])


def _latents(params) -> dict[str, Any]:
  return {leaf.key: leaf.value for leaf in names.named_leaves(params)[0] if ':' in leaf.key}


def _settled(params, state):
  """Latents that need no state but the base: what a state has pruned is zero in them."""
  states = {key: value for key, value in _states(state).items() if hasattr(value, 'settled')}
  nodes, rebuild = names.named_leaves(params, stop=set(states))
  return rebuild([states[node.key].settled(node.value) if node.key in states else node.value
                  for node in nodes])


def _states(state) -> dict[str, Any]:
  """What the stages of a transform remember, by key; not what a base remembers inside."""
  is_state = lambda x: isinstance(x, weights.WeightsState)
  return {key: value for node in jax.tree.leaves(state, is_leaf=is_state) if is_state(node)
          for key, value in node.weights.items()}


def _base_prints(transform, params, state) -> dict[str, list[int]]:
  """{weight name: fingerprint of the base that the model sees}."""
  shown = {leaf.name: leaf.value for leaf in names.named_leaves(transform.apply(params, state))[0]}
  bases = {name: w.base for name, w in shown.items()
           if isinstance(w, low_rank.LowRankArray) and w.base is not None}
  if not bases:
    raise ValueError('No weight shows an adapter: expected a transform such as lora(), as the last '
                     'stage where it is in a chain.')
  flat = {name: formats.densify(base) for name, base in bases.items()}
  prints, _ = fingerprints.measure(flat)
  return {name: list(map(int, prints[name])) for name in flat}
