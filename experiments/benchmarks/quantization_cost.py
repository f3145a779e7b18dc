"""What quantizing costs on one core: steps of training, GPTQ, optimizer states, rounding by chance.

    taskset -c 1 python -m experiments.benchmarks.quantization_cost [casts|states|steps|gptq ...]

Process CPU time, interleaved rounds, medians of the ratios of each round. About five minutes.
Qwix's rows are left out where it cannot be imported (`pip install qwix`).
"""

import functools
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxsparse as jsp
from experiments import language
from experiments import vision
from experiments.benchmarks import pruned_models


def cpu_seconds(run, calls: int) -> float:
  """Seconds of all threads of one call of `run`, the mean of `calls`."""
  start = time.process_time()
  for _ in range(calls):
    jax.block_until_ready(run())
  return (time.process_time() - start) / calls


def ratios(runs: dict, *, rounds: int, calls: int) -> dict[str, tuple[float, float]]:
  """{name: (median seconds, median ratio to the first)}."""
  for run in runs.values():
    jax.block_until_ready(run())
  found, order = {name: [] for name in runs}, np.random.default_rng(0)
  for _ in range(rounds):
    # In another order each time: who runs after whom finds other things in the caches.
    for name in order.permutation(list(runs)):
      found[name].append(cpu_seconds(runs[name], calls))
  first = next(iter(found.values()))
  return {
    name: (statistics.median(times), statistics.median(t / f for t, f in zip(times, first)))
    for name, times in found.items()
  }


def gptq(size: int) -> None:
  """Prints compilation and run time of one weight `[size, size]` beside its factorization."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2 * size, size)).astype(np.float32)
  gram, w = jnp.asarray(x.T @ x), jnp.asarray(rng.normal(size=(size, size)), jnp.float32)
  product, factor = jax.jit(jnp.matmul), jax.jit(jnp.linalg.cholesky)
  limit = lambda: (product(w, w), factor(gram))
  for kwargs in ({'group': 128}, {'group': 128, 'act_order': False}, {}):
    transform = jsp.gptq('int4', **kwargs)
    init = lambda w, gram, t=transform: t.init({'kernel': w}, stats={'kernel': gram})[1]
    lowered = jax.jit(init).lower(w, gram)
    start = time.process_time()
    compiled = lowered.compile()
    seconds = time.process_time() - start
    run = lambda c=compiled: c(w, gram)
    found = ratios({'limit': limit, 'gptq': run}, rounds=3, calls=1)
    print(
      f'{jsp.spell(transform)} of {size} x {size}: compiled in {seconds:.1f} s of CPU, '
      f'{len(lowered.as_text().splitlines())} lines, run {found["gptq"][0]:.2f} s, '
      f'{found["gptq"][1]:.2f} times (Cholesky + product)',
      flush=True,
    )


def states(name: str, params) -> None:
  """Prints the time of an update of params."""
  rng = np.random.default_rng(0)
  grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)

  def step_of(tx):
    held = [jax.tree.map(jnp.copy, params), tx.init(params)]

    @functools.partial(jax.jit, donate_argnums=(1, 2))
    def step(grads, params, state):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    def run():
      held[:] = step(grads, *held)
      return held[0]

    return run, tx.init(params)

  adam = optax.adam(1e-3)
  made = {
    'float32': adam,
    '8 bits': jsp.quantized_state(adam),
    '4 bits': jsp.quantized_state(adam, bits=4),
  }
  built = {name: step_of(tx) for name, tx in made.items()}
  found = ratios({name: run for name, (run, _) in built.items()}, rounds=21, calls=4)
  whole = jsp.nbytes(built['float32'][1])
  for bits, (seconds, ratio) in found.items():
    print(
      f'{name}, Adam, {bits}: {1e3 * seconds:.2f} ms, {ratio:.2f} times float32, state '
      f'{jsp.nbytes(built[bits][1]) / whole:.4f}',
      flush=True,
    )


def models() -> dict:
  """{label: params} that optimizers update: a weight, and two models."""
  weight = jax.random.normal(jax.random.key(0), (1024, 1024))
  return {
    'a weight of 1024 x 1024': {'w': weight},
    'ten of them': {f'w{n}': weight + n for n in range(10)},
    'digits-mlp of vision': vision.build(vision.get_config('digits-mlp')).init(),
    'bench of language': language.build(language.get_config('bench')).init(),
  }


def casts(size: int) -> None:
  """Prints the time of rounding `[size, size]` to bfloat16 by chance."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), jnp.float32)
  nearest = jax.jit(lambda x: x.astype(jnp.bfloat16))
  chance = jax.jit(jsp.stochastic_round)
  runs = {'nearest': lambda: nearest(x), 'stochastic': lambda: chance(x, 7)}
  for name, (seconds, ratio) in ratios(runs, rounds=31, calls=20).items():
    print(f'bfloat16, {name}: {1e3 * seconds:.3f} ms, {ratio:.2f} times nearest', flush=True)


def steps() -> None:
  """Prints the time of a step of Adam on an MLP 784-512-512-10 at batch 128."""
  case, tx = pruned_models.mlp(), optax.adam(1e-3)
  plain, count = jsp.identity(), jnp.int32(0)
  int8 = jsp.at('.*/kernel', jsp.fake_quantize('int8'))
  codes = jsp.quantized_products(case.loss, 'int8')
  ahead = jsp.quantized_products(case.loss, 'int8', gradient_dtype='float32')
  float8 = jsp.quantized_products(case.loss, 'float8_e4m3')
  made = {
    'float': (case.loss, plain),
    'int8 weights': (case.loss, int8),
    'int8 weights and inputs': (jsp.quantize_activations(case.loss, 'int8'), int8),
    'int8 weights and inputs, integer products': (lambda p, *batch: ahead(p, count, *batch), plain),
    'LSQ, 4-bit weights': (case.loss, jsp.at('.*/kernel', jsp.lsq(bits=4))),
    'PARQ, 4-bit weights': (case.loss, jsp.at('.*/kernel', jsp.parq('int4', end=10))),
    'int8 products, forward and backward': (lambda p, *batch: codes(p, count, *batch), plain),
    'float8 products, forward and backward': (lambda p, *batch: float8(p, count, *batch), plain),
    **{label: (loss, plain) for label, loss in _by_qwix().items()},
  }
  runs = {}
  for label, (loss, transform) in made.items():
    step = jsp.train_step(loss, tx, transform)
    params = jax.tree.map(jnp.copy, case.params)
    held = [jsp.TrainState.create(transform, tx, params)]

    def run(step=step, held=held):
      held[0], loss, _ = step(held[0], *case.batch)
      return loss

    runs[label] = run
  for label, (seconds, ratio) in ratios(runs, rounds=41, calls=4).items():
    print(f'a step, {label}: {1e3 * seconds:.2f} ms, {ratio:.3f} times float', flush=True)


def _by_qwix() -> dict:
  """{label: loss} of the same models under Qwix; none where it is not installed."""
  try:
    import qwix
  except ImportError:
    return {}
  made = {
    'Qwix, int8 weights': qwix.QtRule(weight_qtype='int8'),
    'Qwix, int8 weights and inputs': qwix.QtRule(weight_qtype='int8', act_qtype='int8'),
    'Qwix, int8 products, forward and backward': qwix.QtRule(
      weight_qtype='int8', act_qtype='int8', bwd_qtype='int8'),
  }
  return {
    label: pruned_models.mlp(
      lambda module, rule=rule: qwix.quantize_model(module, qwix.QtProvider([rule]))
    ).loss
    for label, rule in made.items()
  }


_PARTS = {
  'casts': lambda: casts(1024),
  'states': lambda: [states(*model) for model in models().items()],
  'steps': steps,
  'gptq': lambda: [gptq(size) for size in (1024, 4096)],
}

if __name__ == '__main__':
  for part in sys.argv[1:] or _PARTS:
    _PARTS[part]()
