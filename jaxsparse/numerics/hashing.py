"""Seeds from names: noise that depends on the seed, the weight's name and the count alone."""

import hashlib

import jax


def check_seed(seed) -> int:
  """`seed` if it is an integer.

  Raises:
    ValueError: it is not one.
  """
  if isinstance(seed, bool) or not isinstance(seed, int):
    raise ValueError(f'seed must be an integer, got {seed!r}.')
  return seed


def key_of(seed: int, name: str, count=None) -> jax.Array:
  """A PRNG key for the weight called `name` at step `count`, independent of tree order.

  Args:
    seed: the run's seed.
    name: the weight's name.
    count: an integer or integer array, or None for a key used once, at init.

  Returns:
    A typed key array, shape `()`.
  """
  digest = hashlib.sha256(name.encode()).digest()
  key = jax.random.fold_in(jax.random.key(seed), int.from_bytes(digest[:4], 'little'))
  return key if count is None else jax.random.fold_in(key, count)
