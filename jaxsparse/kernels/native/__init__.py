"""Products for CPUs in C++, behind jax.ffi. Optional: each has an XLA formulation beside it."""
