"""What quantization costs on real models and digits; the tables are printed.

`pytest tests/experiments/quantization_test.py -m slow -s`
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as jsp
from experiments import bootstrap
from experiments import minilm
from experiments import packaged
from experiments import sentence
from experiments.benchmarks import quantized_sentences


def _minilm():
  """The float model and its calibration."""
  try:
    params = jax.tree.map(jnp.asarray, minilm.load())
    return params, quantized_sentences.calibration(params)
  except packaged.MissingError as error:
    pytest.skip(str(error))


@pytest.mark.slow
def test_layer_output_error_of_minilm_in_four_bits():
  params, seen = _minilm()
  ids = seen.batches[0]
  float_out = jax.jit(minilm.apply)(params, ids)
  table = {}
  for text in ("quantize('int4', group=64)", "quantize('int4', group=64, scale='mse')",
               "quantize('uint4', group=64)", "quantize('uint4', group=64, scale='hqq')",
               "awq('int4', group=64)", "gptq('int4', group=64)",
               "gptq('int4', group=64, act_order=False)", "gptq('uint4', group=64)"):
    transform = jsp.at('layer_.*/kernel', jsp.parse(text))
    latents, state = transform.init(params, stats=seen.grams)
    new = transform.apply(latents, state)
    out = jax.jit(minilm.apply)(new, ids)
    packed = transform.pack(latents, state)
    size = sum(jsp.nbytes(packed[f'layer_{n}']) for n in range(minilm.LAYERS))
    table[text] = [np.mean([*quantized_sentences.errors(g, params, new).values()])
                   for g in (seen.grams, seen.others)]
    print(f'{text:42} error {table[text][0]:.5f}, on other text {table[text][1]:.5f}, '
          f'cosine {float((out * float_out).sum(-1).mean()):.5f}, layers {size} bytes', flush=True)
  nearest = table["quantize('int4', group=64)"]
  for place in range(2):
    assert table["gptq('int4', group=64)"][place] <= 0.6 * nearest[place]
    assert table["awq('int4', group=64)"][place] < nearest[place]


@pytest.mark.slow
@pytest.mark.parametrize('label', ['w8a8-zeros', 'smooth-static'])
def test_eight_bits_keep_the_figure_of_minilm(label):
  params, seen = _minilm()
  recipe = next(r for r in quantized_sentences.RECIPES if r.label == label)
  packed, _ = quantized_sentences.compressed(recipe, params, seen)
  run = quantized_sentences.forward(recipe, seen)
  hits = [sentence.hits(f, p, 2000) for f, p in ((run, packed), (jax.jit(minilm.apply), params))]
  low, high = bootstrap.paired(*hits)
  print(f'{label}: {100 * (hits[0].mean() - hits[1].mean()):+.2f} points, [{low}, {high}]')
  assert hits[0].mean() - hits[1].mean() >= -0.005 and high >= 0


def _digits():
  """Images and labels of digits, in [0, 1], train and test."""
  datasets = pytest.importorskip('sklearn.datasets')
  x, y = datasets.load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(y))
  x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
  return (x[:1437], y[:1437]), (x[1437:], y[1437:])


def _mlp(seed, sizes=(64, 256, 256, 10)):
  keys = jax.random.split(jax.random.key(seed), len(sizes))
  return [{'kernel': jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, 'bias': jnp.zeros(b)}
          for k, a, b in zip(keys, sizes, sizes[1:])]


def _logits(params, x):
  for n, layer in enumerate(params):
    x = x @ layer['kernel']
    x = x + jnp.broadcast_to(layer['bias'], x.shape)
    x = jax.nn.relu(x) if n < len(params) - 1 else x
  return x


def _trained(tx, params, train, *, steps, seed, batch=128):
  """Params, state and the loss over all training data after `steps`."""
  x, y = train
  loss = lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(_logits(p, x), y).mean()

  @jax.jit
  def run(params, state, key):
    def step(carry, key):
      params, state = carry
      pick = jax.random.randint(key, (batch,), 0, len(y))
      updates, state = tx.update(jax.grad(loss)(params, x[pick], y[pick]), state, params)
      return (optax.apply_updates(params, updates), state), None
    (params, state), _ = jax.lax.scan(step, (params, state),
                                      jax.random.split(key, steps))
    return params, state, loss(params, x, y)

  return run(params, tx.init(params), jax.random.key(seed))


@pytest.mark.slow
def test_adam_in_few_bits_on_digits():
  train, (x, y) = _digits()
  adam = optax.adam(1e-3)
  made = {'float32': adam, '8 bits': jsp.quantized_state(adam),
          '4 bits': jsp.quantized_state(adam, bits=4),
          'bfloat16 params, stochastic': jsp.stochastic_rounding(adam),
          'bfloat16 params, Kahan': jsp.kahan(adam), 'bfloat16 params, nearest': adam}
  losses, sizes = {}, {}
  for name, tx in made.items():
    losses[name], right = [], []
    for seed in range(10):
      params = _mlp(seed)
      if 'bfloat16' in name:
        params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
      params, state, loss = _trained(tx, params, train, steps=800, seed=seed)
      losses[name].append(float(loss))
      right.append(float((_logits(params, x).argmax(-1) == y).mean()))
    sizes[name] = jsp.nbytes(state)
    print(f'{name:30} loss {np.mean(losses[name]):.6f} (ratio by seed to '
          f'{max(a / b for a, b in zip(losses[name], losses["float32"])):.3f}), accuracy '
          f'{np.mean(right):.4f}, state {sizes[name] / sizes["float32"]:.4f}', flush=True)
  assert all(np.isfinite(x).all() for x in losses.values())
  assert np.mean(losses['8 bits']) <= 1.2 * np.mean(losses['float32'])
  assert sizes['8 bits'] <= 0.27 * sizes['float32']
  assert sizes['4 bits'] <= 0.15 * sizes['float32']


@pytest.mark.slow
def test_feedback_saves_the_top_thousandth():
  train, (x, y) = _digits()
  points = {}
  for feedback in (True, False):
    right = []
    for seed in range(3):
      tx = optax.chain(jsp.error_feedback(jsp.compressors.top_k(0.001), feedback=feedback),
                       optax.sgd(0.1))
      params, _, _ = _trained(tx, _mlp(seed), train, steps=600, seed=seed)
      right.append(100 * float((_logits(params, x).argmax(-1) == y).mean()))
    points[feedback] = np.mean(right)
    print(f'top 0.1 %, feedback {feedback}: accuracy {points[feedback]:.2f} %, {right}', flush=True)
  assert points[True] >= points[False] + 5


@pytest.mark.slow
def test_four_bit_weights_and_activations_by_lsq_on_digits():
  train, (x, y) = _digits()
  transform, run = jsp.lsq(bits=4), jsp.learned_activations(_logits)
  accuracy = lambda logits: 100 * float((logits.argmax(-1) == y).mean())
  points = []
  for seed in range(3):
    params, _, _ = _trained(optax.adam(1e-3), _mlp(seed), train, steps=600, seed=seed)
    ranges = jsp.activation_ranges(_logits, params, [train[0]], bits=4)
    latents, state = transform.init(params)
    view = lambda both, state=state: jsp.densify(transform.apply(both[0], state))
    loss = lambda both, x, y, view=view: optax.softmax_cross_entropy_with_integer_labels(
        run(view(both), both[1], x), y).mean()
    tx = optax.adam(optax.cosine_decay_schedule(5e-4, 600))

    @jax.jit
    def tune(both, opt_state, key, loss=loss, tx=tx):
      def step(carry, key):
        both, opt_state = carry
        pick = jax.random.randint(key, (128,), 0, len(train[1]))
        grads = jax.grad(loss)(both, train[0][pick], train[1][pick])
        updates, opt_state = tx.update(grads, opt_state, both)
        return (optax.apply_updates(both, updates), opt_state), None
      return jax.lax.scan(step, (both, opt_state), jax.random.split(key, 600))[0][0]

    both = tune((latents, ranges), tx.init((latents, ranges)), jax.random.key(seed))
    packed = transform.pack(both[0], state)
    right = accuracy(run(jsp.densify(packed), both[1], x))
    points.append(right - accuracy(_logits(params, x)))
    print(f'4-bit weights and activations by LSQ: {right:.2f} %, {points[-1]:+.2f} points',
          flush=True)
  assert np.mean(points) >= -0.5
