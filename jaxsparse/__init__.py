"""jaxsparse: compression of any JAX model, with the cost and the guarantees beside the accuracy.

Weights are compressed by Transforms, computations are observed or altered by Hooks, packed
weights are Formats, and nothing else touches the model.
"""

from jaxsparse import formats
from jaxsparse.core.combine import at
from jaxsparse.core.combine import chain
from jaxsparse.core.combine import rules
from jaxsparse.core.masks import MaskState
from jaxsparse.core.masks import masks
from jaxsparse.core.names import Frozen
from jaxsparse.core.names import label
from jaxsparse.core.parametrization import Parametrization
from jaxsparse.core.parametrization import freeze
from jaxsparse.core.parametrization import leafwise
from jaxsparse.core.plan import plan
from jaxsparse.core.schedules import Schedule
from jaxsparse.core.schedules import at_step
from jaxsparse.core.schedules import constant
from jaxsparse.core.schedules import cubic
from jaxsparse.core.schedules import every
from jaxsparse.core.schedules import linear
from jaxsparse.core.schedules import schedule
from jaxsparse.core.transform import Transform
from jaxsparse.core.transform import identity
from jaxsparse.core.transform import spell_transform as spell
from jaxsparse.core.weights import treewise
from jaxsparse.formats import densify
from jaxsparse.formats import is_format
from jaxsparse.formats import nbytes
from jaxsparse.numerics.axes import DimensionNumbers
from jaxsparse.lowrank import Lora
from jaxsparse.lowrank import LowRank
from jaxsparse.lowrank import lora
from jaxsparse.lowrank import low_rank
from jaxsparse.optimizers import WrapState
from jaxsparse.optimizers import realign
from jaxsparse.optimizers import wrap
from jaxsparse.quantization import Lsq
from jaxsparse.quantization import fake_quantize
from jaxsparse.quantization import lsq
from jaxsparse.quantization import nf4
from jaxsparse.quantization import quantize
from jaxsparse.recipes import parse
from jaxsparse.recipes import words
from jaxsparse.sharing import Clustered
from jaxsparse.sharing import clustered
from jaxsparse.sparsity import block
from jaxsparse.sparsity import channel
from jaxsparse.sparsity import criteria
from jaxsparse.sparsity import erk
from jaxsparse.sparsity import magnitude
from jaxsparse.sparsity import n_m
from jaxsparse.sparsity import nm
from jaxsparse.sparsity import pooled
from jaxsparse.sparsity import prune
from jaxsparse.sparsity import rigl
from jaxsparse.sparsity import uniform
from jaxsparse.sparsity import unstructured
from jaxsparse.trace import Contraction
from jaxsparse.trace import Flops
from jaxsparse.trace import Observer
from jaxsparse.trace import axes_of
from jaxsparse.trace import calibrate
from jaxsparse.trace import contractions
from jaxsparse.trace import dispatch
from jaxsparse.trace import flops
from jaxsparse.trace import gram
from jaxsparse.trace import hooked
from jaxsparse.trace import input_norm
from jaxsparse.trace import quantize_activations
from jaxsparse.trace import range_ as range
from jaxsparse.training import CheckpointStore
from jaxsparse.training import NoCheckpoint
from jaxsparse.training import NonFiniteError
from jaxsparse.training import Restored
from jaxsparse.training import SaveError
from jaxsparse.training import TrainState
from jaxsparse.training import digest
from jaxsparse.training import fingerprint
from jaxsparse.training import optimizer_specs
from jaxsparse.training import restage
from jaxsparse.training import restore_checkpoint
from jaxsparse.training import save_checkpoint
from jaxsparse.training import sharding_specs
from jaxsparse.training import train_shardings
from jaxsparse.training import train_step
from jaxsparse.training import value_and_grad
from jaxsparse.core.masks import sparsity  # isort: skip  (after the room of the same name)
