"""AWQ: rows of a weight are scaled by a power of their inputs' size before they are rounded.

Lin et al., "AWQ: Activation-aware Weight Quantization" (arXiv:2306.00978), section 3.2. Letters:
W `[R, O]`, X `[rows, R]` its inputs, s `[R]` the row scales: `X W = (X / s) (s W)`, and `s W` is
what is rounded.

The paper divides the inputs by s in the layer before, where that is a norm or a product. Here s is
kept beside the codes (32 bits for each row), so that any weight of any model can be scaled; the
weight is `Q(s W) / s`. The size of an input is its root mean square, not its mean magnitude, so
that one Gram serves both that and the search.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import calibration
from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import quantized
from jaxsparse.numerics import scales
from jaxsparse.quantization import frozen
from jaxsparse.quantization import row_scales
from jaxsparse.quantization import scheme as schemes

_CANDIDATES = 20   # exponents 0, 1/20, ..., 19/20, as in the paper's code


def awq(dtype: str = 'int4', *, granularity: str | None = None, group: Any = None,
        scale: Any = None) -> transforms.Transform:
  """Rounds weights after scaling rows by a power of their inputs' size; the best of 20 powers.

  `init` needs `stats=calibrate(apply_fn, params, batches, gram)`, with which the error of the
  layer's output is known exactly; that of `input_norm` serves too, as if inputs were uncorrelated.

  Args:
    dtype: as for `quantize`, as are granularity, group and scale.
    granularity: one power is chosen for the whole matrix, whatever it is.
    group: rows of a group, or `(rows, outputs)`.
    scale: the scale rule; 'mse' weighs errors by the inputs.

  Returns:
    A Transform whose state is the codes, with the row scales; packs to `QArray`.

  Raises:
    ValueError: what `quantize` raises; or, in `init`, a weight has no statistics, or ones that do
      not fit it or are not finite, or is a grouped convolution's.

  Example:
    >>> import jaxsparse as jsp
    >>> params = {'kernel': jnp.array([[1.4, -7.0], [0.6, 2.3]])}
    >>> norms = {'kernel': jnp.array([1.0, 50.0])}
    >>> transform = awq('int4')
    >>> out = transform.apply(*transform.init(params, stats=norms))['kernel']
    >>> bool(abs(out[1, 0] - 0.6) < 0.01)
    True
  """
  spelling = spell.call(awq, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)

  def init(w, *, stats, layout):
    norms = row_scales.norms(stats, layout)
    gram = calibration.gram_if(stats, layout)
    rows, fitted, codes = _search(w.astype(jnp.float32), norms, gram, scheme=scheme)
    return names.Frozen(), quantized.QArray.of_codes(
        codes, fitted, layout.astype(w.dtype), scheme.grid, scheme.group, rows)

  return frozen.from_statistics(init, spelling)


@functools.partial(jax.jit, static_argnames='scheme')
def _search(w, norms, gram, *, scheme):
  sizes = row_scales.positive(norms)

  def scaled(power):
    rows = row_scales.centred(sizes**power)
    fitted = scheme.fit(w * rows, jnp.square(norms / rows))
    return rows, fitted, scales.encode(w * rows, fitted, scheme.grid, scheme.group)

  def error(power):
    rows, fitted, codes = scaled(power)
    off = scales.decode(codes, fitted, scheme.grid, scheme.group) / rows - w
    seen = jnp.square(norms) * off if gram is None else jnp.einsum(
        '...rs,...so->...ro', gram, off, precision='high')
    return (off * seen).sum((-2, -1), keepdims=True)

  def body(n, carry):
    least, best = carry
    power = n.astype(jnp.float32) * np.float32(1 / _CANDIDATES)
    found = error(power)
    return jnp.minimum(found, least), jnp.where(found < least, power, best)

  shape = (*w.shape[:-2], 1, 1)
  start = jnp.full(shape, jnp.inf), jnp.zeros(shape)
  return scaled(jax.lax.fori_loop(0, _CANDIDATES, body, start)[1])
