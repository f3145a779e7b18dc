"""Codes that are not trained."""

from typing import Any, Callable

import jax.numpy as jnp

from jaxsparse.core import calibration
from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.core import transform as transforms
from jaxsparse.formats import quantized
from jaxsparse.numerics import scales
from jaxsparse.quantization import scheme as schemes


def on_grid(scheme: schemes.Scheme) -> parametrization.Parametrization:
  """A weight whose codes are its state."""
  return codes(lambda w, *, layout: (names.Frozen(), scheme.store(w, layout)))


def from_statistics(init: Callable, spelling: Any) -> transforms.Transform:
  """The transform whose `init(w, *, stats, layout)` gives the codes of each weight, once."""
  return parametrization.leafwise(codes(init), spec=transforms.Spec(
      spelling, restructures=True, needs=frozenset(['stats'])))


def from_gram(scheme: schemes.Scheme, spelling: Any, solve: Callable, *,
              fits: bool = True) -> transforms.Transform:
  """The transform whose codes are found from the Gram of a layer's inputs.

  Args:
    scheme: what is rounded to.
    spelling: the spelled form.
    solve: `(w, gram, scale) -> (rounded w, codes, scale or None)`, with float32 `w [*batch, R, O]`
      and scales `[*batch, G, O]`; None where the scale stays the one that it was given.
    fits: whether `scheme` fits that scale; otherwise `solve` gets None, and gives one.
  """
  def init(w, *, stats, layout):
    found = scheme.fit(w.astype(jnp.float32)) if fits else None

    def compress(x, gram):
      # By column, also where columns belong to several Grams.
      given = schemes.by_column(found, w.shape[-1], x) if fits else None
      values, codes, new = solve(x, gram, given)
      return values, codes, *((None, None) if new is None else (new.scale, new.zero))

    _, found_codes, steps, zeros = calibration.by_group(
        compress, w, calibration.gram_of(stats, layout), layout.matrix_shape[-1])
    fitted = found if steps is None else scales.Scale(steps, zeros)
    return names.Frozen(), quantized.QArray.of_codes(
        found_codes, fitted, layout.astype(w.dtype), scheme.grid, scheme.group)

  return from_statistics(init, spelling)


def codes(init: Callable) -> parametrization.Parametrization:
  """A weight that is the format which `init` finds, of whatever it is offered: its state."""
  return parametrization.Parametrization(
      init, lambda latents, state: state.dense_matrix(), None, lambda latents, state: state)
