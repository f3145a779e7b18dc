"""Pruning and sparse training: criterion x pattern x distribution x schedule."""

from jaxsparse.sparsity import criteria
from jaxsparse.sparsity.distributions import erk
from jaxsparse.sparsity.distributions import pooled
from jaxsparse.sparsity.distributions import uniform
from jaxsparse.sparsity.patterns import block
from jaxsparse.sparsity.patterns import channel
from jaxsparse.sparsity.patterns import n_m
from jaxsparse.sparsity.patterns import unstructured
from jaxsparse.sparsity.prune import magnitude
from jaxsparse.sparsity.prune import nm
from jaxsparse.sparsity.prune import prune
from jaxsparse.sparsity.rigl import rigl

TRANSFORMS = (magnitude, nm, rigl)
VALUES = (block, channel, erk, n_m, pooled, uniform, unstructured)

__all__ = [
    'TRANSFORMS', 'VALUES', 'block', 'channel', 'criteria', 'erk', 'magnitude', 'n_m', 'nm',
    'pooled', 'prune', 'rigl', 'uniform', 'unstructured',
]
