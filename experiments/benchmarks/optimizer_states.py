"""What Adam loses when its moments are stored in few bits: a byte language model and digits.

    python -m experiments.benchmarks.optimizer_states

The language model is the 'smoke' size of `experiments.language`, 2,000 steps of the same batches
for each; its loss is the mean of all held-out windows, in bits a byte. Digits are a 64-256-256-10
MLP, 800 steps, 10 seeds; its loss is that of all training images. About five minutes of CPU.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import jaxsparse as jsp
from experiments import language

_STEPS = 2_000


def optimizers(rate) -> dict[str, optax.GradientTransformation]:
  """Adam with states of 32, 8 and 4 bits."""
  adam = optax.adam(rate)
  return {
    'float32': adam,
    '8 bits': jsp.quantized_state(adam),
    '4 bits': jsp.quantized_state(adam, bits=4),
  }


def bytes_of_language(steps: int) -> dict[str, float]:
  """Prints and returns the held-out bits a byte after `steps`."""
  config = dataclasses.replace(language.get_config('smoke'), steps=steps, evaluation_windows=256)
  work = language.build(config)
  params = work.init()
  batches = jnp.asarray(np.stack([work.batch(step) for step in range(steps)]))
  key = jax.random.key(0)
  found = {}
  for name, tx in optimizers(optax.warmup_cosine_decay_schedule(0, 3e-3, 200, steps)).items():

    @jax.jit
    def run(params, state, tx=tx):
      def step(carry, batch):
        params, state = carry
        (loss, _), grads = jax.value_and_grad(work.loss, has_aux=True)(params, batch, key)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

      return jax.lax.scan(step, (params, state), batches)

    (trained, state), losses = run(params, tx.init(params))
    assert np.isfinite(np.asarray(losses)).all(), f'{name}: a loss was not finite.'
    found[name] = work.evaluate(trained)['bits_per_byte']
    print(
      f'language, {name}: {found[name]:.4f} bits a byte held out, '
      f'{found[name] / found["float32"]:.4f} of float32; training, mean of the last 100 steps '
      f'{float(losses[-100:].mean()):.4f} nats; state {jsp.nbytes(state):,} bytes',
      flush=True,
    )
  return found


def mlp(seed: int, sizes=(64, 256, 256, 10)) -> list:
  """Fresh layers, He initialization."""
  keys = jax.random.split(jax.random.key(seed), len(sizes))
  return [
    {'kernel': jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, 'bias': jnp.zeros(b)}
    for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
  ]


def loss_of(params, x, y) -> jax.Array:
  """Mean cross entropy of the MLP."""
  for n, layer in enumerate(params):
    x = x @ layer['kernel'] + layer['bias'][None]
    x = jax.nn.relu(x) if n < len(params) - 1 else x
  return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def digits(seeds: int) -> None:
  """Prints final training losses."""
  x, y = datasets.load_digits(return_X_y=True)
  x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
  found = {}
  for name, tx in optimizers(1e-3).items():

    @jax.jit
    def run(params, state, key, tx=tx):
      def step(carry, key):
        params, state = carry
        pick = jax.random.randint(key, (128,), 0, len(y))
        updates, state = tx.update(jax.grad(loss_of)(params, x[pick], y[pick]), state, params)
        return (optax.apply_updates(params, updates), state), None

      (params, state), _ = jax.lax.scan(step, (params, state), jax.random.split(key, 800))
      return loss_of(params, x, y), state

    losses = []
    for seed in range(seeds):
      params = mlp(seed)
      loss, state = run(params, tx.init(params), jax.random.key(seed))
      losses.append(float(loss))
    assert np.isfinite(losses).all(), f'{name}: a loss was not finite.'
    found[name] = losses
    print(
      f'digits, {name}: loss {np.mean(losses):.6f}, '
      f'{np.mean(losses) / np.mean(found["float32"]):.3f} of float32, at most '
      f'{max(np.divide(losses, found["float32"])):.3f} of one seed; state {jsp.nbytes(state):,}',
      flush=True,
    )


if __name__ == '__main__':
  digits(10)
  bytes_of_language(_STEPS)
