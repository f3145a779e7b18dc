"""Codebooks fit to the data: a grid whose values are a matrix' own, found once.

Han et al., "Deep Compression" (arXiv:1510.00149), section 3, k-means with linear initialization,
without the training of the centroids, which `clustered` adds.
"""

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.formats import codebook as formats
from jaxsparse.formats import packed
from jaxsparse.numerics import cluster
from jaxsparse.quantization import frozen


def codebook(bits: int = 4) -> transforms.Transform:
  """Rounds each matrix to `2^bits` values of its own, which k-means finds; nothing left to train.

  Behind a pruning stage one value is the exact zero of what was pruned.

  Args:
    bits: of an index, 1 to 8.

  Returns:
    A Transform; packs to `CodebookArray`. A base of `lora`, as `nf4` is.

  Raises:
    ValueError: `bits` is not an integer from 1 to 8.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> transform = jsp.codebook(bits=1)
    >>> params, state = transform.init({'kernel': jnp.array([[1.0, 5.0], [3.0, 5.0]])})
    >>> transform.apply(params, state)['kernel'].tolist()
    [[2.0, 5.0], [2.0, 5.0]]
  """
  spelling = spell.call(codebook, locals())
  if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
    raise ValueError(f'bits must be an integer from 1 to 8, got {bits!r}.')

  def init(w, *, layout):
    values, index, _ = cluster.codebook(w, 2**bits)
    index = packed.PackedInts.pack(index, bits, signed=False)
    return names.Frozen(), formats.CodebookArray(values, index, layout.astype(w.dtype))

  return parametrization.leafwise(frozen.codes(init),
                                  spec=transforms.Spec(spelling, restructures=True))
