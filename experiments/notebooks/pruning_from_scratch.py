# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Pruning from scratch
#
# Most weights of a trained network can be set to zero, if the network is told early enough. We
# build that from nothing on real handwritten digits: a mask, a schedule, a loop. Then we say the
# same thing in the eight lines that `jaxsparse` needs for it.
#
# Zhu and Gupta, "To prune, or not to prune" (arXiv:1710.01878). Runs in under a minute on a CPU.

# %%
import jax
import jax.numpy as jnp
import jaxsparse as jsp
import matplotlib.pyplot as plt
import numpy as np
import optax
from IPython import display
from jaxsparse import reports
from sklearn import datasets
from sklearn import model_selection

raw = datasets.load_digits()
x, x_test, y, y_test = model_selection.train_test_split(
  (raw.images.reshape(-1, 64) / 16).astype('float32'),
  raw.target,
  test_size=360,
  stratify=raw.target,
  random_state=0,
)
figure, axes = plt.subplots(1, 8, figsize=(8, 1.2))
for axis, image, digit in zip(axes, x, y):
  axis.imshow(image.reshape(8, 8), cmap='gray_r')
  axis.set_title(digit)
  axis.axis('off')


# %% [markdown]
# ## A model
#
# A network is a tree of arrays and a function. Nothing below will change this function: **a
# compressed model is the same model, seeing other weights.**

# %%
def init(seed):
  keys = jax.random.split(jax.random.key(seed))
  layer = lambda key, n, m: {
    'kernel': jax.random.normal(key, (n, m)) * np.sqrt(2 / n),
    'bias': jnp.zeros(m),
  }
  return {'hidden': layer(keys[0], 64, 128), 'head': layer(keys[1], 128, 10)}


def apply_fn(params, x):
  hidden, head = params['hidden'], params['head']
  h = jax.nn.relu(x @ hidden['kernel'] + hidden['bias'][None])
  return h @ head['kernel'] + head['bias'][None]


def loss_fn(params, x, y):
  return optax.softmax_cross_entropy_with_integer_labels(apply_fn(params, x), y).mean()


@jax.jit
def accuracy(params):
  return (apply_fn(params, x_test).argmax(-1) == y_test).mean()


def batches(steps, seed=0):
  rng = np.random.default_rng(seed)
  for _ in range(steps):
    chosen = rng.integers(len(x), size=128)
    yield x[chosen], y[chosen]


# %% [markdown]
# ## A mask
#
# A mask keeps the largest weights of each kernel: `True` keeps. We use `where`, not a product: a
# NaN times zero is still a NaN.

# %%
def mask_of(w, sparsity):
  kept = w.size - round(sparsity * w.size)
  threshold = jnp.sort(jnp.abs(w).ravel())[w.size - kept]
  return jnp.abs(w) >= threshold


def masks_of(params, sparsity):
  return {name: mask_of(layer['kernel'], sparsity) for name, layer in params.items()}


def masked(params, masks):
  return {
    name: {'kernel': jnp.where(masks[name], layer['kernel'], 0), 'bias': layer['bias']}
    for name, layer in params.items()
  }


# %% [markdown]
# ## A loop
#
# The optimizer owns the weights, also the masked ones; the loss sees the masked view. Every twenty
# steps the schedule asks for a little more sparsity, fast at first and then ever more slowly.

# %%
def cubic(step, final, start=20, end=300):
  t = np.clip((step - start) / (end - start), 0, 1)
  return final * (1 - (1 - t) ** 3)


tx = optax.adam(3e-3)


@jax.jit
def by_hand_step(params, opt_state, masks, x, y):
  grads = jax.grad(lambda p: loss_fn(masked(p, masks), x, y))(params)
  updates, opt_state = tx.update(grads, opt_state, params)
  return optax.apply_updates(params, updates), opt_state


def train(params, final=0.0, steps=500):
  opt_state, masks = tx.init(params), masks_of(params, 0.0)
  for step, (images, labels) in enumerate(batches(steps)):
    if final and step % 20 == 0:
      masks = masks_of(masked(params, masks), cubic(step, final))
    params, opt_state = by_hand_step(params, opt_state, masks, images, labels)
  return params, masks


dense, _ = train(init(0))
print(f'dense: {100 * accuracy(dense):.1f} %')

# %% [markdown]
# ## Told late, told early
#
# Cutting after training works for a while. Cutting during training works much longer.

# %%
sparsities = [0.5, 0.75, 0.9, 0.95, 0.98]
late, early, kept = [], [], []
for sparsity in sparsities:
  late.append(float(accuracy(masked(dense, masks_of(dense, sparsity)))))
  params, masks = train(init(0), sparsity)
  early.append(float(accuracy(masked(params, masks))))
  kept.append(sum(int(mask.sum()) for mask in masks.values()))
  if sparsity == 0.9:
    by_hand, by_hand_masks = params, masks

plt.figure(figsize=(5, 3))
plt.plot(kept, 100 * np.array(late), 'o--', color='0.6', label='cut after training')
plt.plot(kept, 100 * np.array(early), 'o-', label='cut while training')
plt.axhline(100 * accuracy(dense), color='k', lw=0.8, label='dense')
plt.xscale('log')
plt.xlabel('weights kept')
plt.ylabel('accuracy, %')
plt.legend();

# %% [markdown]
# What is left of the first layer looks at the middle of the image: the corners of the digits are
# always white.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(2.6, 1))
left.imshow(by_hand_masks['hidden'], cmap='gray_r', interpolation='nearest')
left.set(title='the mask: one pixel a weight', xlabel='hidden units', ylabel='pixels of the image')
right.imshow(by_hand_masks['hidden'].sum(1).reshape(8, 8))
right.set_title('weights kept per pixel');

# %% [markdown]
# ## The library's words for it
#
# A `Transform` is the schedule, the mask and the view together. `train_step` takes any loss, any
# optax optimizer and any transform; `pack` stores what is left, and `dispatch` runs the model that
# never heard of compression on it.

# %%
transform = jsp.at('.*/kernel', jsp.magnitude(jsp.cubic(0.9, start=20, end=300, every=20)))
ts = jsp.TrainState.create(transform, tx, init(0))
step = jsp.train_step(loss_fn, tx, transform)
snapshots = {}
for images, labels in batches(500):
  if ts.count % 80 == 21:
    snapshots[ts.count] = {k: np.array(mask) for k, mask in jsp.masks(ts.state).items()}
  ts, loss, _ = step(ts, images, labels)
packed = transform.pack(ts.params, ts.state)
logits = jax.jit(jsp.dispatch(apply_fn))(packed, x_test)
print(f'{100 * (logits.argmax(-1) == y_test).mean():.1f} % in {jsp.nbytes(packed):,} bytes')

# %% [markdown]
# What the masks did on the way: black is kept. The corners of the image go first, and a mask that
# only prunes is part of the one before it.

# %%
shown = [snapshots[count] for count in sorted(snapshots)]
display.display(display.Image(reports.masks_png(shown, steps=sorted(snapshots))))
assert all(change.grown == 0 for updates in reports.churn(shown).values() for change in updates)

# %% [markdown]
# The same weights are gone, the same accuracy is left, and the bytes are real: one bit a weight
# for the mask and four bytes for each survivor. Now change one word. `jsp.rigl(0.9, every=50,
# end=400)` never trains a dense network; `jsp.nm(2, 4)` keeps two of four; and
# `jsp.parse("at('.*/kernel', nm(2, 4) | fake_quantize('int8'))")` is a string that fits in a flag.

# %%
pruned_by_hand = accuracy(masked(by_hand, by_hand_masks))
print(f'by hand {100 * pruned_by_hand:.1f} %, dense {100 * accuracy(dense):.1f} %')
assert (logits.argmax(-1) == y_test).mean() > accuracy(dense) - 0.02
assert abs(jsp.sparsity(ts.state) - 0.9) < 1e-3
assert jsp.nbytes(packed) < 0.2 * jsp.nbytes(dense)
