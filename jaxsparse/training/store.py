"""Checkpoints that are committed or do not exist, written behind the training loop.

Orbax writes the arrays asynchronously into `<step>.writing`; then the manifest is written there
(SHA-256 of every file, fingerprint of every leaf), and renaming the directory to `<step>` commits.
Orbax alone lists a step whose write failed, restores flipped bits and casts dtypes silently, and
takes 2 ms of CPU a leaf: small leaves are therefore packed into one array of bytes.
"""

import errno
import json
import operator
import pathlib
from typing import Any, Callable, NamedTuple
from urllib import parse

import jax
import orbax.checkpoint as ocp
from absl import logging

from jaxsparse.core import transform as transforms
from jaxsparse.training import directories
from jaxsparse.training import fingerprints
from jaxsparse.training import hosts
from jaxsparse.training import leaves
from jaxsparse.training import manifest
from jaxsparse.training import writer


class NonFiniteError(ValueError):
  """A state with a NaN or an infinity was to be saved."""


class NoCheckpoint(ValueError):
  """There is no intact checkpoint to restore."""


class Restored(NamedTuple):
  """What `CheckpointStore.restore` gives back.

  Attributes:
    tree: of the structure, dtypes and shardings of `like`.
    step: it belongs to.
    extra: the JSON values given to `save`.
    skipped: `(step, reason)` of newer steps found damaged and set aside.
  """

  tree: Any
  step: int
  extra: dict[str, Any]
  skipped: list[tuple[int, str]]


class CheckpointStore:
  """Checkpoints of one run in one directory of a POSIX file system that all processes share.

  With several processes, all of them make the store (after `jax.distributed.initialize`) and call
  `save`, `wait`, `restore` and `close`, in the same order, `save` at steps known to all: what
  `failure` tells may come some steps earlier on one than on another. Damaged steps are never
  deleted; whoever has looked at a `<step>.damaged` removes it.

  Example:
    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as d, CheckpointStore(d) as store:
    ...   store.save(3, {'w': jnp.arange(4.0)}, extra={'seed': 0})
    ...   store.wait()
    ...   tree, step, extra, skipped = store.restore({'w': jnp.zeros(4)})
    >>> tree['w'].tolist(), step, extra, skipped
    ([0.0, 1.0, 2.0, 3.0], 3, {'seed': 0}, [])
  """

  def __init__(self, directory: Any, transform: transforms.Transform | None = None, *,
               keep: int | None = 3, timeout_seconds: float = 120):
    """Touches nothing on disk.

    Args:
      directory: holds one subdirectory a step; made by the first save.
      transform: its spelled form is the recipe written and expected; None writes none and accepts
        any.
      keep: newest committed steps to keep; None keeps all.
      timeout_seconds: how long a save waits for the slowest process.

    Raises:
      ValueError: the transform has no spelled form, `keep` is below 1, or the directory is a URL.
    """
    if keep is not None and keep < 1:
      raise ValueError(f'keep: expected at least 1 step or None, found {keep}.')
    if '://' in str(directory):
      raise ValueError(f'{directory}: expected a directory of a file system; mount the bucket.')
    self._directories = directories.StepDirectories(pathlib.Path(directory).absolute())
    self._recipe = None if transform is None else transforms.spell_transform(transform)
    self._hosts = hosts.Hosts(self._directories.root, timeout_seconds)
    self._writer = writer.Writer(self._directories, self._hosts, keep, timeout_seconds)
    self._restores = 0

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def directory(self) -> pathlib.Path:
    """Where the steps are."""
    return self._directories.root

  def steps(self) -> list[int]:
    """Committed steps, ascending, as they are on disk."""
    return self._directories.committed()

  def save(self, step: int, tree: Any, *, extra: dict[str, Any] | None = None,
           transform: transforms.Transform | None = None) -> None:
    """Starts writing a tree; returns once its buffers may be donated.

    Args:
      step: its number, not yet committed.
      tree: arrays (a TrainState, packed weights, anything).
      extra: JSON values to keep with it (seed, data position, configuration).
      transform: whose recipe is written, where a run has gone on to another than the store's.

    Raises:
      NonFiniteError: naming the leaves with a NaN or an infinity; nothing is written.
      ValueError: the step is negative or committed already, or `extra` holds a NaN.
      TypeError: a leaf is neither array nor Python number, or `extra` is no JSON.
    """
    step = operator.index(step)
    if step < 0:
      raise ValueError(f'step: expected a number from 0, found {step}.')
    recipe = self._recipe if transform is None else transforms.spell_transform(transform)
    about = {'step': step, 'recipe': recipe, 'extra': extra or {}}
    json.dumps(about, allow_nan=False)
    flat = fingerprints.flatten(tree)
    prints, broken = fingerprints.measure(flat)
    if broken:
      raise NonFiniteError(f'Not saved: {", ".join(map(parse.unquote, broken))} at step {step} has '
                           'values that are NaN or infinite.')
    entries, arrays = leaves.to_disk(flat, prints)
    about |= {'leaves': entries, 'processes': self._hosts.count}
    self._writer.join()
    self._writer.start(step, about, arrays, fingerprints.combine(flat, prints))

  def failure(self) -> writer.SaveError | None:
    """What went wrong with a save and was not told yet; cheap enough for every step."""
    return self._writer.failure()

  def wait(self) -> None:
    """Waits until the last save is committed.

    Raises:
      SaveError: a save failed and `failure` did not tell it yet.
    """
    self._writer.join()
    found = self._writer.failure()
    if found is not None:
      raise found

  def close(self) -> None:
    """Waits and lets go of Orbax's threads; a failure nobody asked for is logged."""
    self._writer.close()
    found = self._writer.failure()
    if found is not None:
      logging.error('%s', found)

  def restore(self, like: Any = None, *, step: int | None = None,
              like_of: Callable[[str | None, dict[str, Any]], Any] | None = None) -> Restored:
    """Reads the newest intact step, setting damaged ones aside as `<step>.damaged`.

    Args:
      like: a tree of arrays or `jax.ShapeDtypeStruct`s, with the shardings wanted.
      step: read this one only.
      like_of: `(recipe, extra) -> like`, in place of `like` and of the comparison of recipes, for
        runs whose transform changes on the way; it raises a ValueError for what is not theirs.

    Returns:
      A `Restored`.

    Raises:
      NoCheckpoint: there is no intact one.
      ValueError: recipe, paths, shapes or dtypes are not those of `like`; all differences are
        listed, and nothing is set aside.
    """
    self._writer.join()
    like_of = like_of or (lambda recipe, extra: self._same_recipe(recipe, like))
    found = self._gather(self._directories.found())[0]
    skipped = []
    for number in sorted(found, reverse=True) if step is None else {step} & {*found}:
      tree, about, reason = self._read(number, like_of)
      if reason is None:
        return Restored(tree, number, about['extra'], skipped)
      logging.warning('%s: step %d is damaged: %s', self._directories.root, number, reason)
      if self._hosts.rank == 0:
        self._directories.set_aside(number)
      skipped.append((number, reason))
    told = ''.join(f'\n  step {n}: {reason}' for n, reason in skipped)
    what = 'no checkpoint' if step is None else f'no checkpoint of step {step}'
    raise NoCheckpoint(f'{self._directories.root}: {what}; found {found}.{told}')

  def _gather(self, value):
    self._restores += 1
    said = self._hosts.gather(f'restore-{self._restores}/said', value)
    silent = [f'host {k}' for k, x in enumerate(said) if x is None]
    if silent:
      raise TimeoutError(f'{self._directories.root}: {", ".join(silent)} did not take part in '
                         'restoring.')
    return said

  def _agree(self, reason, error=None, cause=None):
    """Any process' reason to set a step aside, or None; an error of any is raised by all."""
    said = self._gather([reason, error])
    errors = [self._hosts.named(k, error) for k, (_, error) in enumerate(said) if error]
    if cause is not None:
      raise cause
    if errors:
      raise OSError(f'{self._directories.root}: {"; ".join(errors)}')
    return '; '.join(dict.fromkeys(reason for reason, _ in said if reason)) or None

  def _read(self, step, like_of):
    """Returns tree and manifest, and None; or nothing, and why the step is damaged."""
    path = self._directories.of(step)
    about, reason, error, cause, values = None, None, None, None, {}
    try:
      about = manifest.read(path)
      manifest.verify(path, about, self._hosts.rank, self._hosts.count)
      if about['step'] != step:
        raise manifest.Damaged(f'its manifest is that of step {about["step"]}')
    except manifest.Damaged as e:
      reason = str(e)
    except OSError as e:
      if e.errno == errno.EIO:  # the medium itself says that it is
        reason = writer.reason(e)
      else:  # a mount or a permission that may be back tomorrow
        error, cause = writer.reason(e), e
    reason = self._agree(reason, error, cause)
    if reason:
      return None, None, reason
    like, flat = self._wanted(step, about, like_of)
    try:
      values = leaves.from_disk(about['leaves'], self._arrays(path, about, flat), flat)
    except Exception as e:  # the files are whole, so it is the machine or the target
      error, cause = writer.reason(e), e
    self._agree(None, error, cause)
    prints, _ = fingerprints.measure(values)
    wrong = [parse.unquote(name) for name, entry in about['leaves'].items()
             if list(prints[name]) != entry['print']]
    reason = self._agree(f'the fingerprint differs of {", ".join(wrong)}' if wrong else None)
    return jax.tree.unflatten(jax.tree.structure(like), list(values.values())), about, reason

  def _arrays(self, path, about, flat):
    options = ocp.options.MultiprocessingOptions(
        barrier_sync_key_prefix=f'jaxsparse-restore-{self._restores}')
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(multiprocessing_options=options),
                          multiprocessing_options=options) as checkpointer:
      return checkpointer.restore(path, args=leaves.restore_args(about, flat))

  def _same_recipe(self, recipe, like):
    if self._recipe is not None and recipe != self._recipe:
      raise _OtherRecipe(f'the recipe differs:\n  found    {recipe}\n  expected {self._recipe}',
                         like)
    return like

  def _wanted(self, step, about, like_of):
    """The tree to read into, whole and flat, once all differences are known."""
    wrong = []
    try:
      like = like_of(about['recipe'], about['extra'])
    except _OtherRecipe as error:
      wrong, like = [error.args[0]], error.args[1]
    except ValueError as error:
      raise ValueError(f'{self._directories.root}, step {step}: {error}') from error
    flat = fingerprints.flatten(like)
    differ = leaves.differences(about['leaves'], flat)
    if differ:
      wrong.append('\n'.join(['the tree differs:', *differ]))
    if wrong:
      raise ValueError(f'{self._directories.root}, step {step}: ' + '\n'.join(wrong))
    return like, flat


class _OtherRecipe(ValueError):
  """The recipe is another; the tree is compared nevertheless, so that all differences are told."""
