"""What the processes of a run tell each other, through JAX's coordination service.

No collective and no barrier: a message is a key with a value, reading one has a deadline, and who
stayed silent is known. With one process nothing is sent.
"""

import collections
import hashlib
import json
import pathlib
import time
from typing import Any

import jax
from jax._src import distributed  # the key-value store has no public name

_SEEN: collections.Counter = collections.Counter()


class Hosts:
  """The processes of a run, as far as one store is concerned.

  Attributes:
    rank: of this process.
    count: of processes.
  """

  def __init__(self, directory: pathlib.Path, timeout_seconds: float):
    self.rank, self.count = jax.process_index(), jax.process_count()
    self._client = distributed.global_state.client
    self._timeout = timeout_seconds
    place = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    # Every process makes its stores in the same order, so the number is common.
    self._prefix = f'jaxsparse/{place}/{_SEEN[place]}'
    _SEEN[place] += 1
    self._group = ''

  def named(self, rank: int, text: str) -> str:
    """The text, with the host that says it where there are several."""
    return f'host {rank}: {text}' if self.count > 1 else text

  def gather(self, topic: str, value: Any) -> list[Any]:
    """What all processes say, by rank; None for one that is silent beyond the deadline.

    Args:
      topic: the same on all processes, and never used twice; what precedes its first `/` is a group
        of topics, forgotten when all take part in a gathering of another.
      value: what this process says, JSON.
    """
    if self.count == 1:
      return [value]
    where = f'{self._prefix}/{topic}'
    self._client.key_value_set(f'{where}/{self.rank}', json.dumps(value))
    if self.rank:
      # Process 0 may itself have waited for others, here and before.
      said = self._get(f'{where}/all', time.monotonic() + 3 * self._timeout)
      return json.loads(said) if said is not None else [None] * self.count
    deadline = time.monotonic() + self._timeout
    texts = [self._get(f'{where}/{k}', deadline) for k in range(1, self.count)]
    said = [value, *(None if text is None else json.loads(text) for text in texts)]
    self._client.key_value_set(f'{where}/all', json.dumps(said))
    if (group := topic.partition('/')[0]) != self._group:
      if self._group:
        self._client.key_value_delete(f'{self._prefix}/{self._group}/')
      self._group = group
    return said

  def tell(self, topic: str, text: str) -> None:
    """Leaves a message of this process that `heard` finds."""
    if self.count > 1:
      self._client.key_value_set(f'{self._prefix}/{topic}/{self.rank}', text)

  def heard(self, topic: str) -> dict[int, str]:
    """Messages left so far, by rank; does not wait."""
    if self.count == 1:
      return {}
    found = self._client.key_value_dir_get(f'{self._prefix}/{topic}/')
    return {int(key.rpartition('/')[2]): text for key, text in found}

  def _get(self, key, deadline):
    left = max(1, int(1000 * (deadline - time.monotonic())))
    try:
      return self._client.blocking_key_value_get(key, left)
    except jax.errors.JaxRuntimeError as e:
      if 'DEADLINE_EXCEEDED' not in str(e):
        raise
      return None
