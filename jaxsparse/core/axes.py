"""Roles of a weight's axes from its name and shape, for when no traced model says better.

`jaxsparse.axes_of(apply_fn, params, *inputs)` reads the roles off the computation itself; pass
its result as `transform.init(params, axes=...)`. Without it this table of known shapes is used.
"""

import re

from jaxsparse.numerics import axes

DimensionNumbers = axes.DimensionNumbers
Layout = axes.Layout

_PROJECTION = re.compile(r'(.*/)?(query|key|value|q|k|v)(_proj)?/kernel')
_ATTENTION_OUT = re.compile(r'(.*/)?(out|o)(_proj)?/kernel')
_CONVOLUTION = re.compile(r'(.*/)?[^/]*conv[^/]*/(kernel|w)', re.IGNORECASE)
_TABLE = re.compile(r'emb|(^|/)w[tp]e/', re.IGNORECASE)
_WINDOW = 11   # a window's largest side


def is_table(name: str) -> bool:
  """Whether a weight is an embedding by its name, whose rows are looked up."""
  return _TABLE.search(name) is not None


def known_axes(name: str, shape: tuple[int, ...], *, of_module: bool = False) -> DimensionNumbers:
  """Roles of the axes of the weight called `name`.

  - `of_module`, an attribute `weight` that is no embedding by its name, as Equinox has it:
    `[out, in]`, of a convolution `[out, in, *window]`, of a stack `[..., out, in]`;
  - a module called conv (rank 3 to 5), or any rank 4 or 5 kernel whose leading axes are a window
    (at most 11 wide): all but the last axis reduce;
  - query, key, value of rank 3 or more: `[..., in, heads, head_dim]`;
  - out of rank 3 or more: `[..., heads, head_dim, out]`;
  - anything else: the last two axes.

  Example:
    >>> known_axes('Conv_0/kernel', (3, 3, 8, 16))
    DimensionNumbers(reduction=(0, 1, 2), output=(3,))
    >>> known_axes('layers/0/weight', (16, 8), of_module=True)
    DimensionNumbers(reduction=(1,), output=(0,))
  """
  n = len(shape)
  if of_module and not is_table(name):
    convolves = n > 2 and 'conv' in name.lower() or n > 3 and max(shape[2:]) <= _WINDOW
    return (DimensionNumbers(tuple(range(1, n)), (0,)) if convolves
            else DimensionNumbers((n - 1,), (n - 2,)))
  window = n in (4, 5) and name.endswith('kernel') and max(shape[:-2]) <= _WINDOW
  if n >= 3 and _PROJECTION.fullmatch(name):
    return DimensionNumbers((n - 3,), (n - 2, n - 1))
  if n >= 3 and _ATTENTION_OUT.fullmatch(name):
    return DimensionNumbers((n - 3, n - 2), (n - 1,))
  if 3 <= n <= 5 and (window or _CONVOLUTION.fullmatch(name)):
    return DimensionNumbers(tuple(range(n - 1)), (n - 1,))
  return axes.default_axes(n)
