"""Data and models that arrive inside an installed package: found, checked, never imported.

A package is only a folder here: importing it could pull in what nobody asked for (PyTorch), run
its code, or fetch something. Files are pinned by digest, since a name and a version on an index
promise nothing about contents.
"""

import functools
import hashlib
import importlib.util
import pathlib


class MissingError(ValueError):
  """A file that an experiment reads is not installed; the message says how to get it."""


def require(module: str, *, install: str) -> None:
  """Checks that a module can be imported, before the import whose error would not say how.

  Args:
    module: its name.
    install: the command that installs it, for the error.

  Raises:
    MissingError: it is not installed.

  Example:
    >>> require('onyx', install='pip install onyx')
    Traceback (most recent call last):
    experiments.packaged.MissingError: The package onyx is not installed; run: pip install onyx
  """
  if importlib.util.find_spec(module) is None:
    raise MissingError(f'The package {module} is not installed; run: {install}')


def folder(package: str, *, install: str) -> pathlib.Path:
  """Returns the folder of an installed package without importing it.

  Args:
    package: its import name.
    install: the command that installs it, for the error.

  Raises:
    MissingError: it is not installed.

  Example:
    >>> folder('numpy', install='pip install numpy').name
    'numpy'
  """
  require(package, install=install)
  return pathlib.Path(next(iter(importlib.util.find_spec(package).submodule_search_locations)))


def file(package: str, path: str, *, sha256: str, install: str) -> pathlib.Path:
  """Returns the path of a file of a package, whose contents are what they were.

  Args:
    package: its import name.
    path: of the file in the package's folder.
    sha256: hexadecimal digest of the contents.
    install: the command that installs it, for errors.

  Raises:
    MissingError: the package or the file is not installed.
    ValueError: the contents differ.
  """
  found = folder(package, install=install) / path
  if not found.is_file():
    raise MissingError(f'The package {package} has no file {path}; run: {install}')
  check(found, sha256, advice=f'run: {install}')
  return found


def check(path: pathlib.Path, sha256: str, *, advice: str) -> None:
  """Checks that a file's contents are those expected.

  Args:
    path: of the file.
    sha256: hexadecimal digest of its contents.
    advice: what to do about it, for the error.

  Raises:
    ValueError: they differ.
  """
  found = digest(path)
  if found != sha256:
    raise ValueError(
      f'{path.name} has other contents than expected: sha256 found {found}, expected {sha256}; '
      f'{advice}'
    )


@functools.cache
def digest(path: pathlib.Path) -> str:
  """Returns the sha256 of a file's contents, in hexadecimal; read once a process."""
  with path.open('rb') as stream:
    return hashlib.file_digest(stream, 'sha256').hexdigest()
