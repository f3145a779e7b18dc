"""A stored weight that is multiplied in a chosen way."""

import dataclasses
import functools
from typing import Any

import jax

from jaxsparse.formats import format as formats


@functools.partial(jax.tree_util.register_dataclass, data_fields=['stored'], meta_fields=['way'])
@dataclasses.dataclass(frozen=True)
class Through(formats.Format):
  """`stored`, whose `matmul` is `stored.matmuls()[way]`.

  Attributes:
    stored: any format.
    way: a name among its `matmuls()`.
  """

  stored: Any
  way: str

  @property
  def layout(self):
    """That of the stored weight."""
    return self.stored.layout

  def dense_matrix(self):
    return self.stored.dense_matrix()

  def matmul(self, x):
    return self.stored.matmuls()[self.way](x)

  def multiply_adds(self, rows):
    return self.stored.multiply_adds(rows)

  def astype(self, dtype):
    return dataclasses.replace(self, stored=self.stored.astype(dtype))

  def drop_leading(self):
    return dataclasses.replace(self, stored=self.stored.drop_leading())
