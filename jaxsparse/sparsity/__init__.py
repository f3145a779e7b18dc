"""Pruning and sparse training: criterion x pattern x distribution x schedule."""

from jaxsparse.sparsity import criteria
from jaxsparse.sparsity.ac_dc import ac_dc
from jaxsparse.sparsity.distributions import er
from jaxsparse.sparsity.distributions import erk
from jaxsparse.sparsity.distributions import pooled
from jaxsparse.sparsity.distributions import pooled_normalized
from jaxsparse.sparsity.distributions import uniform
from jaxsparse.sparsity.budgets import flops_budget
from jaxsparse.sparsity.heads import head
from jaxsparse.sparsity.l0 import L0
from jaxsparse.sparsity.l0 import l0
from jaxsparse.sparsity.movement import movement
from jaxsparse.sparsity.optimal_brain import optimal_brain
from jaxsparse.sparsity.patterns import balanced_blocks
from jaxsparse.sparsity.patterns import block
from jaxsparse.sparsity.patterns import channel
from jaxsparse.sparsity.patterns import n_m
from jaxsparse.sparsity.patterns import unstructured
from jaxsparse.sparsity.patterns import vector
from jaxsparse.sparsity.permutation import Permutation
from jaxsparse.sparsity.permutation import permute_for_nm
from jaxsparse.sparsity.permutation import permuted
from jaxsparse.sparsity.prune import magnitude
from jaxsparse.sparsity.prune import nm
from jaxsparse.sparsity.prune import prune
from jaxsparse.sparsity.rigl import rigl
from jaxsparse.sparsity.sensitivity import by_sensitivity
from jaxsparse.sparsity.sensitivity import sensitivities
from jaxsparse.sparsity.snfs import snfs
from jaxsparse.sparsity.soft_threshold import SoftThreshold
from jaxsparse.sparsity.soft_threshold import soft_threshold
from jaxsparse.sparsity.sparse_evolution import sparse_evolution
from jaxsparse.sparsity.sparsegpt import sparsegpt
from jaxsparse.sparsity.sr_ste import sr_ste
from jaxsparse.sparsity.static import static
from jaxsparse.sparsity.straight_through import straight_through
from jaxsparse.sparsity.top_kast import top_kast
from jaxsparse.sparsity.transposable import transposable
from jaxsparse.sparsity.wanda import wanda

TRANSFORMS = (
    ac_dc, l0, magnitude, movement, nm, optimal_brain, prune, rigl, snfs, soft_threshold,
    sparse_evolution, sparsegpt, sr_ste, static, straight_through, top_kast, wanda,
)
VALUES = (
    balanced_blocks, block, by_sensitivity, channel, er, erk, flops_budget, head, n_m, pooled,
    pooled_normalized,
    transposable, uniform, unstructured, vector,
)

__all__ = [
    'L0', 'Permutation', 'SoftThreshold', 'ac_dc', 'balanced_blocks', 'block', 'by_sensitivity',
    'channel',
    'criteria', 'er', 'erk', 'flops_budget', 'head', 'l0', 'magnitude', 'movement', 'n_m', 'nm',
    'optimal_brain', 'permute_for_nm', 'permuted', 'pooled', 'pooled_normalized', 'prune',
    'rigl', 'sensitivities', 'snfs', 'soft_threshold', 'sparse_evolution', 'sparsegpt',
    'sr_ste', 'static', 'straight_through', 'top_kast', 'transposable', 'uniform',
    'unstructured', 'vector', 'wanda',
]
