"""Quantization: grid x granularity x scale rule, in training and after."""

from jaxsparse.quantization.fake_quantize import fake_quantize
from jaxsparse.quantization.gptq import gptq
from jaxsparse.quantization.lsq import Lsq
from jaxsparse.quantization.lsq import lsq
from jaxsparse.quantization.nf4 import nf4
from jaxsparse.quantization.quantize import quantize
from jaxsparse.quantization.scheme import percentile

TRANSFORMS = (fake_quantize, gptq, lsq, nf4, quantize)
VALUES = (percentile,)

__all__ = ['Lsq', 'TRANSFORMS', 'VALUES', 'fake_quantize', 'gptq', 'lsq', 'nf4', 'percentile',
           'quantize']
