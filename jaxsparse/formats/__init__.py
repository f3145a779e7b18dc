"""How a packed weight is stored and multiplied. A new format: one file and one line here."""

from jaxsparse.formats.adapters import AdaptersArray
from jaxsparse.formats.bitmask import BitmaskArray
from jaxsparse.formats.block import BlockArray
from jaxsparse.formats.codebook import CodebookArray
from jaxsparse.formats.format import Cost
from jaxsparse.formats.format import Format
from jaxsparse.formats.format import can_dot
from jaxsparse.formats.format import convolve
from jaxsparse.formats.format import densify
from jaxsparse.formats.format import dot
from jaxsparse.formats.format import is_format
from jaxsparse.formats.format import nbytes
from jaxsparse.formats.format import take
from jaxsparse.formats.low_rank import LowRankArray
from jaxsparse.formats.native import NativeArray
from jaxsparse.formats.nm import NMArray
from jaxsparse.formats.packed import PackedInts
from jaxsparse.formats.prepare import prepare
from jaxsparse.formats.quantized import QArray
from jaxsparse.formats.quantized import QuantizedScale
from jaxsparse.formats.tpu import TPUArray
from jaxsparse.formats.trained_blocks import TrainedBlocks

__all__ = [
    'AdaptersArray', 'BitmaskArray', 'BlockArray', 'CodebookArray', 'Cost', 'Format',
    'LowRankArray', 'NMArray', 'NativeArray', 'PackedInts', 'QArray', 'QuantizedScale', 'TPUArray',
    'TrainedBlocks', 'can_dot', 'convolve', 'densify', 'dot', 'is_format', 'nbytes', 'prepare',
    'take',
]
