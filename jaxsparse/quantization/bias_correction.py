"""Bias correction: the mean that rounding weights adds to a layer's output is taken from its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction"
(arXiv:1906.04721), section 4.2, with the inputs' means measured rather than derived.
"""

from typing import Any, Mapping

import jax
import jax.numpy as jnp

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.formats import format as formats


def correct_bias(params: Any, compressed: Any, means: Mapping[str, jax.Array], *,
                 bias: str = 'bias', axes: Mapping[str, Any] | None = None) -> Any:
  """`compressed` with `b - E[x] (W' - W)` for the bias b beside each weight that has a mean.

  Args:
    params: the tree of float weights.
    compressed: the same tree after quantization (or pruning); formats allowed.
    means: {weight name: float32 `[*batch, R]`}, of `calibrate(..., input_mean)`.
    bias: what a weight's bias is called, in the same part of the tree.
    axes: {weight name: DimensionNumbers}, as `init` takes them.

  Returns:
    `compressed` with other biases; weights without one are left alone.

  Raises:
    ValueError: no weight with a mean has a bias, or a mean does not fit its weight.

  Example:
    >>> params = {'kernel': jnp.array([[1.0], [2.0]]), 'bias': jnp.zeros(1)}
    >>> rounded = {'kernel': jnp.array([[1.5], [2.0]]), 'bias': jnp.zeros(1)}
    >>> correct_bias(params, rounded, {'kernel': jnp.array([4.0, 0.0])})['bias'].tolist()
    [-2.0]
  """
  before = {leaf.name: leaf for leaf in names.named_leaves(params)[0]}
  leaves, rebuild = names.named_leaves(compressed)
  after = {leaf.name: leaf.value for leaf in leaves}
  shifts = {}
  for name, mean in means.items():
    place = '/'.join([*name.split('/')[:-1], bias])
    if name in after and place in after and name in before:
      shift = _shift(before[name], after[name], mean, (axes or {}).get(name))
      shifts[place] = shifts.get(place, 0) + shift
  if not shifts:
    raise ValueError(f'no weight with a mean has a {bias!r} beside it; means are of '
                     f'{", ".join(sorted(means)) or "nothing"}.')
  new = []
  for leaf in leaves:
    value = leaf.value
    if leaf.name in shifts:
      if value.shape != shifts[leaf.name].shape:
        raise ValueError(f'{leaf.name}: the bias has shape {value.shape}, its weight gives '
                         f'{shifts[leaf.name].shape}.')
      value = (value.astype(jnp.float32) - shifts[leaf.name]).astype(value.dtype)
    new.append(value)
  return rebuild(new)


def _shift(leaf, new, mean, given):
  name, w, new = leaf.name, jnp.asarray(leaf.value), jnp.asarray(formats.densify(new))
  numbers = given or roles.known_axes(name, w.shape, of_module=leaf.of_module)
  layout = roles.Layout(w.shape, w.dtype, roles.DimensionNumbers(*numbers))
  off = layout.to_matrix(new).astype(jnp.float32) - layout.to_matrix(w).astype(jnp.float32)
  if mean.shape != off.shape[:-1]:
    raise ValueError(f'{name}: a mean of shape {mean.shape} does not fit its matrix {off.shape}; '
                     f'expected {off.shape[:-1]}.')
  shift = jnp.einsum('...r,...ro->...o', mean, off, precision='highest')
  produced = layout.axes.output
  return shift.reshape(*shift.shape[:-1], *(w.shape[a] for a in produced))
