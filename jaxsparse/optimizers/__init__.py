"""Where transforms meet optax: the wrapper, and optimizer states that follow the weights."""

from jaxsparse.optimizers import compressors
from jaxsparse.optimizers.error_feedback import ErrorFeedbackState
from jaxsparse.optimizers.error_feedback import error_feedback
from jaxsparse.optimizers.frobenius import frobenius_decay
from jaxsparse.optimizers.lora_plus import lora_plus
from jaxsparse.optimizers.masked import masked_adaptive_clip
from jaxsparse.optimizers.masked import masked_clip
from jaxsparse.optimizers.masked import masked_decay
from jaxsparse.optimizers.masked import masked_rms_clip
from jaxsparse.optimizers.masked import masked_updates
from jaxsparse.optimizers.moments import realign
from jaxsparse.optimizers.narrow_params import KahanState
from jaxsparse.optimizers.narrow_params import StochasticRoundingState
from jaxsparse.optimizers.narrow_params import kahan
from jaxsparse.optimizers.narrow_params import stochastic_rounding
from jaxsparse.optimizers.quantized_state import QuantizedState
from jaxsparse.optimizers.quantized_state import quantized_state
from jaxsparse.optimizers.sketched_adam import SketchedAdamState
from jaxsparse.optimizers.sketched_adam import sketched_adam
from jaxsparse.optimizers.warm import WarmState
from jaxsparse.optimizers.warm import warm_again
from jaxsparse.optimizers.wrap import WrapState
from jaxsparse.optimizers.wrap import wrap

__all__ = [
    'ErrorFeedbackState', 'KahanState', 'QuantizedState', 'SketchedAdamState',
    'StochasticRoundingState', 'WarmState', 'WrapState', 'compressors', 'error_feedback',
    'frobenius_decay', 'kahan', 'lora_plus', 'masked_adaptive_clip', 'masked_clip', 'masked_decay',
    'masked_rms_clip', 'masked_updates', 'quantized_state', 'realign', 'sketched_adam',
    'stochastic_rounding', 'warm_again', 'wrap',
]
