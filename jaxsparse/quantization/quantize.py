"""Post-training quantization, round to nearest: codes and scales in state, nothing to train."""

from typing import Any

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.quantization import frozen
from jaxsparse.quantization import scheme as schemes


def quantize(dtype: str, *, granularity: str | None = None, group: Any = None, scale: Any = None,
             double_quantize: bool | int = False) -> transforms.Transform:
  """Rounds weights to a grid once; arguments as in `fake_quantize`, `double_quantize` as in `nf4`.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params, state = jsp.quantize('int4').init({'kernel': jnp.array([[7.0], [1.2]])})
    >>> params, jsp.quantize('int4').apply(params, state)['kernel'].tolist()
    ({'kernel': Frozen()}, [[7.0], [1.0]])
  """
  spelling = spell.call(quantize, locals())
  p = frozen.on_grid(schemes.scheme(dtype, granularity, group, scale, double_quantize))
  return parametrization.leafwise(p, spec=transforms.Spec(spelling, restructures=True))
