"""Low rank: factors in place of a weight, or beside it."""

from jaxsparse.lowrank.adalora import AdaLora
from jaxsparse.lowrank.adalora import adalora
from jaxsparse.lowrank.adapters import choose_adapters
from jaxsparse.lowrank.adapters import merge
from jaxsparse.lowrank.adapters import mix_adapters
from jaxsparse.lowrank.adapters import unmerge
from jaxsparse.lowrank.asvd import asvd
from jaxsparse.lowrank.dora import Dora
from jaxsparse.lowrank.dora import dora
from jaxsparse.lowrank.lora import Lora
from jaxsparse.lowrank.lora import lora
from jaxsparse.lowrank.low_rank import LowRank
from jaxsparse.lowrank.low_rank import low_rank
from jaxsparse.lowrank.peft import export_peft
from jaxsparse.lowrank.peft import import_peft
from jaxsparse.lowrank.starts import gaussian
from jaxsparse.lowrank.starts import loftq
from jaxsparse.lowrank.starts import over_rank
from jaxsparse.lowrank.starts import pissa
from jaxsparse.lowrank.starts import rslora
from jaxsparse.lowrank.svd_llm import svd_llm

TRANSFORMS = (adalora, asvd, dora, lora, low_rank, svd_llm)
VALUES = (gaussian, loftq, over_rank, pissa, rslora)

__all__ = [
    'AdaLora', 'Dora', 'Lora', 'LowRank', 'TRANSFORMS', 'VALUES', 'adalora', 'asvd',
    'choose_adapters', 'dora', 'export_peft', 'gaussian', 'import_peft', 'loftq', 'lora',
    'low_rank', 'merge', 'mix_adapters', 'over_rank', 'pissa', 'rslora', 'svd_llm', 'unmerge',
]
