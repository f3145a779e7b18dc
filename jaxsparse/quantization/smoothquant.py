"""SmoothQuant: what is hard to round moves from activations to weights.

Xiao et al., "SmoothQuant" (arXiv:2211.10438), equation 4. Letters: W `[R, O]`, X `[rows, R]` its
inputs, s `[R]` the row scales: `X W = (X / s) (s W)`, both factors rounded.

The paper divides the inputs by s in the layer before, where that is a norm. Here s is kept beside
the codes (32 bits for each row) and `quantize_activations` divides by it, so that any weight of any
model can be smoothed; what it costs is one division of the inputs.
"""

from typing import Any

import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import quantized
from jaxsparse.numerics import scales
from jaxsparse.quantization import row_scales
from jaxsparse.quantization import scheme as schemes


def smoothquant(dtype: str = 'int8', *, alpha: float = 0.5, granularity: str | None = None,
                group: Any = None, scale: Any = None) -> transforms.Transform:
  """Moves what is hard to round from activations to weights: `s = max|x|^alpha / max|w|^(1-alpha)`.

  `init` needs `stats=calibrate(apply_fn, params, batches, input_max)`; sizes from `input_norm` or
  `gram` serve too. The model sees formats, and `quantize_activations` divides what meets them by s
  before it rounds: `y = Q(x / s) Q(s W)`.

  Args:
    dtype: of the weight, as for `quantize`, as are granularity, group and scale.
    alpha: in [0, 1]; 0 leaves the difficulty with the activations, 1 with the weight.
    granularity: of the weight.
    group: rows of a group, or `(rows, outputs)`.
    scale: the scale rule.

  Returns:
    A Transform whose state is the codes, with the row scales; applies and packs to `QArray`.

  Raises:
    ValueError: what `awq` raises, or alpha outside [0, 1].

  Example:
    >>> import jaxsparse as jsp
    >>> fn = lambda params, x: x @ params['kernel']
    >>> params, x = {'kernel': jnp.ones((2, 1))}, jnp.array([[100.0, 0.3]])
    >>> transform = smoothquant()
    >>> params, state = jsp.one_shot(transform, fn, params, [x], observer=jsp.input_max)
    >>> run = jsp.quantize_activations(fn, 'int8')
    >>> round(float(run(transform.apply(params, state), x)[0, 0]), 1)
    100.3
  """
  spelling = spell.call(smoothquant, locals())
  scheme = schemes.scheme(dtype, granularity, group, scale)
  if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
    raise ValueError(f'alpha must be in [0, 1], got {alpha!r}.')

  def init(w, *, stats, layout):
    x = w.astype(jnp.float32)
    inputs = row_scales.positive(row_scales.norms(stats, layout))
    weights = row_scales.positive(jnp.abs(x).max(-1, keepdims=True))
    rows = row_scales.centred(inputs**alpha / weights ** (1 - alpha))
    fitted = scheme.fit(x * rows)
    codes = scales.encode(x * rows, fitted, scheme.grid, scheme.group)
    return names.Frozen(), quantized.QArray.of_codes(
        codes, fitted, layout.astype(w.dtype), scheme.grid, scheme.group, rows)

  story = parametrization.Parametrization(
      init, lambda latents, state: state, None, lambda latents, state: state)
  return parametrization.leafwise(story, spec=transforms.Spec(
      spelling, restructures=True, needs=frozenset(['stats'])))
