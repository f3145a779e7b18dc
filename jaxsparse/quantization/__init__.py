"""Quantization: grid x granularity x scale rule, in training and after."""

from jaxsparse.quantization.adaround import adaround
from jaxsparse.quantization.autoround import autoround
from jaxsparse.quantization.awq import awq
from jaxsparse.quantization.bias_correction import correct_bias
from jaxsparse.quantization.codebook import codebook
from jaxsparse.quantization.compressed_tensors import export_compressed_tensors
from jaxsparse.quantization.compressed_tensors import import_compressed_tensors
from jaxsparse.quantization.fake_quantize import fake_quantize
from jaxsparse.quantization.freeze_oscillations import OscillationState
from jaxsparse.quantization.freeze_oscillations import freeze_oscillations
from jaxsparse.quantization.gptq import gptq
from jaxsparse.quantization.gradual_quantize import gradual_quantize
from jaxsparse.quantization.kv_cache import QuantizedCache
from jaxsparse.quantization.kv_cache import append_to_cache
from jaxsparse.quantization.kv_cache import quantize_cache
from jaxsparse.quantization.kv_cache import read_cache
from jaxsparse.quantization.lsq import Lsq
from jaxsparse.quantization.lsq import lsq
from jaxsparse.quantization.nf4 import nf4
from jaxsparse.quantization.parq import parq
from jaxsparse.quantization.quantize import quantize
from jaxsparse.quantization.qwix_arrays import from_qwix
from jaxsparse.quantization.qwix_arrays import to_qwix
from jaxsparse.quantization.rotate import rotate
from jaxsparse.quantization.rotate import rotation
from jaxsparse.quantization.scheme import percentile
from jaxsparse.quantization.smoothquant import smoothquant

TRANSFORMS = (adaround, autoround, awq, codebook, fake_quantize, freeze_oscillations, gptq,
              gradual_quantize, lsq, nf4, parq, quantize, smoothquant)
VALUES = (percentile,)

__all__ = [
    'Lsq', 'OscillationState', 'QuantizedCache', 'TRANSFORMS', 'VALUES', 'adaround',
    'append_to_cache', 'autoround', 'awq', 'codebook', 'correct_bias', 'export_compressed_tensors',
    'fake_quantize', 'freeze_oscillations', 'from_qwix', 'gptq', 'gradual_quantize',
    'import_compressed_tensors', 'lsq', 'nf4', 'parq', 'percentile', 'quantize', 'quantize_cache',
    'read_cache', 'rotate', 'rotation', 'smoothquant', 'to_qwix',
]
