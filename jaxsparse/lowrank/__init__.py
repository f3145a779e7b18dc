"""Low rank: factors in place of a weight, or beside it."""

from jaxsparse.lowrank.adapters import choose_adapters
from jaxsparse.lowrank.adapters import merge
from jaxsparse.lowrank.adapters import mix_adapters
from jaxsparse.lowrank.adapters import unmerge
from jaxsparse.lowrank.dora import Dora
from jaxsparse.lowrank.dora import dora
from jaxsparse.lowrank.lora import Lora
from jaxsparse.lowrank.lora import lora
from jaxsparse.lowrank.low_rank import LowRank
from jaxsparse.lowrank.low_rank import low_rank
from jaxsparse.lowrank.starts import gaussian
from jaxsparse.lowrank.starts import loftq
from jaxsparse.lowrank.starts import over_rank
from jaxsparse.lowrank.starts import pissa
from jaxsparse.lowrank.starts import rslora

TRANSFORMS = (dora, lora, low_rank)
VALUES = (gaussian, loftq, over_rank, pissa, rslora)

__all__ = [
    'Dora', 'Lora', 'LowRank', 'TRANSFORMS', 'VALUES', 'choose_adapters', 'dora', 'gaussian',
    'loftq', 'lora', 'low_rank', 'merge', 'mix_adapters', 'over_rank', 'pissa', 'rslora', 'unmerge',
]
