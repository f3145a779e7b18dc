"""Top-KAST: sparse forward and sparse backward, with a wider set of weights that train.

Jayakumar et al., "Top-KAST: Top-K Always Sparse Training" (arXiv:2106.03517). Letters: A, the
largest weights by `|w|`, is the forward set, of density D; B, the next larger one, contains A and
is the backward set. The loss sees A; gradients go to B; the rest keep their values and wait. The
exploration loss `penalty / 2 (sum over A of w^2 + sum over B without A of w^2 / D)` pulls at what
trains, more where it is not used, so that sets change; its derivative is inside the view.

The optimizer's own momentum still moves a weight that has just left B, for a few steps.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.core import schedules
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.numerics import rounding
from jaxsparse.sparsity import distributions
from jaxsparse.sparsity import masking
from jaxsparse.sparsity import patterns
from jaxsparse.sparsity import views


class TopKastState(NamedTuple):
  """What Top-KAST remembers of a weight."""

  mask: jax.Array       # bool, the weight's shape: the forward set A
  backward: jax.Array   # bool, the weight's shape: the backward set B, which contains A

  __dense_latents__ = True


def top_kast(sparsity: float, *, backward: float | None = None, penalty: float = 1e-4,
             every: int = 100, pattern: patterns.Pattern | None = None,
             distribution: Callable = distributions.uniform) -> transforms.Transform:
  """Always-sparse training by magnitude.

  Args:
    sparsity: fraction of zeros in the forward pass, constant.
    backward: fraction of weights without a gradient; twice the density when None, as in most of
      the paper's pairs (0.9 and 0.8, 0.95 and 0.9).
    penalty: of the exploration loss.
    every: steps between updates of the sets; the paper finds no loss up to 100.
    pattern: where ones may be, of both sets; unstructured when None. Of `balanced_blocks` the
      forward set has both balances; the backward set, which no product uses, has around it the
      best blocks of each block column. `packed_blocks` then trains at the cost of the sets.
    distribution: `uniform`, `erk` or `pooled`, of both sets.

  Raises:
    ValueError: a sparsity is outside [0, 1), `backward` is above `sparsity`, `penalty` is negative
      or `every` below 1.

  Example:
    >>> import jaxsparse as jsp
    >>> transform = jsp.top_kast(0.75, backward=0.5, penalty=0.0)
    >>> params, state = transform.init({'kernel': jnp.array([[4., 3.], [2., 1.]])})
    >>> transform.apply(params, state)['kernel'].tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    >>> jax.grad(lambda p: transform.apply(p, state)['kernel'].sum())(params)['kernel'].tolist()
    [[1.0, 1.0], [0.0, 0.0]]
  """
  spelling = spell.call(top_kast, locals())
  sparsity = schedules.check_sparsity(sparsity)
  backward = schedules.check_sparsity(
      max(2 * sparsity - 1, 0.0) if backward is None else backward, 'backward')
  if backward > sparsity:
    raise ValueError(f'The backward set contains the forward set, so backward={backward:g} must '
                     f'not exceed sparsity={sparsity:g}.')
  views.check_penalty('penalty', penalty)
  pattern = patterns.unstructured() if pattern is None else pattern
  forward_set = masking.chooser(pattern, schedules.constant(sparsity), distribution)
  around = pattern if pattern.wider is None else pattern.wider
  backward_set = masking.chooser(around, schedules.constant(backward), distribution)

  def state_of(scores, layouts, entry):
    a = forward_set(scores, layouts, entry)
    if around is not pattern:   # another choice would not contain A by itself
      scores = {k: jnp.where(a[k], jnp.inf, masking.rankable(s)) for k, s in scores.items()}
    b = backward_set(scores, layouts, entry)
    # An uneven distribution may round B below A in one weight.
    return {k: TopKastState(a[k], a[k] | b[k]) for k in scores}

  def view(w, state):
    rate = jnp.where(state.mask, penalty, penalty / (1 - sparsity)).astype(w.dtype)
    trained = rounding.add_gradient(jnp.where(state.backward, w, 0), rate * w)
    return rounding.straight_through(trained, jnp.where(state.mask, w, 0))

  return views.viewed(spelling, schedules.constant(sparsity), pattern, distribution, every=every,
                      view=view, state_of=state_of, backward_masks=masking.final_masks(
                          around, schedules.constant(backward), distribution))
