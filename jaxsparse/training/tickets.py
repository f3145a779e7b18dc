"""Lottery tickets: prune what was trained, go back to an early step, train what is left again.

Frankle and Carbin, "The Lottery Ticket Hypothesis" (arXiv:1803.03635): a fifth of what is left
goes each round. Frankle et al., "Linear Mode Connectivity and the Lottery Ticket Hypothesis"
(arXiv:1912.05671): back to step k rather than to the start. Optimizer and counts go back too, and
with them every schedule; what differs is that moments of pruned weights are zero.
"""

import dataclasses
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsparse.core import masks
from jaxsparse.core import names
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats
from jaxsparse.training import step as steps


class Ticket(NamedTuple):
  """One round of `lottery`.

  Attributes:
    sparsity: fraction of zeros asked for.
    transform: the round's transform.
    start: the TrainState that the round began from: weights of step k, masks of this round.
    trained: what the round's training returned.
  """

  sparsity: float
  transform: transforms.Transform
  start: steps.TrainState
  trained: steps.TrainState


def rewind(transform: transforms.Transform, tx: optax.GradientTransformation,
           saved: steps.TrainState, trained: steps.TrainState) -> steps.TrainState:
  """Masks by the trained weights, everything else of an earlier step.

  Args:
    transform: chooses the new masks in its `init`, by magnitude say, and holds them from there:
      one with a constant sparsity, of the method that `saved` and `trained` were made with.
    tx: the optimizer.
    saved: the TrainState of step k.
    trained: the one after training; what its masks pruned stays pruned.

  Returns:
    A TrainState with `saved`'s weights where they are kept, zeros where they are pruned, its
    optimizer state (moments of pruned weights zero) and its counts.

  Raises:
    ValueError: the method has no masks or chooses new ones later, the states are of other weights
      than the transform's, or a mask would bring back a weight.

  Example:
    >>> import jaxsparse as jsp
    >>> tx, dense = optax.sgd(0.1), jsp.magnitude(0.0)
    >>> saved = jsp.TrainState.create(dense, tx, {'kernel': jnp.array([[1.0, 2.0]])})
    >>> trained = saved._replace(params={'kernel': jnp.array([[5.0, 3.0]])}, count=9)
    >>> ts = rewind(jsp.magnitude(0.5), tx, saved, trained)
    >>> ts.params['kernel'].tolist(), ts.count
    ([[1.0, 0.0]], 0)
  """
  old = masks.mask_entries(trained.state)
  effective = formats.densify(transform.apply(trained.params, trained.state))
  _, chosen = transform.init(_ranked_above_pruned(effective, old))
  new = masks.mask_entries(chosen)
  _check(transform, old, new, saved)
  state = jax.tree.map(_counted, chosen, saved.state, is_leaf=_is_node)
  leaves, rebuild = names.named_leaves(saved.params)
  kept = rebuild([new.get(leaf.key, jnp.ones((), bool)) for leaf in leaves])
  # Copies, as a step donates what it is given, and `saved` is needed again.
  cut = lambda x, k: jnp.where(k, x, jnp.zeros_like(x)) if _fits(x, k) else jnp.copy(x)
  masked_node = lambda x: isinstance(x, optax.MaskedNode)
  cut_owned = lambda x, k: x if masked_node(x) else cut(x, k)
  return steps.TrainState(
      jax.tree.map(cut, saved.params, kept), state,
      optax.tree_map_params(tx, cut_owned, jax.tree.map(jnp.copy, saved.opt_state), kept,
                            is_leaf=masked_node),
      saved.count)


def lottery(method: Callable[[float], transforms.Transform], tx: optax.GradientTransformation,
            saved: steps.TrainState, train: Callable, *, rounds: int,
            fraction: float = 0.2) -> Iterator[Ticket]:
  """Iterative magnitude pruning with rewinding: yields a ticket a round, the dense one first.

  Round `i` has sparsity `1 - (1 - fraction)^i`, of which a weight of `n` entries keeps exactly
  `n - round(n sparsity)`; masks are nested.

  Args:
    method: `sparsity -> transform`, such as `jsp.magnitude`; masks are chosen at its init.
    tx: the optimizer.
    saved: the TrainState of step k, made with `method(0.0)`; it is not donated.
    train: `(transform, train_state) -> train_state`, from there to the end of training.
    rounds: prunings; `rounds + 1` trainings.
    fraction: of what is left that goes each round.

  Raises:
    ValueError: `rounds` is not a positive integer, or `fraction` is not in (0, 1).

  Example:
    >>> import jaxsparse as jsp
    >>> tx, loss_fn = optax.sgd(0.1), lambda p: jnp.square(p['kernel'] - 1).sum()
    >>> step = jsp.train_step(loss_fn, tx, jsp.magnitude(0.0))   # serves every round
    >>> def train(transform, ts):
    ...   while ts.count < 5:
    ...     ts, _, _ = step(ts)
    ...   return ts
    >>> params = {'kernel': jnp.arange(10.0).reshape(5, 2)}
    >>> saved, _, _ = step(jsp.TrainState.create(jsp.magnitude(0.0), tx, params))
    >>> tickets = jsp.lottery(jsp.magnitude, tx, saved, train, rounds=2)
    >>> [(t.start.count, round(jsp.sparsity(t.trained.state), 2)) for t in tickets]
    [(1, 0.0), (1, 0.2), (1, 0.4)]
  """
  if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
    raise ValueError(f'rounds must be an integer of at least 1, got {rounds!r}.')
  if isinstance(fraction, bool) or not 0 < fraction < 1:
    raise ValueError(f'fraction is of what is left, in (0, 1), got {fraction!r}.')
  return _rounds(method, tx, saved, train, rounds, fraction)


def _rounds(method, tx, saved, train, rounds, fraction):
  transform = method(0.0)
  trained = train(transform, jax.tree.map(_copied, saved))
  yield Ticket(0.0, transform, saved, trained)
  for i in range(1, rounds + 1):
    sparsity = 1 - (1 - fraction)**i
    transform = method(sparsity)
    start = rewind(transform, tx, saved, trained)
    trained = train(transform, jax.tree.map(_copied, start))
    yield Ticket(sparsity, transform, start, trained)


def _copied(x):
  return jnp.copy(x) if isinstance(x, jax.Array) else x


def _ranked_above_pruned(effective, old):
  """The weights, with kept zeros made large enough to rank above pruned ones."""
  leaves, rebuild = names.named_leaves(effective)

  def lifted(leaf):
    mask, w = old.get(leaf.key), leaf.value
    if mask is None:
      return w
    # Its square, which some criteria rank by, is still a normal number.
    least = max(2.0**-62, float(jnp.finfo(w.dtype).tiny))
    return jnp.where(mask & (jnp.abs(w) < least), jnp.asarray(least, w.dtype), w)

  return rebuild([lifted(leaf) for leaf in leaves])


def _check(transform, old, new, saved):
  said = transforms.spell_or(transform, 'this transform')
  if not new:
    raise ValueError(f'{said} has no masks to rewind with; use a method that prunes.')
  if set(old) != set(new) or set(new) != set(masks.mask_entries(saved.state)):
    raise ValueError(f'The states do not match {said}: found masks of {", ".join(sorted(old))}, '
                     f'expected {", ".join(sorted(new))}.')
  for key, mask in new.items():
    back = int((mask & ~old[key]).sum())
    if back:
      raise ValueError(f'{names.name_of(key)}: {said} would bring back {back} pruned weights; '
                       'expected a sparsity of at least that of the trained state.')


def _is_node(x: Any) -> bool:
  return isinstance(x, weights.WeightsState)


def _counted(chosen, saved):
  return dataclasses.replace(chosen, count=jnp.copy(saved.count)) if _is_node(chosen) else chosen


def _fits(x, kept) -> bool:
  return kept.ndim > 0 and getattr(x, 'shape', None) == kept.shape
