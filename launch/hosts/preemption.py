"""SIGTERM as a request: finish the step, save one common step, leave with PREEMPTED.

One process notes the signal itself and sees it at the next step. Several agree on a step through
JAX's preemption service, which from `jax.distributed.initialize` on swallows SIGTERM: a loop that
does not ask at every step neither saves nor stops.
"""

import signal
import threading
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils


class Watch:
  """Notices SIGTERM from its creation to `close`; create it right after `distributed.start`.

  A signal during compilation or saving is seen at the next `reached`, one after the last step by
  what is given to `at_once`. With several processes a signal to any of them counts, and the service
  needs one to two seconds to agree.

  Raises:
    ValueError: created outside the main thread of a one-process run.

  Example:
    >>> with Watch() as watch:
    ...   watch.reached(1)
    False
  """

  def __init__(self):
    self._told = threading.Event()
    self._asked = 0
    self._several = jax.distributed.is_initialized() and jax.process_count() > 1
    if not self._several:
      self._previous = signal.signal(signal.SIGTERM, lambda *_: self._told.set())
    self._open = True

  def reached(self, step: int) -> bool:
    """Whether to save and leave now: true in every process at one common step.

    Every process calls it equally often, once after each step done.

    Args:
      step: the step just done, for the log of JAX's service only.
    """
    del step
    if not self._several:
      return self._told.is_set()
    # Counted in calls: a rollback takes the step back, and the service's count must grow.
    self._asked += 1
    return multihost_utils.reached_preemption_sync_point(self._asked)

  def at_once(self, act: Callable[[], None]) -> None:
    """From now on the signal, also one that came before, acts by itself: no step will see it.

    For what follows the last step. With several processes it does nothing, as one that left alone
    would be taken for lost.

    Args:
      act: called in the main thread, between two operations of Python.
    """
    if self._several:
      return
    signal.signal(signal.SIGTERM, lambda *_: act())
    if self._told.is_set():
      act()

  def close(self) -> None:
    """Gives SIGTERM its former meaning back."""
    if self._open and not self._several:
      # None: a handler that was not set from Python, which cannot be set from Python again.
      signal.signal(signal.SIGTERM, self._previous or signal.SIG_DFL)
    self._open = False

  def __enter__(self) -> 'Watch':
    return self

  def __exit__(self, *_) -> None:
    self.close()
