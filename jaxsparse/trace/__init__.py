"""The only room that reads programs: which operation consumes which weight, and what follows."""

from jaxsparse.trace.activation_sparsity import threshold_activations
from jaxsparse.trace.activation_sparsity import top_k_activations
from jaxsparse.trace.activation_sparsity import zero_fraction
from jaxsparse.trace.activations import quantize_activations
from jaxsparse.trace.calibrate import calibrate
from jaxsparse.trace.contraction import Contraction
from jaxsparse.trace.costs import Costs
from jaxsparse.trace.costs import compile_costs
from jaxsparse.trace.costs import fastest
from jaxsparse.trace.costs import measure_costs
from jaxsparse.trace.dispatch import dispatch
from jaxsparse.trace.equalize import equalize
from jaxsparse.trace.explain import Explained
from jaxsparse.trace.explain import Explanation
from jaxsparse.trace.explain import explain
from jaxsparse.trace.flops import Flops
from jaxsparse.trace.flops import WeightFlops
from jaxsparse.trace.flops import flops
from jaxsparse.trace.fold_batch_norm import fold_batch_norm
from jaxsparse.trace.histograms import Histogram
from jaxsparse.trace.histograms import histogram
from jaxsparse.trace.histograms import kl_ranges
from jaxsparse.trace.hooks import hooked
from jaxsparse.trace.observers import Observer
from jaxsparse.trace.observers import Range
from jaxsparse.trace.learned_activations import ActivationRange
from jaxsparse.trace.learned_activations import activation_ranges
from jaxsparse.trace.learned_activations import learned_activations
from jaxsparse.trace.observers import gram
from jaxsparse.trace.observers import input_max
from jaxsparse.trace.observers import input_mean
from jaxsparse.trace.observers import input_norm
from jaxsparse.trace.observers import range_
from jaxsparse.trace.one_shot import one_shot
from jaxsparse.trace.profile import factor_speedups
from jaxsparse.trace.quantized_products import quantized_products
from jaxsparse.trace.shrink import Resized
from jaxsparse.trace.shrink import Shrunk
from jaxsparse.trace.shrink import shrink
from jaxsparse.trace.silence import silence
from jaxsparse.trace.walk import axes_of
from jaxsparse.trace.walk import contractions
from jaxsparse.trace.uses import compile_uses
from jaxsparse.trace.uses import measure_uses

__all__ = [
    'ActivationRange', 'Contraction', 'Costs', 'Explained', 'Explanation', 'Flops', 'Histogram',
    'Observer', 'Range', 'Resized', 'Shrunk', 'WeightFlops', 'activation_ranges', 'axes_of',
    'calibrate', 'compile_costs', 'compile_uses', 'contractions', 'dispatch', 'equalize', 'explain',
    'factor_speedups', 'fastest', 'flops', 'fold_batch_norm', 'gram', 'histogram', 'hooked',
    'input_max', 'input_mean', 'input_norm', 'kl_ranges', 'learned_activations', 'measure_costs',
    'measure_uses', 'one_shot', 'quantize_activations', 'quantized_products', 'range_', 'shrink',
    'silence', 'threshold_activations', 'top_k_activations', 'zero_fraction',
]
