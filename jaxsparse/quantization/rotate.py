"""Rotating the residual stream of a transformer: the same function, with its outliers spread.

Ashkboos et al., "QuaRot" (arXiv:2404.00456), section 4, after Ashkboos et al., "SliceGPT"
(arXiv:2401.15024). Letters: x `[rows, D]` the stream, Q `[D, D]` orthogonal: weights that read it
become `Q^T W`, those that write it `W Q`, and every x is then `x Q`.

The papers turn LayerNorm into RMSNorm first, since Q and the subtraction of the mean do not
commute. Here Q keeps the vector of ones, `Q 1 = 1`, and so the mean of every x: pre-norm models
stay as they are written, under either norm, once its scale and bias are in what reads it.
Q is `A S A^T`, A a Hadamard matrix (times one of Hartley, for sizes that are no power of two) whose
first column is even, S random signs.
"""

import math
from typing import Any, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.numerics import hashing


def rotation(size: int, seed: int = 0) -> np.ndarray:
  """An orthogonal, symmetric matrix `[size, size]` that spreads single entries and keeps ones.

  Args:
    size: positive.
    seed: of the signs.

  Returns:
    float64; its rows sum to one.

  Raises:
    ValueError: `size` is not a positive integer.

  Example:
    >>> q = rotation(6)
    >>> bool(np.allclose(q @ q, np.eye(6))), bool(np.allclose(q.sum(1), 1))
    (True, True)
  """
  if isinstance(size, bool) or not isinstance(size, int) or size < 1:
    raise ValueError(f'size must be a positive integer, got {size!r}.')
  hashing.check_seed(seed)
  odd = size
  basis = np.ones((1, 1))
  while odd % 2 == 0:
    basis, odd = np.kron(basis, np.array([[1.0, 1.0], [1.0, -1.0]]) / math.sqrt(2)), odd // 2
  angles = 2 * np.pi * np.outer(np.arange(odd), np.arange(odd)) / odd
  basis = np.kron(basis, (np.cos(angles) + np.sin(angles)) / math.sqrt(odd))
  signs = np.random.default_rng(seed).choice([-1.0, 1.0], size)
  signs[0] = 1.0   # of the even column: the mean stays
  return (basis * signs) @ basis.T


def rotate(params: Any, *, reads: str, writes: str, norms: Mapping[str, str] | None = None,
           seed: int = 0, axes: Mapping[str, Any] | None = None) -> Any:
  """The params of a pre-norm transformer whose residual stream is rotated; the same function.

  Args:
    params: tree of float weights.
    reads: a regular expression for the weights whose reduction axes are the stream: query, key,
      value, the first of an MLP, an untied head.
    writes: one for the weights whose output axes are the stream, and vectors that are added to
      it: embeddings, positions, attention's output, the last of an MLP, their biases.
    norms: {path of a norm: regular expression for what reads its output}, with all of which its
      `scale` and `bias` are multiplied out first; without it norms must have none. What they are
      added to are the biases beside those weights.
    seed: of the rotation.
    axes: {weight name: DimensionNumbers}, as `init` takes them.

  Returns:
    Params of the same structure, shapes and dtypes, for the same model.

  Raises:
    ValueError: a pattern matches nothing, or a weight of another width; a norm is not there, or has
      a bias where what reads it has none.

  Example:
    >>> norm = lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True))
    >>> fn = lambda p, x: norm(x @ p['embed']) @ p['head']
    >>> params = {'embed': jnp.eye(4), 'head': jnp.arange(8.0).reshape(4, 2)}
    >>> new, x = rotate(params, reads='head', writes='embed'), jnp.array([[1.0, 0.0, 0.0, 9.0]])
    >>> bool(jnp.allclose(fn(params, x), fn(new, x), atol=1e-5))
    True
  """
  leaves, rebuild = names.named_leaves(params)
  values = {leaf.name: leaf.value for leaf in leaves}
  of_module = {leaf.name: leaf.of_module for leaf in leaves}
  layout = lambda name: roles.Layout(
      values[name].shape, values[name].dtype, roles.DimensionNumbers(*(
          (axes or {}).get(name)
          or roles.known_axes(name, values[name].shape, of_module=of_module[name]))))
  for norm, pattern in (norms or {}).items():
    _fold(values, norm, _matching(values, pattern), layout)
  readers, writers = _matching(values, reads), _matching(values, writes)
  if any(values[name].ndim < 2 for name in readers):
    raise ValueError(f'{readers}: what reads the stream has two axes and more.')
  size = layout(readers[0]).matrix_shape[-2]
  q = jnp.asarray(rotation(size, seed), jnp.float32)
  turn = lambda spelling, *args: jnp.einsum(spelling, *args, precision='highest')
  for name in readers:
    values[name] = _mapped(name, values[name], layout(name), -2, size,
                           lambda m: turn('rs,...ro->...so', q, m))
  for name in writers:
    if values[name].ndim == 1:
      if values[name].shape != (size,):
        raise ValueError(f'{name}: its shape is {values[name].shape}, the stream is {size} wide.')
      values[name] = turn('r,rs->s', values[name].astype(jnp.float32), q).astype(
          values[name].dtype)
    else:
      values[name] = _mapped(name, values[name], layout(name), -1, size,
                             lambda m: turn('...ro,os->...rs', m, q))
  return rebuild([values[leaf.name] for leaf in leaves])


def _matching(values, pattern) -> list[str]:
  found = names.compile_pattern(pattern)
  chosen = [name for name in values if found.fullmatch(name)]
  if not chosen:
    raise ValueError(f'no weight matches {pattern!r}; there are {", ".join(values)}.')
  return chosen


def _mapped(name, w, layout, axis, size, function) -> jax.Array:
  matrix = layout.to_matrix(w).astype(jnp.float32)
  if matrix.shape[axis] != size:
    raise ValueError(f'{name}: its matrix is {matrix.shape}, the stream is {size} wide.')
  return layout.from_matrix(function(matrix)).astype(w.dtype)


def _fold(values, norm, readers, layout) -> None:
  """Multiplies a norm's scale and bias out with what reads it, in place."""
  scale, bias = values.get(f'{norm}/scale'), values.get(f'{norm}/bias')
  if scale is None and bias is None:
    raise ValueError(f'{norm}: it has neither scale nor bias; there are {", ".join(values)}.')
  for name in readers:
    w, numbers = values[name], layout(name)
    if bias is not None:
      beside = '/'.join([*name.split('/')[:-1], 'bias'])
      shift = jnp.einsum('...r,...ro->...o', bias.astype(jnp.float32),
                         numbers.to_matrix(w).astype(jnp.float32), precision='highest')
      if beside in values:
        old = values[beside]
        values[beside] = (old + shift.reshape(old.shape)).astype(old.dtype)
      elif bool(jnp.any(bias != 0)):
        raise ValueError(f'{name}: {norm} has a bias, which needs one at {beside} to go to.')
    if scale is not None:
      values[name] = _mapped(name, w, numbers, -2, scale.shape[-1],
                             lambda m: m * scale.astype(jnp.float32)[..., None])
  for key, ones in ((f'{norm}/scale', True), (f'{norm}/bias', False)):
    if key in values:
      values[key] = jnp.full_like(values[key], float(ones))
