"""Integer codes as stored: bytes of one, two, four or eight bits each. Part of other formats."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import packing


@functools.partial(jax.tree_util.register_dataclass, data_fields=['data'],
                   meta_fields=['bits', 'rows', 'signed'])
@dataclasses.dataclass(frozen=True)
class PackedInts:
  """Codes `[..., rows, columns]`, packed along the rows.

  Attributes:
    data: uint8 `[..., ceil(rows * width / 8), columns]`.
    bits: bits of a code, 1 to 8.
    rows: number of codes along the packed axis.
    signed: whether codes are two's complement integers centred on zero.
  """

  data: jax.Array
  bits: int
  rows: int
  signed: bool

  @classmethod
  def pack(cls, codes: jax.Array, bits: int, *, signed: bool) -> 'PackedInts':
    """Stores `codes` `[..., rows, columns]`; signed codes are offset to be non-negative."""
    offset = 2 ** (bits - 1) if signed else 0
    data = packing.pack(codes.astype(jnp.int32) + offset, bits)
    return cls(data, bits, codes.shape[-2], signed)

  def unpack(self) -> jax.Array:
    """The codes, int8 where signed and uint8 otherwise, `[..., rows, columns]`."""
    codes = packing.unpack(self.data, self.bits, self.rows)
    if not self.signed:
      return codes
    # Below zero a byte wraps, to what int8 reads as the code.
    return jax.lax.bitcast_convert_type(codes - np.uint8(2 ** (self.bits - 1)), jnp.int8)


def unpacked(values):
  """`values` as an array: codes are unpacked, arrays returned as they are."""
  return values.unpack() if isinstance(values, PackedInts) else values
