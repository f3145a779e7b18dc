"""Low rank: factors in place of a weight, or beside it."""

from jaxsparse.lowrank.adalora import AdaLora
from jaxsparse.lowrank.adalora import adalora
from jaxsparse.lowrank.adapters import choose_adapters
from jaxsparse.lowrank.adapters import merge
from jaxsparse.lowrank.adapters import mix_adapters
from jaxsparse.lowrank.adapters import unmerge
from jaxsparse.lowrank.asvd import asvd
from jaxsparse.lowrank.cuttlefish import cuttlefish
from jaxsparse.lowrank.dora import Dora
from jaxsparse.lowrank.dora import dora
from jaxsparse.lowrank.lora import Lora
from jaxsparse.lowrank.lora import lora
from jaxsparse.lowrank.low_rank import LowRank
from jaxsparse.lowrank.low_rank import NormalizedLowRank
from jaxsparse.lowrank.low_rank import low_rank
from jaxsparse.lowrank.peft import export_peft
from jaxsparse.lowrank.peft import import_peft
from jaxsparse.lowrank.stable_rank import StableRanks
from jaxsparse.lowrank.stable_rank import choose_ranks
from jaxsparse.lowrank.stable_rank import ranks_settled
from jaxsparse.lowrank.stable_rank import stable_ranks
from jaxsparse.lowrank.stable_rank import track_stable_rank
from jaxsparse.lowrank.starts import gaussian
from jaxsparse.lowrank.starts import loftq
from jaxsparse.lowrank.starts import over_rank
from jaxsparse.lowrank.starts import pissa
from jaxsparse.lowrank.starts import rslora
from jaxsparse.lowrank.svd_llm import svd_llm

TRANSFORMS = (adalora, asvd, cuttlefish, dora, lora, low_rank, svd_llm, track_stable_rank)
VALUES = (gaussian, loftq, over_rank, pissa, rslora)

__all__ = [
    'AdaLora', 'Dora', 'Lora', 'LowRank', 'NormalizedLowRank', 'StableRanks', 'TRANSFORMS',
    'VALUES', 'adalora', 'asvd', 'choose_adapters', 'choose_ranks', 'cuttlefish', 'dora',
    'export_peft', 'gaussian', 'import_peft', 'loftq', 'lora', 'low_rank', 'merge', 'mix_adapters',
    'over_rank', 'pissa', 'ranks_settled', 'rslora', 'stable_ranks', 'svd_llm',
    'track_stable_rank', 'unmerge',
]
