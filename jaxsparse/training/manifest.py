"""The manifest of a checkpoint: what every file of the step must be, bit for bit.

Orbax restores 96 % of single flipped bits without a word (zstd's checksums are off, the tree's
metadata has none), so every file's size and SHA-256 stand in `manifest.json`, written last. Its own
first line is the SHA-256 of the rest. Names read from a manifest are only ever compared with
names found on disk: nothing outside the step's directory can be reached through one.
"""

import hashlib
import json
import os
import pathlib
import re
import stat
from typing import Any

NAME = 'manifest.json'
VERSION = 1
_MOST_BYTES = 1 << 30


class Damaged(Exception):
  """A step's files are not the ones that were committed."""


def files(directory: pathlib.Path) -> dict[str, int]:
  """`{relative path: bytes}` of all files below a directory but the manifest."""
  found = {}
  for parent, folders, names in os.walk(directory):
    for name in [*names, *folders]:
      path = pathlib.Path(parent, name)
      relative, about = path.relative_to(directory).as_posix(), path.lstat()
      if stat.S_ISREG(about.st_mode):
        if relative != NAME:
          found[relative] = about.st_size
      elif not stat.S_ISDIR(about.st_mode):   # a link leads elsewhere, a pipe blocks its reader
        raise Damaged(f'{relative} is neither a file nor a directory')
  return found


def hash_files(directory: pathlib.Path, names: list[str], *,
               sync: bool = False) -> dict[str, list[Any]]:
  """`{relative path: [bytes, SHA-256]}`; `sync` has the disk confirm each file first."""
  out = {}
  for name in names:
    with open(directory / name, 'rb') as f:
      if sync:
        os.fsync(f.fileno())
      h = hashlib.file_digest(f, 'sha256')
      out[name] = [f.tell(), h.hexdigest()]
  return out


def write(directory: pathlib.Path, about: dict[str, Any]) -> None:
  """Writes the manifest under another name, has the disk confirm it, and renames it."""
  body = json.dumps({'version': VERSION, **about}, allow_nan=False).encode()
  temporary = directory / f'{NAME}.writing'
  with open(temporary, 'wb') as f:
    f.write(hashlib.sha256(body).hexdigest().encode() + b'\n' + body)
    f.flush()
    os.fsync(f.fileno())
  temporary.rename(directory / NAME)
  sync_directory(directory)


def read(directory: pathlib.Path) -> dict[str, Any]:
  """Reads a manifest whose own checksum holds; raises Damaged otherwise."""
  path = directory / NAME
  try:
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST_BYTES:
      raise Damaged(f'{NAME} is no file of at most {_MOST_BYTES} bytes')
    head, _, body = path.read_bytes().partition(b'\n')
  except FileNotFoundError:
    raise Damaged(f'{NAME} is missing') from None
  if head != hashlib.sha256(body).hexdigest().encode():
    raise Damaged(f'{NAME} does not match its own SHA-256')
  try:
    about = json.loads(body)
  except (ValueError, RecursionError):
    about = None
  version = about.get('version') if isinstance(about, dict) else None
  if isinstance(version, int) and version != VERSION:
    raise ValueError(f'{path}: format version {version}; this jaxsparse reads {VERSION}.')
  if version is None or not _well_formed(about):
    raise Damaged(f'{NAME} does not describe a checkpoint')
  return about


def _well_formed(about):
  """Whether the fields are of their types, so that a file from elsewhere can do no harm."""
  natural = lambda x: type(x) is int and x >= 0
  def entry(e):
    places = [isinstance(e.get('value'), str), natural(e.get('offset')),
              re.fullmatch(r'array-[0-9]+', str(e.get('array'))) is not None]
    return (sum(places) == 1 and isinstance(e.get('dtype'), str) and _list(e.get('shape'), natural)
            and _list(e.get('print'), natural) and isinstance(e.get('impl', ''), str))
  leaves, files_ = about.get('leaves'), about.get('files')
  return (natural(about.get('step')) and isinstance(about.get('recipe', 0), str | None)
          and isinstance(about.get('extra'), dict) and isinstance(leaves, dict)
          and isinstance(files_, dict) and all(isinstance(e, dict) and entry(e)
                                               for e in leaves.values())
          and all(isinstance(f, list) and len(f) == 2 and natural(f[0]) for f in files_.values()))


def _list(x, holds):
  return isinstance(x, list) and all(map(holds, x))


def verify(directory: pathlib.Path, about: dict[str, Any], share: int = 0, shares: int = 1) -> None:
  """Compares names and sizes of all files and the SHA-256 of one share of them.

  Args:
    directory: of the step.
    about: its manifest.
    share: which share of the files to read, of `shares` equal ones.
    shares: in how many the work is divided (one a process).

  Raises:
    Damaged: naming all missing, additional and changed files.
  """
  found, expected = files(directory), about['files']
  wrong = [f'{name} is missing' for name in sorted(expected.keys() - found.keys())]
  wrong += [f'{name} is not in the manifest' for name in sorted(found.keys() - expected.keys())]
  both = sorted(found.keys() & expected.keys())
  wrong += [f'{name} has {found[name]} bytes of {expected[name][0]}' for name in both
            if found[name] != expected[name][0]]
  whole = [name for name in both if found[name] == expected[name][0]][share::shares]
  hashes = hash_files(directory, whole)
  wrong += [f'{name} does not match its SHA-256' for name in whole
            if hashes[name] != expected[name]]
  if wrong:
    raise Damaged('; '.join(wrong))


def sync_directory(directory: pathlib.Path) -> None:
  """Has the disk confirm the names in a directory."""
  fd = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(fd)
  finally:
    os.close(fd)
