"""Question: what does a compression cost an image classifier that learns under it?

A CNN, a vision transformer or LeNet-300-100 learns real handwritten digits, from scratch, with the
transform in place from the first step. The figure is the accuracy of the packed model on held-out
images.

Command: python -m launch.run --experiment=vision --transform="rigl(0.9)"
Expected, seed 0, in CPU-seconds that include compilation (2 shared x86_64 cores, jax 0.10.2,
2026-11-22; one held-out image is 0.28 points of digits, 0.1 of MNIST):

  size       transform    accuracy  seconds
  ''         identity()   0.997     20
  ''         nm(2, 4)     0.992     26
  ''         rigl(0.9)    0.972     33
  ''         lsq(bits=4)  0.994     22
  smoke      identity()   0.969     12
  smoke      nm(2, 4)     0.914     14
  smoke      rigl(0.9)    0.794     21
  vit        identity()   0.983     37
  vit        nm(2, 4)     0.975     38
  vit        rigl(0.9)    0.969     49
  mnist      identity()   0.983     33
  mnist-vit  identity()   0.967     110

Source: Alpaydin and Kaynak, UCI repository (1998); LeCun et al., "Gradient-Based Learning Applied
to Document Recognition" (1998); Dosovitskiy et al., "An Image is Worth 16x16 Words"
(arXiv:2010.11929).
"""

import dataclasses
import functools

import jax
import numpy as np
import optax

import jaxsparse as jsp
from experiments import checks
from experiments import classifiers
from experiments import images
from experiments import optimizers
from experiments import task


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything that shapes a run.

  Attributes:
    model: 'cnn', 'mlp', 'normalized_mlp' or 'vit'.
    data: 'digits' or 'mnist'.
    width: of the model; a multiple of 4, so that 2:4 fits every compressed layer.
    steps: optimizer steps.
    batch_size: images a step.
    optimizer: 'adamw', or 'sgd' with momentum.
    rate: peak learning rate. AdamW's is warmed up over a tenth of the steps, then a cosine to zero;
      SGD's falls tenfold at half and three quarters of the steps.
    weight_decay: a step and a unit of learning rate.
    shift: the most pixels an image is moved along each axis.
    seed: of initialization, order and movement; the split is always the same.
  """

  model: str = 'cnn'
  data: str = 'digits'
  width: int = 16
  steps: int = 1500
  batch_size: int = 64
  optimizer: str = 'adamw'
  rate: float = 3e-3
  weight_decay: float = 1e-2
  shift: int = 1
  seed: int = 0

  def __post_init__(self):
    checks.choice('model', self.model, classifiers.MODELS)
    checks.choice('data', self.data, images.SETS)
    checks.choice('optimizer', self.optimizer, optimizers.MADE)
    checks.whole('width', self.width, least=4)
    if self.width % 4:
      raise ValueError(f'width: found {self.width}, expected a multiple of 4.')
    checks.whole('steps', self.steps, least=0)
    checks.whole('batch_size', self.batch_size, least=1, most=1024)
    checks.positive('rate', self.rate)
    checks.positive('weight_decay', self.weight_decay, or_zero=True)
    checks.whole('shift', self.shift, least=0, most=4)
    checks.whole('seed', self.seed, least=0, most=2**31 - 1)


_SIZES = {
  '': Config(),
  'smoke': Config(steps=150),
  'vit': Config(model='vit', width=64, steps=1500, rate=4e-3),
  'digits-mlp': Config(
    model='normalized_mlp', width=1024, steps=1980, batch_size=128, optimizer='sgd', rate=0.05,
    weight_decay=1e-3,
  ),
  'mnist': Config(data='mnist', steps=1200),
  'mnist-mlp': Config(model='mlp', data='mnist', width=100, steps=800, rate=1e-2, shift=0),
  'mnist-vit': Config(model='vit', data='mnist', width=64, steps=1000, rate=4e-3),
}


def get_config(arg: str = '') -> Config:
  """Returns the configuration of a size.

  Args:
    arg: '', 'vit' and 'digits-mlp' (layers with norms, for low rank) on digits; 'mnist',
      'mnist-vit' and 'mnist-mlp' (LeNet-300-100, whose table of prunings
      `experiments/benchmarks/pruning_quality.py` makes) on MNIST; 'smoke' for half a minute.

  Raises:
    ValueError: for any other word.

  Example:
    >>> get_config('mnist').data
    'mnist'
  """
  checks.size('vision', arg, _SIZES)
  return _SIZES[arg]


def build(config: Config) -> task.Task:
  """Returns the task of a configuration.

  Args:
    config: from `get_config`.

  Raises:
    MissingError: the package with the images is not installed.
  """
  data = images.load(config.data)
  model = classifiers.MODELS[config.model](side=data.side, width=config.width)

  def loss(params, batch, key):
    del key  # Nothing here is random.
    logits = model.apply(params, batch['images'])
    return _measures(logits, batch['labels'])

  forward = jax.jit(jsp.dispatch(model.apply))

  def evaluate(params):
    logits = forward(params, data.test_images)
    hits = np.asarray(logits).argmax(-1) == data.test_labels
    return {
      'accuracy': float(hits.mean()),
      'loss': float(_measures(logits, data.test_labels)[0]),
    }

  return task.Task(
    init=functools.partial(model.init, config.seed),
    loss=loss,
    batch=functools.partial(
      images.batch, data, size=config.batch_size, seed=config.seed, shift=config.shift
    ),
    tx=optimizers.MADE[config.optimizer](
      config.rate, steps=config.steps, weight_decay=config.weight_decay
    ),
    steps=config.steps,
    evaluate=evaluate,
    apply=model.apply,
    inputs=data.train_images[:16],
    weights=model.weights,
    specs=model.specs,
    epoch=max(1, len(data.train_labels) // config.batch_size),
    facts={
      'data': config.data,
      'train_images': len(data.train_labels),
      'test_images': len(data.test_labels),
      'data_sha256': images.digest(data),
    },
    about=model.about,
  )


def _measures(logits, labels):
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
  return loss, {'accuracy': (logits.argmax(-1) == labels).mean()}
