"""Sparse activations, where they meet a weight: only large inputs take part in a product.

Top-k a row follows "kWTA" (Ahmad and Scheinkman, arXiv:1903.11257), which keeps the largest values
themselves rather than magnitudes; the threshold is that of Kurtz et al. ("Inducing and Exploiting
Activation Sparsity", ICML 2020) without its training. Lookups are left alone; so are products of
two activations. The gradient is the true one: what was dropped has none, as behind a ReLU.
"""

import functools
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import names
from jaxsparse.numerics import select
from jaxsparse.trace import activations
from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import hooks
from jaxsparse.trace import observers


def top_k_activations(apply_fn: Callable, sparsity: float, *, granularity: str = 'row',
                      at: str = '.*') -> Callable:
  """Keeps the inputs of largest magnitude of every product with a weight, an exact number of them.

  Of the `n` entries of a slice `n - round(n * sparsity)` stay, at least one; ties keep the lower
  index. NaN counts as the largest, so that it is never hidden.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    sparsity: fraction of zeros in each slice, in [0, 1).
    granularity: what a slice is: 'row' (what one row of the product reduces over: a token; for a
      convolution an example) or 'tensor'.
    at: pattern of the names of weights whose inputs are cut; it matches whole names.

  Returns:
    A function of the same arguments and result; `params` may hold formats.

  Raises:
    ValueError: the sparsity is outside [0, 1), an unknown granularity, or (in the call) `at`
      matches no weight.

  Example:
    >>> fn = top_k_activations(lambda params, x: x @ params['w'], 0.5)
    >>> fn({'w': jnp.eye(4)}, jnp.array([[3.0, -5.0, 1.0, 3.0]])).tolist()
    [[3.0, -5.0, 0.0, 0.0]]
  """
  if isinstance(sparsity, bool) or not 0 <= sparsity < 1:
    raise ValueError(f'sparsity is a fraction in [0, 1), got {sparsity!r}.')
  if granularity not in activations.GRANULARITIES:
    raise ValueError(f'granularity is one of {", ".join(activations.GRANULARITIES)}; got '
                     f'{granularity!r}.')

  def cut(contraction, x):
    everything = tuple(range(x.ndim))
    axes = everything if granularity == 'tensor' else activations.within_row(contraction, x)
    size = math.prod(x.shape[a] for a in axes)
    scores = jnp.abs(jax.lax.stop_gradient(x))
    scores = jnp.where(jnp.isnan(scores), jnp.inf, scores)
    kept = select.top_k_mask(scores, max(size - round(size * sparsity), 1), axes=axes)
    return jnp.where(kept, x, 0)

  return _cutting(apply_fn, cut, at)


def threshold_activations(apply_fn: Callable, threshold: float, *, at: str = '.*') -> Callable:
  """Zeroes inputs below a magnitude in every product with a weight.

  Args:
    apply_fn: called as `apply_fn(params, *args, **kwargs)`.
    threshold: `x` becomes 0 where `|x| < threshold`.
    at: pattern of the names of weights whose inputs are cut; it matches whole names.

  Returns:
    A function of the same arguments and result; `params` may hold formats.

  Raises:
    ValueError: the threshold is no finite number of at least 0, or (in the call) `at` matches no
      weight.

  Example:
    >>> fn = threshold_activations(lambda params, x: x @ params['w'], 2.0)
    >>> fn({'w': jnp.eye(3)}, jnp.array([[2.0, -1.5, -3.0]])).tolist()
    [[2.0, 0.0, -3.0]]
  """
  if isinstance(threshold, bool) or not 0 <= threshold < math.inf:
    raise ValueError(f'threshold is a finite number of at least 0, got {threshold!r}.')
  return _cutting(apply_fn, lambda contraction, x: jnp.where(jnp.abs(x) < threshold, 0, x), at)


def _cutting(apply_fn, cut, at):
  pattern = names.compile_pattern(at)

  def hook(contraction, x, w):
    chosen = contraction.kind != 'gather' and jnp.issubdtype(x.dtype, jnp.floating)
    if chosen and x.size and pattern.fullmatch(contraction.name):
      x = cut(contraction, x)
    return contraction.compute(x, w), None

  watched = hooks.watching(apply_fn, hook, None)

  @functools.wraps(apply_fn)
  def call(params, *args, **kwargs):
    there = [leaf.name for leaf in names.named_leaves(params)[0]]
    if not any(pattern.fullmatch(name) for name in there):
      raise names.no_match(at, there)
    return watched(params, *args, **kwargs)[0]

  return call


class _Zeros(NamedTuple):
  zeros: Any
  total: Any


def _count_zeros(contraction: contractions.Contraction, x: jax.Array):
  if contraction.kind == 'gather':
    return None
  return _Zeros((x == 0).sum(dtype=jnp.float32), jnp.float32(x.size))


# The fraction of inputs that are zero: float32 `()`, `[layer]` for a scanned stack.
zero_fraction = observers.Observer(_count_zeros, finish=lambda counts: counts.zeros / counts.total)
