"""Drivers: one backward pass, the training step, structure changes, sharding, checkpoints."""

from jaxsparse.training.adapters import load_adapter
from jaxsparse.training.adapters import save_adapter
from jaxsparse.training.checkpoint import restore_checkpoint
from jaxsparse.training.checkpoint import save_checkpoint
from jaxsparse.training.distill import distillation
from jaxsparse.training.distill import hidden_distillation
from jaxsparse.training.fingerprints import digest
from jaxsparse.training.fingerprints import fingerprint
from jaxsparse.training.gradients import value_and_grad
from jaxsparse.training.layers import keep_blocks
from jaxsparse.training.layers import keep_layers
from jaxsparse.training.layers import layer_change
from jaxsparse.training.restage import restage
from jaxsparse.training.sharding import optimizer_specs
from jaxsparse.training.sharding import sharding_specs
from jaxsparse.training.sharding import train_shardings
from jaxsparse.training.step import TrainState
from jaxsparse.training.step import train_step
from jaxsparse.training.store import CheckpointStore
from jaxsparse.training.store import NoCheckpoint
from jaxsparse.training.store import NonFiniteError
from jaxsparse.training.store import Restored
from jaxsparse.training.tickets import Ticket
from jaxsparse.training.tickets import lottery
from jaxsparse.training.tickets import rewind
from jaxsparse.training.writer import SaveError

__all__ = [
    'CheckpointStore', 'NoCheckpoint', 'NonFiniteError', 'Restored', 'SaveError', 'Ticket',
    'TrainState', 'digest', 'distillation', 'fingerprint', 'hidden_distillation', 'keep_blocks',
    'keep_layers', 'layer_change', 'load_adapter', 'lottery', 'optimizer_specs', 'restage',
    'restore_checkpoint', 'rewind', 'save_adapter', 'save_checkpoint', 'sharding_specs',
    'train_shardings', 'train_step', 'value_and_grad',
]
