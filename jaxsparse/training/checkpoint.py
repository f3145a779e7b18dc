"""One checkpoint at a time: save, and go on when it is committed; restore into a tree.

`CheckpointStore` does the same behind a training loop; the directories are the same.
"""

import pathlib
from typing import Any

from jaxsparse.core import transform as transforms
from jaxsparse.training import store as stores


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
    SaveError: it could not be written; earlier steps are whole.

  Example:
    >>> import tempfile, jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.nm(2, 4)
    >>> params, state = transform.init({'kernel': jnp.ones((4, 4))})
    >>> with tempfile.TemporaryDirectory() as d:
    ...   _ = save_checkpoint(d, 3, (params, state), transform)
    ...   (params, _), step, _ = restore_checkpoint(d, (params, state), transform)
    >>> step, float(params['kernel'].sum())
    (3, 16.0)
  """
  with stores.CheckpointStore(directory, transform, keep=keep) as store:
    store.save(step, tree, extra=extra)
    store.wait()
  return pathlib.Path(directory) / str(step)


def restore_checkpoint(directory: Any, like: Any, transform: transforms.Transform | None = None, *,
                       step: int | None = None) -> tuple[Any, int, dict[str, Any]]:
  """Reads a checkpoint into the structure, shapes, dtypes and shardings of `like`.

  Args:
    directory: what was given to `save_checkpoint`.
    like: a tree of arrays or `jax.ShapeDtypeStruct`s (with shardings, on a mesh).
    transform: the recipe expected; None accepts any.
    step: which; the newest intact one when None.

  Returns:
    `(tree, step, extra)`.

  Raises:
    NoCheckpoint: a ValueError; there is no such step, or none that is intact.
    ValueError: recipe, path, shape or dtype differ (the message lists what was found and what was
      expected); nothing is restored then.
  """
  with stores.CheckpointStore(directory, transform) as store:
    restored = store.restore(like, step=step)
  return restored.tree, restored.step, restored.extra
