"""Matmuls on raw arrays: the XLA reference first, each backend of its own beside it."""
