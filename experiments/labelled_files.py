"""Files whose type is known by their extension, from what is installed wherever this runs.

Python's library and the packages that jaxsparse and this experiment need anyway. The set depends on
their versions, so a result carries the manifest of the files it was over. Compiled Python is left
out, for it holds the time it was compiled at, and so are `.txt` and `.h`, which promise nothing.
"""

import collections
import functools
import hashlib
import importlib.util
import pathlib
import sysconfig
from typing import NamedTuple

from experiments import packaged

_PACKAGES = (
  'absl', 'etils', 'flax', 'fontTools', 'jax', 'jaxlib', 'joblib', 'matplotlib', 'numpy', 'onnx',
  'optax', 'orbax', 'pip', 'scipy', 'setuptools', 'sklearn',
)  # fmt: skip
_LABELS = {
  '.bat': 'batch', '.bmp': 'bmp', '.bz2': 'bzip', '.c': 'c', '.cc': 'cpp', '.cmake': 'cmake',
  '.cpp': 'cpp', '.css': 'css', '.csv': 'csv', '.exe': 'pebin', '.f': 'fortran',
  '.f90': 'fortran', '.gif': 'gif', '.gz': 'gzip', '.html': 'html', '.ico': 'ico', '.ini': 'ini',
  '.ipynb': 'ipynb', '.jpeg': 'jpeg', '.jpg': 'jpeg', '.js': 'javascript', '.json': 'json',
  '.lua': 'lua', '.md': 'markdown', '.npy': 'npy', '.npz': 'npz', '.onnx': 'onnx',
  '.pdf': 'pdf', '.pem': 'pem', '.pkl': 'pickle', '.png': 'png', '.po': 'po', '.proto': 'proto',
  '.ps1': 'powershell', '.py': 'python', '.pyi': 'python', '.rst': 'rst', '.sh': 'shell',
  '.so': 'elf', '.svg': 'svg', '.tar': 'tar', '.tcl': 'tcl', '.tiff': 'tiff', '.toml': 'toml',
  '.ttf': 'ttf', '.wav': 'wav', '.webp': 'webp', '.xml': 'xml', '.xz': 'xz',
  '.yaml': 'yaml', '.yml': 'yaml', '.zip': 'zip',
}  # fmt: skip
_LEAST, _MOST = 64, 1_000_000  # bytes
_SKIPPED = {'__pycache__', 'site-packages', 'dist-packages'}


class Sample(NamedTuple):
  """A file.

  Attributes:
    sha256: of its contents, hexadecimal.
    name: where it came from: a package and the path in it.
    label: its type, as Magika calls it.
    path: where it is on this machine.
  """

  sha256: str
  name: str
  label: str
  path: pathlib.Path


class Split(NamedTuple):
  """Files by their digests, so that no content is on both sides; in order of digest."""

  held_out: tuple[Sample, ...]
  train: tuple[Sample, ...]


@functools.cache
def load(per_class: int) -> Split:
  """Returns at most so many files a type on either side, those with the smallest digests.

  Args:
    per_class: files.
  """
  unique = {sample.sha256: sample for sample in _found()}
  sides = {False: [], True: []}
  counts = collections.Counter()
  for digest in sorted(unique):
    sample, is_train = unique[digest], int(digest[-1], 16) % 2 == 1
    counts[sample.label, is_train] += 1
    if counts[sample.label, is_train] <= per_class:
      sides[is_train].append(sample)
  return Split(tuple(sides[False]), tuple(sides[True]))


@functools.cache
def _found():
  samples = []
  for place, root in sorted(_roots().items()):
    for path in sorted(root.rglob('*')):
      label = _LABELS.get(path.suffix.lower())
      inside = path.relative_to(root)
      if label is None or _SKIPPED & set(inside.parts) or path.is_symlink() or not path.is_file():
        continue
      if _LEAST <= path.stat().st_size <= _MOST:
        name = f'{place}/{inside.as_posix()}'
        samples.append(Sample(packaged.digest(path), name, label, path))
  return samples


def _roots():
  roots = {'python': pathlib.Path(sysconfig.get_path('stdlib'))}
  for package in _PACKAGES:
    spec = importlib.util.find_spec(package)
    if spec is not None:
      roots[package] = pathlib.Path(next(iter(spec.submodule_search_locations)))
  return roots


def manifest(samples) -> list[str]:
  """Returns a line a file, as `sha256sum` writes it: digest, two spaces, name.

  Args:
    samples: of `Sample`.
  """
  return [f'{sample.sha256}  {sample.name}' for sample in samples]


def digest(samples) -> str:
  """Returns the sha256 of the manifest, in hexadecimal.

  Args:
    samples: of `Sample`.
  """
  return hashlib.sha256('\n'.join(manifest(samples)).encode()).hexdigest()
