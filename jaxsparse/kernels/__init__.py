"""Matmuls on raw arrays: the XLA reference first, each backend of its own beside it."""

from jaxsparse.kernels.backends import Backend
from jaxsparse.kernels.backends import Backends
from jaxsparse.kernels.backends import backends
from jaxsparse.kernels.native.columns import csr_matmul
from jaxsparse.kernels.native.nibbles import int4_matmul
from jaxsparse.kernels.native.tiles import int8_matmul
from jaxsparse.kernels.native.tiles import int8_tile_matmul
from jaxsparse.kernels.native.vector_matrix import vector_matrix
from jaxsparse.kernels.native.vectors import vector_sparse_matmul

__all__ = [
    'Backend', 'Backends', 'backends', 'csr_matmul', 'int4_matmul', 'int8_matmul',
    'int8_tile_matmul', 'vector_matrix', 'vector_sparse_matmul',
]
