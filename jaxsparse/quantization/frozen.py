"""Codes that are not trained."""

from jaxsparse.core import names
from jaxsparse.core import parametrization
from jaxsparse.quantization import scheme as schemes


def on_grid(scheme: schemes.Scheme) -> parametrization.Parametrization:
  """A weight whose codes are its state."""
  def init(w, *, layout):
    return names.Frozen(), scheme.store(w, layout)

  return parametrization.Parametrization(
      init, lambda latents, state: state.dense_matrix(), None, lambda latents, state: state)
