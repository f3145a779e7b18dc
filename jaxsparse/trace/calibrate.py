"""Calibration: statistics of a model's inputs to each weight, over batches of data."""

from typing import Any, Callable, Iterable

from absl import logging

from jaxsparse.trace import observers
from jaxsparse.trace import statistics


def calibrate(apply_fn: Callable, params: Any, batches: Iterable,
              observer: observers.Observer) -> dict[str, Any]:
  """Observes what each weight is multiplied with, over batches.

  Args:
    apply_fn: called as `apply_fn(params, *batch)`; compiled once for each shape of batch.
    params: tree of weights, formats allowed.
    batches: each a tuple of arguments, or a single argument (an array, a dict, ...).
    observer: `gram`, `input_norm`, `range_`, or your own.

  Returns:
    `{weight name: statistic}`, float32, for `init(params, stats=...)`. Weights of a scanned stack
    have a leading layer axis. Weights that are only looked up have none.

  Raises:
    ValueError: there are no batches, a weight holds NaN, or a statistic is not finite; the message
      names the weight.

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> fn = lambda params, x: x @ params['w']
    >>> stats = calibrate(fn, {'w': jnp.ones((2, 3))}, [jnp.eye(2), 2 * jnp.eye(2)], jsp.gram)
    >>> stats['w'].tolist()
    [[5.0, 0.0], [0.0, 5.0]]
  """
  statistics.check_weights(params)
  stats = statistics.collector(apply_fn, observer)(params, batches)
  if not stats:
    logging.warning('calibrate found no product that consumes a weight: params must be the first '
                    'argument of apply_fn, and reach the model through it.')
  return stats
