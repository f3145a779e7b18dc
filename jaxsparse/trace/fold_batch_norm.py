"""Batch norms whose statistics are fixed are folded into the products before them.

Jacob et al., "Quantization and Training of Neural Networks" (arXiv:1712.05877), section 3.2,
equation 14: with mean mu, variance v, scale gamma and shift beta,

  `gamma (x W + b - mu) / sqrt(v + eps) + beta = x W' + b' - mu' + beta`,
  `W' = W f`, `b' = b f`, `mu' = mu f`, `f = gamma / sqrt(v + eps)`,

so that W' is what is quantized, and what runs. Here the model stays as it is written: its norms
get the variance `1 - eps` and the scale 1, and only subtract.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.formats import format as formats
from jaxsparse.trace import dataflow
from jaxsparse.trace import dead
from jaxsparse.trace import jaxprs


class _Norm(NamedTuple):
  """Names of a norm's weights, its epsilon, and the value that it normalizes."""

  variance: str
  mean: str | None
  scale: str | None
  epsilon: float
  value: int | None


def fold_batch_norm(apply_fn: Callable, params: Any, *args, norms: str | None = None,
                    **kwargs) -> Any:
  """The same model with its batch norms, as at inference, multiplied into the weights before them.

  Norms are found in the traced program: `(y - mean) * rsqrt(variance + epsilon)`, with a scale or
  without, of statistics that are among `params`. Train with them folded (and a transform on the
  kernels) or quantize afterwards; norms that go on measuring batches are not folded.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`; it must run as at inference.
    params: everything that the norms hold, statistics too: of linen the whole variables, of NNX the
      whole state. Formats are densified.
    *args: example inputs.
    norms: a regular expression for the names of the variances (`.*/bn_1/var`) of the norms to fold.
      None: all; each must then stand right behind a convolution or a product.
    **kwargs: as args.

  Returns:
    Params of the same structure, shapes and dtypes, for the same model.

  Raises:
    ValueError: there is no such norm, or one cannot be folded: what it normalizes comes from
      something else than a product with a weight, or is read elsewhere; or the outputs differ.

  Example:
    >>> def fn(p, x):
    ...   y = x @ p['kernel']
    ...   return (y - p['mean'][None]) * jax.lax.rsqrt(p['var'][None] + 1e-5) * p['scale'][None]
    >>> params = {'kernel': jnp.ones((2, 1)), 'mean': jnp.array([1.0]), 'var': jnp.array([4.0]),
    ...           'scale': jnp.array([6.0])}
    >>> folded = fold_batch_norm(fn, params, jnp.ones((1, 2)))
    >>> [round(float(folded[k].ravel()[0]), 4) for k in ('kernel', 'mean', 'var', 'scale')]
    [3.0, 3.0, 1.0, 1.0]
  """
  params = formats.densify(params)
  flow = dataflow.Flow(jaxprs.trace(apply_fn, params, args, kwargs))
  pattern = None if norms is None else names.compile_pattern(norms)
  found = [n for n in _norms(flow) if pattern is None or pattern.fullmatch(n.variance)]
  if not found:
    raise ValueError('the program normalizes by no variance among the params'
                     + ('.' if norms is None else f' that {norms!r} matches.')
                     + ' Pass statistics with the params, and run the model as at inference.')
  leaves, rebuild = names.named_leaves(params)
  values = {leaf.name: leaf.value for leaf in leaves}
  for norm in found:
    _fold(norm, flow, values)
  folded = rebuild([values[leaf.name] for leaf in leaves])
  if not transforms.is_traced((params, args, kwargs)):
    _check(apply_fn, params, folded, args, kwargs)
  return folded


def _norms(flow) -> list[_Norm]:
  """The norms of a program, in its order."""
  found = []
  for step in flow.coupling.steps:
    if step.eqn.primitive.name not in ('rsqrt', 'sqrt') or flow.is_live(step.ins[0]):
      continue
    inside = flow.made.get(step.ins[0])
    if inside is None or inside.eqn.primitive.name != 'add':
      continue
    for summand, epsilon in (inside.ins, inside.ins[::-1]):
      variance = flow.leaf(summand)
      if variance is not None and jaxprs.is_literal(epsilon) and np.ndim(epsilon.val) == 0:
        found.append(_read_on(flow, step, variance, float(epsilon.val)))
  return found


def _read_on(flow, step, variance, epsilon) -> _Norm:
  """Follows `1 / sqrt(variance + epsilon)` to what it multiplies."""
  scale, value = None, step.outs[0]
  nothing = _Norm(variance, None, None, epsilon, None)
  while (step := flow.only_use(value)) is not None:
    name = step.eqn.primitive.name
    if name in dead.LAYOUT:
      value = step.outs[0]
      continue
    if name not in ('mul', 'div') or name == 'div' and step.ins[1] != value:
      return nothing
    other = step.ins[1] if step.ins[0] == value else step.ins[0]
    value = step.outs[0]
    if flow.is_live(other):
      break
    if flow.leaf(other) is None or scale is not None or name == 'div':
      return nothing
    scale = flow.leaf(other)
  else:
    return nothing
  after = flow.only_use(value)
  if scale is None and after is not None and after.eqn.primitive.name == 'mul':
    others = [v for v in after.ins if not flow.is_live(v)]
    scale = flow.leaf(others[0]) if others else None
  before = flow.made.get(other)
  if before is None or before.eqn.primitive.name != 'sub' or flow.leaf(before.ins[1]) is None:
    return nothing
  return _Norm(variance, flow.leaf(before.ins[1]), scale, epsilon, before.ins[0])


def _fold(norm, flow, values) -> None:
  name = norm.variance
  if norm.value is None:
    raise ValueError(f'{name}: what is done with it is not that of a batch norm at inference; '
                     'leave it out with norms=.')
  layer, why = flow.behind(norm.value)
  if layer is None:
    raise ValueError(f'{name}: {why}; leave it out with norms=.')
  for used in (name, norm.mean, norm.scale):
    if used is not None and flow.reads(used) != 1:
      raise ValueError(f'{name}: {used} is read elsewhere too; leave it out with norms=.')
  variance = values[name].astype(jnp.float32)
  factor = 1 / jnp.sqrt(variance + norm.epsilon)
  for other in (norm.mean, norm.scale, *layer.added):
    if other is not None and values[other].size != factor.size:
      raise ValueError(f'{name}: {other} has {values[other].size} entries, expected one for each '
                       f'of its {factor.size}; leave it out with norms=.')
  if norm.scale is not None:
    factor = factor * values[norm.scale].astype(jnp.float32).reshape(factor.shape)
  w = values[layer.weight]
  if layer.axis is None or factor.shape != (w.shape[layer.axis],):
    raise ValueError(f'{name}: its {factor.shape} entries are not the outputs of {layer.weight} '
                     f'{w.shape}; leave it out with norms=.')
  along = factor.reshape([-1 if a == layer.axis else 1 for a in range(w.ndim)])
  changed = {layer.weight: (w * along).astype(w.dtype),
             name: jnp.full_like(values[name], 1 - norm.epsilon)}
  for other in (norm.mean, *layer.added):
    old = values[other]
    changed[other] = (old * factor.reshape(old.shape)).astype(old.dtype)
  if norm.scale is not None:
    changed[norm.scale] = jnp.ones_like(values[norm.scale])
  values.update(changed)


def _check(apply_fn, params, folded, args, kwargs) -> None:
  run = jax.jit(lambda p: jax.tree.leaves(apply_fn(p, *args, **kwargs)))
  # As coarse as the coarsest weight: a folded one is rounded anew.
  step = max(float(jnp.finfo(x.dtype).eps) for x in jax.tree.leaves(params)
             if jnp.issubdtype(x.dtype, jnp.floating))
  for before, after in zip(run(params), run(folded)):
    before, after = (np.asarray(x, np.float64) for x in (before, after))
    limit = 64 * step * max(1.0, np.abs(before).max(initial=0.0))
    if not np.allclose(before, after, rtol=0, atol=max(limit, 1e-5), equal_nan=True):
      raise ValueError(f'folded, the outputs on the example inputs differ by '
                       f'{np.abs(before - after).max():.2g}; choose norms= and report the model.')
