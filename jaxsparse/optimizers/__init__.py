"""Where transforms meet optax: the wrapper, and optimizer states that follow the weights."""

from jaxsparse.optimizers.moments import realign
from jaxsparse.optimizers.wrap import WrapState
from jaxsparse.optimizers.wrap import wrap

__all__ = ['WrapState', 'realign', 'wrap']
