"""A stored weight that is multiplied in a chosen way."""

import dataclasses
import functools
from typing import Any

import jax

from jaxsparse.formats import format as formats


@functools.partial(jax.tree_util.register_dataclass, data_fields=['stored'], meta_fields=['way'])
@dataclasses.dataclass(frozen=True)
class Through(formats.Wrapper):
  """`stored`, whose `matmul` is `stored.matmuls()[way]`.

  Attributes:
    stored: any format.
    way: a name among its `matmuls()`.
  """

  stored: Any
  way: str

  def matmul(self, x):
    return self.stored.matmuls()[self.way](x)
