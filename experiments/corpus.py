"""Bytes to read: the Python standard library's own source, which every machine here carries.

Files are told apart by the SHA-256 of their content: it removes duplicates, splits training from
held-out text (so no file, under whatever name, is on both sides) and orders the files, so that a
capped corpus is a fair sample. The text differs between versions of Python: a digest goes into
every result.
"""

import functools
import hashlib
import os
import pathlib
import platform
import sysconfig
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

_HELD_OUT_EVERY = 10
# Not the library's text: other packages, tests, and what the build wrote for this machine.
_SKIPPED = {'site-packages', 'dist-packages', '__pycache__', 'test', 'tests', 'idle_test'}
_MACHINE_MADE = ('_sysconfigdata', 'config-')


class Corpus(NamedTuple):
  """Text as bytes, each file followed by a zero byte.

  Attributes:
    train: `[bytes]` uint8.
    held_out: `[bytes]` uint8, of other files.
    facts: Python's version, a digest of the files taken, and counts of files and bytes.
  """

  train: np.ndarray
  held_out: np.ndarray
  facts: Mapping[str, Any]


@functools.lru_cache(maxsize=2)
def load(most_bytes: int, folder: str = '') -> Corpus:
  """Reads Python source, split by the hash of each file; the last load is remembered.

  Args:
    most_bytes: bytes of training text to stop at, a ninth as many held out; files are taken whole,
      so that the last may exceed it. At most that much is ever in memory.
    folder: where to read; '' is this interpreter's standard library.

  Raises:
    ValueError: `most_bytes` is not positive, or there is not a file for each side.

  Example:
    >>> corpus = load(200_000)
    >>> corpus.train.dtype.name, sorted(corpus.facts)[:2]
    ('uint8', ['corpus_digest', 'held_out_bytes'])
  """
  if most_bytes < 1:
    raise ValueError(f'corpus_bytes must be at least 1, got {most_bytes}.')
  root = pathlib.Path(folder or sysconfig.get_paths()['stdlib'])
  files = {}
  for path in sources(root):
    files.setdefault(hashlib.sha256(path.read_bytes()).hexdigest(), path)
  held_out = {digest for digest in files if int(digest, 16) % _HELD_OUT_EVERY == 0}
  sides = {
    'train': _take(files, set(files) - held_out, most_bytes),
    'held_out': _take(files, held_out, max(1, most_bytes // (_HELD_OUT_EVERY - 1))),
  }
  missing = [side for side, digests in sides.items() if not digests]
  if missing:
    raise ValueError(
      f'{root} holds {len(files)} different .py files, none of them for {missing}; expected the '
      "source of Python's standard library."
    )
  texts = {side: _read(files, digests) for side, digests in sides.items()}
  listing = '\n'.join(f'{side} {digest}' for side in sides for digest in sides[side])
  facts = {
    'python': platform.python_version(),
    'corpus_digest': hashlib.sha256(listing.encode()).hexdigest(),
    **{f'{side}_files': len(digests) for side, digests in sides.items()},
    **{f'{side}_bytes': len(texts[side]) for side in sides},
  }
  return Corpus(**texts, facts=facts)


def sources(root: pathlib.Path) -> Iterable[pathlib.Path]:
  """Yields the .py files under a folder in order of their names; links are not followed.

  Args:
    root: the folder.
  """
  for folder, inside, names in os.walk(root):
    inside[:] = sorted(d for d in inside if d not in _SKIPPED and not d.startswith(_MACHINE_MADE))
    for name in sorted(names):
      path = pathlib.Path(folder, name)
      if name.endswith('.py') and not name.startswith(_MACHINE_MADE) and not path.is_symlink():
        yield path


def windows(text: np.ndarray, *, length: int, count: int, seed: int, step: int) -> np.ndarray:
  """Draws windows at random places that depend on the seed and the step alone.

  Args:
    text: `[bytes]` uint8.
    length: bytes of each window.
    count: windows.
    seed: of the run, 0 or more.
    step: which draw, 0 or more.

  Returns:
    `[count, length]` uint8.

  Raises:
    ValueError: the text is shorter than a window.

  Example:
    >>> text = np.arange(100, dtype=np.uint8)
    >>> first, again = (windows(text, length=4, count=2, seed=0, step=7) for _ in range(2))
    >>> first.shape, bool((first == again).all())
    ((2, 4), True)
  """
  _check_length(text, length)
  # A generator that is a function of its key has no position to save and restore.
  random = np.random.Generator(np.random.Philox(key=np.array([seed, step], np.uint64)))
  starts = random.integers(len(text) - length + 1, size=count)
  return text[starts[:, None] + np.arange(length)]


def spread(text: np.ndarray, *, length: int, count: int) -> np.ndarray:
  """Cuts windows that do not overlap, spread evenly over a text.

  Args:
    text: `[bytes]` uint8.
    length: bytes of each window.
    count: windows wanted; fewer where the text is too short for them.

  Returns:
    `[count, length]` uint8.

  Raises:
    ValueError: the text is shorter than a window.

  Example:
    >>> spread(np.arange(9, dtype=np.uint8), length=3, count=2).tolist()
    [[0, 1, 2], [4, 5, 6]]
  """
  _check_length(text, length)
  count = min(count, len(text) // length)
  stride = len(text) // count
  return text[stride * np.arange(count)[:, None] + np.arange(length)]


def _check_length(text, length):
  if len(text) < length:
    raise ValueError(
      f'A text of {len(text)} bytes has no window of {length}; raise corpus_bytes or lower '
      'sequence.'
    )


def _take(files, digests, most_bytes):
  """Digests in their own order until their files hold that many bytes."""
  taken, total = [], 0
  for digest in sorted(digests):
    if total >= most_bytes:
      break
    taken.append(digest)
    total += files[digest].stat().st_size
  return taken


def _read(files, digests):
  text = b''.join(files[digest].read_bytes() + b'\0' for digest in digests)
  return np.frombuffer(text, np.uint8)
