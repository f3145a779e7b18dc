"""Where transforms meet optax: the wrapper, and optimizer states that follow the weights."""

from jaxsparse.optimizers.frobenius import frobenius_decay
from jaxsparse.optimizers.masked import masked_adaptive_clip
from jaxsparse.optimizers.masked import masked_clip
from jaxsparse.optimizers.masked import masked_decay
from jaxsparse.optimizers.masked import masked_rms_clip
from jaxsparse.optimizers.masked import masked_updates
from jaxsparse.optimizers.moments import realign
from jaxsparse.optimizers.warm import WarmState
from jaxsparse.optimizers.warm import warm_again
from jaxsparse.optimizers.wrap import WrapState
from jaxsparse.optimizers.wrap import wrap

__all__ = [
    'WarmState', 'WrapState', 'frobenius_decay', 'masked_adaptive_clip', 'masked_clip',
    'masked_decay', 'masked_rms_clip', 'masked_updates', 'realign', 'warm_again', 'wrap',
]
