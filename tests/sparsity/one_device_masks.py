"""Selects on one CPU device, where counts go by columns, beside NumPy; prints what was wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.numerics import select

SHAPES = ((7, 5), (1, 9), (64, 3), (2, 6, 4), (11,))


def expected(scores, kept):
  mask = np.zeros(scores.size, bool)
  order = -np.where(np.isnan(scores), -np.inf, scores).ravel()
  mask[np.argsort(order, kind='stable')[:kept]] = True
  return mask.reshape(scores.shape)


def main():
  """Prints the number of devices and the cases that differ."""
  rng, wrong = np.random.default_rng(0), []
  for shape in SHAPES:
    for fill in ('normal', 'ties', 'zeros', 'nan'):
      scores = rng.normal(size=shape) if fill in ('normal', 'nan') else rng.integers(-2, 3, shape)
      scores = np.asarray(scores * (fill != 'zeros'), np.float32)
      if fill == 'nan':
        scores.ravel()[::3] = np.nan
      for kept in (0, 1, scores.size // 3, scores.size):
        found = np.asarray(select.top_k_mask(jnp.asarray(scores), kept))
        if not (found == expected(scores, kept)).all():
          wrong.append([list(shape), fill, kept])
  stack = rng.integers(-3, 4, (3, 6, 4)).astype(np.float32)
  found = np.asarray(select.top_k_mask(jnp.asarray(stack), 5, axes=(-2, -1)))
  wrong += [['slice', i] for i in range(3) if not (found[i] == expected(stack[i], 5)).all()]
  print(json.dumps({'devices': jax.device_count(), 'wrong': wrong}))


if __name__ == '__main__':
  main()
