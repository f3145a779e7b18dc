"""Block panels of which some only train: products leave them out, the weight gradient has them.

Sparse training with a wider backward set (Top-KAST, arXiv:2106.03517) in three products, each at
the cost of the blocks it is about: forward and input gradient those that are used, the weight
gradient all that train.
"""

import dataclasses
import functools

import jax

from jaxsparse.formats import block
from jaxsparse.formats import format as formats


@functools.partial(jax.tree_util.register_dataclass, data_fields=['stored'],
                   meta_fields=['slots', 'doubly_balanced'])
@dataclasses.dataclass(frozen=True)
class TrainedBlocks(formats.Wrapper):
  """The weight of the first blocks of each panel; gradients are of all of them.

  Attributes:
    stored: all blocks; those from slot `slots` on hold zeros.
    slots: of each panel that products use.
    doubly_balanced: whether the blocks that are used are.
  """

  stored: block.BlockArray
  slots: int
  doubly_balanced: bool = False

  def used(self) -> block.BlockArray:
    """The blocks that products use, as a format of their own."""
    rows = self.slots * self.stored.block[0]
    return dataclasses.replace(
        self.stored, data=self.stored.data[..., :rows, :], kidx=self.stored.kidx[..., :self.slots],
        doubly_balanced=self.doubly_balanced)

  def matmul(self, x):
    return _product(x, self)

  def multiply_adds(self, rows):
    return self.used().multiply_adds(rows)


@jax.custom_vjp
def _product(x, blocks):
  return blocks.used().matmul(x)


def _forward(x, blocks):
  return _product(x, blocks), (x, blocks)


def _backward(saved, dy):
  x, blocks = saved
  stored = blocks.stored
  _, to_input = jax.vjp(blocks.used().matmul, x)
  # The product with all blocks is never computed: nothing reads it, and its gradient only `x`.
  _, to_data = jax.vjp(lambda data: dataclasses.replace(stored, data=data).matmul(x), stored.data)
  grads = dataclasses.replace(stored, data=to_data(dy)[0], kidx=None)
  return to_input(dy)[0], dataclasses.replace(blocks, stored=grads)


_product.defvjp(_forward, _backward)
