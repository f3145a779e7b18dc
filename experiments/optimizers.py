"""The optimizers that experiments share: for weights, and for what a transform makes of them."""

import jax
import optax

import jaxsparse as jsp


def warm_adamw(
  rate: float, *, steps: int, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """AdamW (Loshchilov and Hutter, arXiv:1711.05101), warmed up and annealed.

  LSQ's step sizes are one number for many weights: they learn a tenth as fast and do not decay.
  Biases and scales of norms, which have one axis, do not decay either.

  Args:
    rate: the peak learning rate; reached after a tenth of the steps, then a cosine to zero.
    steps: in the whole run; with none, there is nothing to optimize and no moments to keep.
    weight_decay: a step and a unit of learning rate.

  Returns:
    An optimizer of the latents of any transform.
  """
  if not steps:
    return optax.identity()
  steps = max(steps, 2)  # the schedule has a peak between its ends
  schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 10, 1), steps)
  slower = lambda count: 0.1 * schedule(count)
  matrices = lambda latents: jax.tree.map(lambda x: x.ndim > 1, latents)
  return _partition(
    optax.adamw(schedule, weight_decay=weight_decay, mask=matrices), optax.adam(slower)
  )


def _partition(
  weights: optax.GradientTransformation, step_sizes: optax.GradientTransformation
) -> optax.GradientTransformation:
  return optax.partition(
    {'weights': weights, 'steps': step_sizes},
    jsp.label({'(.*/)?step_size': 'steps', '.*': 'weights'}),
  )


def adapters_only(
  tx: optax.GradientTransformation, weights: str
) -> optax.GradientTransformation:
  """`tx` on what a transform put inside the weights, such as LoRA's factors; all else stays.

  What stays has no moments either.

  Args:
    tx: an optimizer.
    weights: pattern of the names of the weights.

  Returns:
    An optimizer of the latents.
  """
  labels = jsp.label({f'{weights}/.+': 'inside', '.*': 'outside'})

  def checked(latents):
    found = labels(latents)
    # optax also asks for the state of a tree without leaves
    if jax.tree.leaves(found) and 'inside' not in jax.tree.leaves(found):
      raise ValueError(
        f'Nothing to train: the transform puts nothing inside {weights!r}; expected one that does, '
        'such as lora(8, base=nm(2, 4)).'
      )
    return found

  return optax.partition({'inside': tx, 'outside': optax.set_to_zero()}, checked)


def stepped_sgd(
  rate: float, *, steps: int, weight_decay: float = 0.0
) -> optax.GradientTransformation:
  """SGD with momentum 0.9 and a rate that falls tenfold at half and three quarters of the steps.

  As Cuttlefish's authors train on CIFAR. Factors of `jsp.low_rank` decay by their product
  (Frobenius decay); biases, scales of norms and LSQ's step sizes do not decay.

  Args:
    rate: the learning rate at first.
    steps: in the whole run; with none, there is nothing to optimize and no moments to keep.
    weight_decay: a step and a unit of learning rate.

  Returns:
    An optimizer of the latents of any transform.
  """
  if not steps:
    return optax.identity()
  falls = {steps // 2: 0.1, steps * 3 // 4: 0.1}
  schedule = optax.piecewise_constant_schedule(rate, falls)
  momentum = lambda rate: optax.chain(optax.trace(0.9), optax.scale_by_learning_rate(rate))
  return _partition(
    optax.chain(jsp.frobenius_decay(weight_decay), momentum(schedule)),
    momentum(lambda count: 0.1 * schedule(count)),
  )


MADE = {'adamw': warm_adamw, 'sgd': stepped_sgd}
