"""Parameter sharing: many entries, few values."""

from jaxsparse.sharing.clustered import Clustered
from jaxsparse.sharing.clustered import clustered

TRANSFORMS = (clustered,)
VALUES = ()

__all__ = ['Clustered', 'TRANSFORMS', 'VALUES', 'clustered']
