"""Checkpoints: Orbax arrays, with the recipe and every leaf's path, shape and dtype beside them.

Orbax (0.12) casts a leaf silently when dtypes differ, does not name a leaf whose shape differs,
and merges keys such as `a.b` and `a/b`; so leaves are stored flat under escaped names, and the
description is compared before anything is restored.
"""

import json
import math
import pathlib
from typing import Any
from urllib import parse

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse.core import transform as transforms


def save_checkpoint(directory: Any, step: int, tree: Any,
                    transform: transforms.Transform | None = None, *, keep: int | None = None,
                    extra: dict[str, Any] | None = None) -> pathlib.Path:
  """Writes `tree` whole or not at all, its recipe beside it.

  Args:
    directory: holds one subdirectory a step.
    step: its number; an existing step is an error.
    tree: arrays (a TrainState, packed weights, anything).
    transform: its spelled form is the recipe; None records none.
    keep: newest steps to keep; None keeps all.
    extra: JSON values saved with the recipe (seed, data position, configuration).

  Returns:
    The directory of the step.

  Raises:
    ValueError: the step exists, the transform has no spelled form, or a leaf is not finite.

  Example:
    >>> import tempfile, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> params, state = transform.init({'kernel': jnp.ones((4, 4))})
    >>> with tempfile.TemporaryDirectory() as d:
    ...   _ = save_checkpoint(d, 3, (params, state), transform)
    ...   (params, _), step, _ = restore_checkpoint(d, (params, state), transform)
    >>> step, float(params['kernel'].sum())
    (3, 16.0)
  """
  flat = _flatten(tree)
  broken = [name for name, x in flat.items() if not _finite(x)]
  if broken:
    raise ValueError(f'Not saved: {", ".join(map(parse.unquote, broken))} at step {step} has '
                     'values that are NaN or infinite.')
  about = {
      'recipe': None if transform is None else transforms.spell_transform(transform),
      'leaves': {name: [list(np.shape(x)), str(_dtype(x))] for name, x in flat.items()},
      'extra': extra or {},
  }
  json.dumps(about, allow_nan=False)   # fails here, before anything is written
  arrays = {name: _array(x) for name, x in flat.items() if math.prod(np.shape(x))}
  with _manager(directory, keep, create=True) as manager:
    if step in manager.all_steps():
      raise ValueError(f'{directory}: step {step} exists already.')
    manager.save(step, args=ocp.args.Composite(
        tree=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)))
    manager.wait_until_finished()
  return pathlib.Path(directory) / str(step)


def restore_checkpoint(directory: Any, like: Any, transform: transforms.Transform | None = None, *,
                       step: int | None = None) -> tuple[Any, int, dict[str, Any]]:
  """Reads a checkpoint into the structure, shapes, dtypes and shardings of `like`.

  Args:
    directory: what was given to `save_checkpoint`.
    like: a tree of arrays or `jax.ShapeDtypeStruct`s (with shardings, on a mesh).
    transform: the recipe expected; None accepts any.
    step: which; the newest when None.

  Returns:
    `(tree, step, extra)`.

  Raises:
    ValueError: there is no such step; or recipe, path, shape or dtype differ (the message lists
      what was found and what was expected); nothing is restored then.
  """
  with _manager(directory, None, create=False) as manager:
    steps = sorted(manager.all_steps())
    step = (steps[-1] if steps else None) if step is None else step
    if step not in steps:
      raise ValueError(f'{directory}: no checkpoint of step {step}; found {steps}.')
    about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
    if transform is not None:
      expected = transforms.spell_transform(transform)
      if about['recipe'] != expected:
        raise ValueError(f'{directory}, step {step}: the recipe differs:\n'
                         f'  found    {about["recipe"]}\n  expected {expected}')
    flat = _flatten(like)
    _compare(about['leaves'], flat, f'{directory}, step {step}')
    targets = {name: _abstract(x) for name, x in flat.items() if math.prod(np.shape(x))}
    arrays = manager.restore(step, args=ocp.args.Composite(
        tree=ocp.args.StandardRestore(targets))).tree
  leaves = [_like(arrays[name], x) if name in arrays else x for name, x in flat.items()]
  return jax.tree.unflatten(jax.tree.structure(like), leaves), step, about['extra']


def _manager(directory, keep, create):
  path = pathlib.Path(directory).resolve()
  if not create and not path.is_dir():
    raise ValueError(f'{directory}: no checkpoint directory there.')
  options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=create, enable_async_checkpointing=False)
  return ocp.CheckpointManager(path, options=options)


def _flatten(tree) -> dict[str, Any]:
  flat, _ = jax.tree_util.tree_flatten_with_path(tree)
  escape = lambda path: parse.quote(jax.tree_util.keystr(path), safe='').replace('.', '%2E')
  return {escape(path): x for path, x in flat}


def _is_key(x) -> bool:
  return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _dtype(x):
  return x.dtype if hasattr(x, 'dtype') else f'python {type(x).__name__}'


def _array(x):
  return jax.random.key_data(x) if _is_key(x) else x if hasattr(x, 'dtype') else np.asarray(x)


def _abstract(x):
  x = _array(x)
  sharding = getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _like(array, x):
  if _is_key(x):
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(x))
  return array if hasattr(x, 'dtype') else type(x)(np.asarray(array))


def _finite(x) -> bool:
  x = _array(x)
  return not jnp.issubdtype(x.dtype, jnp.inexact) or bool(jnp.isfinite(x).all())


def _compare(found, flat, where):
  expected = {name: [list(np.shape(x)), str(_dtype(x))] for name, x in flat.items()}
  shown = lambda leaves, name: '{1}{0}'.format(*leaves[name]) if name in leaves else 'nothing'
  differ = [f'  {parse.unquote(name)}: found {shown(found, name)}, expected '
            f'{shown(expected, name)}' for name in sorted({*found, *expected})
            if found.get(name) != expected.get(name)]
  if differ:
    raise ValueError('\n'.join([f'{where}: the tree differs:', *differ]))
