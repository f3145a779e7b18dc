"""Low rank: factors in place of a weight, or beside it."""

from jaxsparse.lowrank.cuttlefish import cuttlefish
from jaxsparse.lowrank.lora import Lora
from jaxsparse.lowrank.lora import lora
from jaxsparse.lowrank.low_rank import LowRank
from jaxsparse.lowrank.low_rank import NormalizedLowRank
from jaxsparse.lowrank.low_rank import low_rank
from jaxsparse.lowrank.stable_rank import StableRanks
from jaxsparse.lowrank.stable_rank import choose_ranks
from jaxsparse.lowrank.stable_rank import ranks_settled
from jaxsparse.lowrank.stable_rank import stable_ranks
from jaxsparse.lowrank.stable_rank import track_stable_rank

TRANSFORMS = (lora, low_rank, track_stable_rank, cuttlefish)
VALUES = ()

__all__ = [
    'Lora', 'LowRank', 'NormalizedLowRank', 'StableRanks', 'TRANSFORMS', 'VALUES', 'choose_ranks',
    'cuttlefish', 'lora', 'low_rank', 'ranks_settled', 'stable_ranks', 'track_stable_rank',
]
