"""Masks and weights as small PNG pictures, written with the standard library alone.

The colours carry their own transparency, so that one picture serves light and dark pages: nothing
is drawn where a weight is zero, and the larger a weight the more opaque its colour.
"""

import base64
import struct
import zlib
from typing import NamedTuple

import numpy as np

_MOST_PIXELS = 256  # a side; larger matrices are cropped, for a mask must not be blurred
_KEPT = (11, 124, 163)
_NEGATIVE = (38, 110, 214)
_POSITIVE = (214, 86, 38)


class Picture(NamedTuple):
  """A picture of one weight of one run.

  Attributes:
    model: the record's model.
    label: the record's label.
    name: the weight's name.
    values: `[rows, columns]` bool mask, or floating values.
  """

  model: str
  label: str
  name: str
  values: np.ndarray


def png(values: np.ndarray) -> bytes:
  """Returns a matrix as the bytes of a PNG, one pixel an entry.

  Args:
    values: `[rows, columns]`; of bool, True is drawn and False left transparent; of numbers,
      zero is transparent, blue is negative and orange positive, and opacity is magnitude.

  Raises:
    ValueError: if `values` is no matrix, is empty, or holds a value that is not finite.

  Example:
    >>> png(np.eye(2, dtype=bool))[1:4]
    b'PNG'
  """
  values = np.asarray(values)
  if values.ndim != 2 or not values.size:
    raise ValueError(f'A picture shows a matrix, got shape {values.shape}.')
  values = values[:_MOST_PIXELS, :_MOST_PIXELS]
  if values.dtype == bool:
    codes, palette, alpha = values.astype(np.uint8), [(0, 0, 0), _KEPT], [0, 255]
  else:
    codes, palette, alpha = _diverging(values.astype(np.float32))
  rows, columns = codes.shape
  # Every scan line is preceded by its filter: 0, none.
  lines = np.concatenate([np.zeros((rows, 1), np.uint8), codes], axis=1).tobytes()
  header = struct.pack('>IIBBBBB', columns, rows, 8, 3, 0, 0, 0)
  chunks = [
    (b'IHDR', header),
    (b'PLTE', bytes(np.array(palette, np.uint8))),
    (b'tRNS', bytes(alpha)),
    (b'IDAT', zlib.compress(lines, 9)),
    (b'IEND', b''),
  ]
  return b'\x89PNG\r\n\x1a\n' + b''.join(_chunk(kind, data) for kind, data in chunks)


def data_uri(values: np.ndarray) -> str:
  """Returns the picture of a matrix as a `data:` URI."""
  return 'data:image/png;base64,' + base64.b64encode(png(values)).decode('ascii')


def _diverging(values):
  """Codes of 127 steps either side of zero; zero alone has code 0."""
  if not np.isfinite(values).all():
    raise ValueError('A picture shows finite values, got some that are not.')
  # A few outliers would leave the rest invisible.
  top = float(np.quantile(np.abs(values), 0.995)) or float(np.abs(values).max()) or 1.0
  steps = np.clip(np.ceil(np.abs(values) / top * 127), 1, 127).astype(np.uint8)
  codes = np.where(values == 0, 0, np.where(values < 0, steps, steps + 127)).astype(np.uint8)
  # Even the smallest non-zero weight stays visible against nothing.
  ramp = [int(40 + 215 * step / 127) for step in range(1, 128)]
  return codes, [(0, 0, 0)] + [_NEGATIVE] * 127 + [_POSITIVE] * 127, [0, *ramp, *ramp]


def _chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
