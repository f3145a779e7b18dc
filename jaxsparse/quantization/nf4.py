"""NF4: four-bit codes at the quantiles of a normal distribution, frozen.

Dettmers et al., "QLoRA" (arXiv:2305.14314), section 3. Groups run along the reduction axis of
each output, where the paper's run along the flattened weight: never flatten a weight.
"""

from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.quantization import frozen
from jaxsparse.quantization import scheme as schemes


def nf4(*, group: int = 64, double_quantize: bool | int = False) -> transforms.Transform:
  """Four-bit normal-float codes with an absmax scale every `group` rows; nothing left to train.

  Args:
    group: rows that share a scale; the last group may be shorter.
    double_quantize: stores the scales in eight bits each, so that a weight takes 0.516 byte in
      place of 0.563; True, or the number of neighbouring outputs that share a second scale (256).

  Returns:
    A Transform; a natural base of `lora`.

  Raises:
    ValueError: `group` or `double_quantize` is not a positive integer.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params, state = jsp.nf4().init({'kernel': jnp.array([[2.0], [0.0]])})
    >>> jsp.nf4().apply(params, state)['kernel'].tolist()
    [[2.0], [0.0]]
  """
  spelling = spell.call(nf4, locals())
  p = frozen.on_grid(schemes.scheme('nf4', 'group', group, None, double_quantize))
  return parametrization.leafwise(p, spec=transforms.Spec(spelling, restructures=True))
