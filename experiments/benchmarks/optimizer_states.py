"""What Adam loses on a byte language model when its moments are stored in few bits.

    python -m experiments.benchmarks.optimizer_states

The model is the 'smoke' size of `experiments.language`, 2,000 steps of the same batches for each;
its loss is the mean of all held-out windows, in bits a byte. On digits:
`pytest tests/experiments/quantization_test.py -m slow -s -k adam`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


if __name__ == '__main__':
  bytes_of_language(_STEPS)
