"""Packed int8 models against float32 on one core of a CPU, in pure JAX.

    JAXSPARSE_NATIVE=off taskset -c 1 python -m experiments.benchmarks.quantized_inference

Process CPU time, interleaved rounds, medians of the ratios of each round; a ratio is the speed over
float32's. Nothing is laid out by `jsp.prepare`, so native kernels have no part. About a minute.
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as jsp
from experiments.benchmarks import quantization_cost


def mlp(params, x):
  """A chain of square layers with ReLU between them."""
  for n, name in enumerate(sorted(params)):
    x = x @ params[name]
    x = jax.nn.relu(x) if n + 1 < len(params) else x
  return x


def compare(width: int, layers: int, batches: tuple[int, ...], *, activations: bool) -> None:
  """Prints the speed of packed int8 weights, with or without int8 activations, over float32."""
  rng = np.random.default_rng(0)
  weights = {
    f'layer_{n}': jnp.asarray(rng.normal(size=(width, width)) / width**0.5, jnp.float32)
    for n in range(layers)
  }
  transform = jsp.at('.*', jsp.quantize('int8'))
  packed = transform.pack(*transform.init(weights))
  dense, stored = jax.jit(mlp), jax.jit(jsp.dispatch(mlp))
  if activations:
    stored = jax.jit(jsp.quantize_activations(mlp, 'int8', granularity='row'))
  for batch in batches:
    x = jnp.asarray(rng.normal(size=(batch, width)), jnp.float32)
    runs = {'float32': lambda x=x: dense(weights, x), 'int8': lambda x=x: stored(packed, x)}
    few = batch * width**2 > 2**27
    found = quantization_cost.ratios(runs, rounds=15, calls=2 if few else 10)
    error = jnp.linalg.norm(stored(packed, x) - dense(weights, x)) / jnp.linalg.norm(
      dense(weights, x)
    )
    print(
      f'{layers} x {width} x {width}, batch {batch}, int8 weights'
      f'{" and activations" if activations else ""}: {1 / found["int8"][1]:.2f} times float32 '
      f'({1e3 * found["float32"][0]:.2f} ms), relative error {float(error):.4f}',
      flush=True,
    )


if __name__ == '__main__':
  compare(1024, 4, (1, 4, 16, 64, 256), activations=True)
  compare(1024, 4, (1, 4, 16, 64, 256), activations=False)
  compare(4096, 1, (1, 16), activations=False)
