"""`prepare`: packed weights laid out for a device, once, when a model is loaded.

What is best for a file is not what a kernel reads fastest.
"""

from typing import Any

import jax

from jaxsparse.formats import format as formats
from jaxsparse.formats import native
from jaxsparse.formats import tpu
from jaxsparse.kernels.native import library

_PLATFORMS = ('cpu', 'gpu', 'tpu')


def prepare(params: Any, platform: str | None = None) -> Any:
  """Lays packed weights out for the kernels of a device, once, when a model is loaded.

  On CPUs with the native library (see `jaxsparse.backends`) these become a `NativeArray`:

  - sparse float32 weights, as vectors of 16 to 64 outputs where their zeros come so, else, up to a
    density of 0.38, in compressed columns;
  - integers of up to eight bits with a scale for each output or matrix, by tiles of 4 x 16 where
    many of those are zero. **Activations are then rounded to eight bits too**, each row by its
    largest magnitude: an error like that of the weights' own rounding;
  - integers of up to four bits, in groups of a multiple of 8 rows: likewise.

  On TPUs integers of up to eight bits become a `TPUArray`, int4 or int8 as the device reads them.
  Activations stay as they are there, unless `quantize_activations` asks for integers.

  All else, and everything on CPUs without the library, is returned as it is. Sizes are read from
  the values of sparse weights, so call it outside `jit` on CPUs.

  Args:
    params: a tree with packed weights in it.
    platform: 'cpu', 'gpu' or 'tpu', to compile for a device that is not here; None is the default
      device's own.

  Returns:
    The tree for `dispatch`, of the same weights.

  Raises:
    TracedMaskError: a ValueError; a sparse weight is traced.
    ValueError: the platform is not known.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.quantize('int4', group=32)
    >>> stored = transform.pack(*transform.init({'w': jnp.ones((64, 32))}))
    >>> prepared = jsp.prepare(stored)
    >>> y = jsp.dispatch(lambda p, x: x @ p['w'])(prepared, jnp.ones((1, 64)))
    >>> bool(jnp.allclose(y, 64.0))
    True
  """
  if platform not in (None, *_PLATFORMS):
    raise ValueError(f'platform must be one of {", ".join(_PLATFORMS)} or None, got {platform!r}.')
  platform = platform or jax.default_backend()
  if platform == 'tpu':
    lay_out = tpu.laid_out
  elif platform == 'cpu' and library.available():
    lay_out = native.laid_out
  else:
    return params
  return jax.tree.map(lambda x: lay_out(x) if formats.is_format(x) else x, params,
                      is_leaf=formats.is_format)
