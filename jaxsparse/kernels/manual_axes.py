"""Inside `jax.shard_map`: arrays that vary over axes of a mesh, which is part of their types."""

import jax


def alike(*arrays: jax.Array) -> tuple[jax.Array, ...]:
  """The arrays, each of a type that varies over the manual axes of any of them.

  A loop's carry keeps its type, branches have one, and so do a value and its gradient; jax finds
  none of this by itself. Gradients of what did not vary are summed over the axes. Elsewhere than
  in `shard_map` nothing happens.
  """
  axes = frozenset().union(*map(_varying, arrays))
  missing = [tuple(axes - _varying(a)) for a in arrays]
  return tuple(jax.lax.pcast(a, m, to='varying') if m else a for a, m in zip(arrays, missing))


def _varying(x) -> frozenset:
  kind = jax.typeof(x)
  # Which of the two a version of jax has.
  return kind.manual_axis_type.varying if hasattr(kind, 'manual_axis_type') else kind.vma
