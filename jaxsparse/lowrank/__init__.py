"""Low rank: factors in place of a weight, or beside it."""

from jaxsparse.lowrank.lora import Lora
from jaxsparse.lowrank.lora import lora
from jaxsparse.lowrank.low_rank import LowRank
from jaxsparse.lowrank.low_rank import NormalizedLowRank
from jaxsparse.lowrank.low_rank import low_rank

TRANSFORMS = (lora, low_rank)
VALUES = ()

__all__ = ['Lora', 'LowRank', 'NormalizedLowRank', 'TRANSFORMS', 'VALUES', 'lora', 'low_rank']
