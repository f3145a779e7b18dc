"""Watching stable ranks while a model trains, and choosing ranks from them.

Wang et al., "Cuttlefish: Low-Rank Model Training without All the Tuning" (arXiv:2305.02538). The
stable rank of a matrix is `|W|_F^2 / |W|_2^2`. At init, when a weight has full rank, its scale
`xi = full / sr(W_0)` is set, and its scaled stable rank at epoch t is `xi sr(W_t)`. Everything is
keyed by the weight's name: the authors' code zips lists that skip different layers, so that some
layers get a neighbour's scale.
"""

import functools
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.lowrank import ranks as rank_numbers
from jaxsparse.numerics import linalg

# Names never factored unless asked for: attention's output projection, and embeddings.
KEPT = r'(.*/)?((out|o)(_proj)?|c_proj|proj)/(kernel|w|weight)|(.*/)?[^/]*embed[^/]*(/.*)?'


class StableRank(NamedTuple):
  """What a watched weight remembers."""

  initial: jax.Array   # float32 [*batch], at init
  current: jax.Array   # float32 [*batch], when last measured
  count: jax.Array     # int32 (), updates done when last measured


class StableRanks(dict):
  """`{weight name: float64 [*batch]}` of one moment, as `stable_ranks` returns them.

  Attributes:
    full: {name: full rank}.
    initial: {name: float64 [*batch]}, stable ranks at init.
    count: updates done when the state was measured; None where params were given.
  """

  def __init__(self, values: Mapping[str, Any], *, full: Mapping[str, int],
               initial: Mapping[str, Any], count: int | None = None):
    super().__init__(values)
    self.full, self.initial, self.count = dict(full), dict(initial), count

  def scaled(self, name: str) -> np.ndarray:
    """`xi sr`, at most the full rank; the full rank of a weight that was zero at init."""
    first, full = np.asarray(self.initial[name], np.float64), self.full[name]
    scale = full / np.where(first > 0, first, 1.0)
    return np.where(first > 0, np.minimum(scale * np.asarray(self[name], np.float64), full), full)


def track_stable_rank(every: int | None = 100) -> transforms.Transform:
  """Leaves weights as they are and measures their stable ranks every so many steps.

  Args:
    every: updates between measurements, best those of an epoch; None never measures in the step,
      for loops that call `stable_ranks(state, params)`.

  Returns:
    A Transform whose state `stable_ranks` and `choose_ranks` read. Matrices of a stack are measured
    each by itself.

  Raises:
    ValueError: `every` is not a positive integer.

  Example:
    >>> import jaxsparse as jsp
    >>> _, state = jsp.track_stable_rank().init({'kernel': jnp.eye(4)})
    >>> float(jsp.stable_ranks(state)['kernel'])
    4.0
  """
  spelling = spell.call(track_stable_rank, locals())
  check_every(every)

  def init(matrices):
    found = linalg.stable_ranks(matrices)
    return matrices, {key: StableRank(x, x, jnp.zeros([], jnp.int32)) for key, x in found.items()}

  def update(matrices, states, *, count, refresh):
    def measure():
      found = linalg.stable_ranks(matrices)
      return {key: state._replace(current=found[key], count=count + 1)
              for key, state in states.items()}

    if refresh is None:
      return jax.lax.cond((count + 1) % every == 0, measure, lambda: states)
    return measure() if refresh else states

  due = transforms.never if every is None else lambda count: (count + 1) % every == 0
  return weights.treewise(init, lambda matrices, states: matrices, update if every else None,
                          spec=transforms.Spec(spelling, due, projects=True, regrows=False))


def check_every(every: int | None) -> None:
  """Raises a ValueError unless it is a positive integer or None."""
  whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
  if every is not None and not whole:
    raise ValueError(f'every must be a positive integer of steps or None, got {every!r}.')


def stable_ranks(state: Any, params: Any = None, *,
                 only: Collection[str] | None = None) -> StableRanks:
  """The stable ranks of the watched weights.

  Args:
    state: of `track_stable_rank`, alone or among other transforms.
    params: measures these now, in compiled programs that hand only numbers to the host; None
      reads what the last due update measured.
    only: names of the watched weights to look at; None is all. Fewer shapes compile faster.

  Returns:
    `StableRanks`, a dict.

  Raises:
    ValueError: the state watches no weight, not one of `only`, or a watched weight is not among the
      params.

  Example:
    >>> import jaxsparse as jsp
    >>> params, state = jsp.track_stable_rank().init({'kernel': jnp.eye(4)})
    >>> float(jsp.stable_ranks(state, {'kernel': jnp.diag(jnp.arange(4.0))})['kernel'].round(4))
    1.5556
  """
  found = _watched(state, only)
  layouts = tuple((key, layout) for key, (layout, _) in found.items())
  remembered = {key: value for key, (_, value) in found.items()}
  current = {key: value.current for key, value in remembered.items()}
  if params is not None:
    # A program a shape is less to compile than one of all.
    arrays = _picked(layouts, params)
    current = {key: _measured(layout, arrays[key]) for key, layout in layouts}
  initial = {key: value.initial for key, value in remembered.items()}
  counts = [value.count for value in remembered.values()]
  current, initial, counts = jax.device_get((current, initial, counts))
  by_name = lambda tree: {names.name_of(k): np.asarray(x, np.float64) for k, x in tree.items()}
  full = {names.name_of(key): min(layout.matrix_shape[-2:]) for key, layout in layouts}
  return StableRanks(by_name(current), full=full, initial=by_name(initial),
                     count=int(max(counts)) if params is None else None)


@functools.partial(jax.jit, static_argnums=0)
def _measured(layout, array):
  return linalg.stable_rank(layout.to_matrix(array))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _accumulated(layouts, arrays, fraction):
  return {key: linalg.accumulative_rank(layout.to_matrix(arrays[key]), fraction).max()
          for key, layout in layouts}


def _picked(layouts, params):
  leaves, _ = names.named_leaves(params)
  there = {leaf.key: leaf.value for leaf in leaves}
  for key, layout in layouts:
    if getattr(there.get(key), 'shape', None) != layout.shape:
      raise names.no_match(names.name_of(key), [leaf.name for leaf in leaves])
  return {key: there[key] for key, _ in layouts}


def watched_names(state: Any) -> list[str]:
  """Names of the weights that the state of `track_stable_rank` watches."""
  return [names.name_of(key) for key in _watched(state)]


def _watched(state, only=None):
  """`{key: (layout, StableRank)}` of the weights whose names are in `only`, of all without it."""
  is_node = lambda x: isinstance(x, weights.WeightsState)
  found = {key: (entry.layout, node.weights[key])
           for node in jax.tree.leaves(state, is_leaf=is_node) if is_node(node)
           for key, entry in node.entries if isinstance(node.weights[key], StableRank)}
  if not found:
    raise ValueError('The state watches no weight; it must be that of track_stable_rank().')
  if only is None:
    return found
  there = [names.name_of(key) for key in found]
  for name in only:
    if name not in there:
      raise names.no_match(name, there)
  return {key: value for key, value in found.items() if names.name_of(key) in only}


def ranks_settled(history: Sequence[Mapping[str, Any]], *, tolerance: float | None = None,
                  window: int = 5, last: int = 5, earliest: int = 5,
                  full: Mapping[str, int] | None = None, paper: bool = False) -> bool:
  """Whether the stable ranks of all weights have stopped moving: Cuttlefish's switch rule.

  Each weight's sequence is smoothed by a moving average of weight `2 / (window + 1)`, seeded with
  its first value. A weight has settled, for good, once the mean of the last absolute differences
  (`numpy.gradient`: central inside, one-sided at the end) is at most `tolerance`.

  Args:
    history: what `stable_ranks` returned after each epoch; or `{name: number}` with `full`.
    tolerance: None stands for 1e-3 an epoch; with `paper` for the paper's 0.1.
    window: epochs of the moving average.
    last: differences whose mean counts, or as many as there are.
    earliest: epochs before which nothing settles, at least 2.
    full: full ranks that the numbers of `history` are divided by. None takes scaled stable ranks
      over full ranks, which is `sr / sr(W_0)`.
    paper: as the authors' code has it: stable ranks unscaled, truncated to integers, in units of
      rank, so the rule is not free of scale, and trivially true of small weights.

  Returns:
    True once every weight has settled, and for each longer history.

  Raises:
    ValueError: a value is not finite, names differ between epochs, two entries are the same
      measurement, or numbers come without `full`.

  Example:
    >>> falling = [{'w': 8.0 + 8.0 / 2**t} for t in range(12)]
    >>> [ranks_settled(falling[:n], full={'w': 16}, tolerance=0.02) for n in (5, 8, 12)]
    [False, False, True]
  """
  limit = (0.1 if paper else 1e-3) if tolerance is None else tolerance
  earliest = max(earliest, 2)
  if len(history) < earliest:
    return False
  return all(_settles(x, limit, window, last, earliest)
             for x in _sequences(history, full, paper).values())


def _sequences(history, full, paper):
  """`{name: float64 [epochs, *batch]}` in the units of the rule."""
  counts = [h.count for h in history if getattr(h, 'count', None) is not None]
  if len(set(counts)) < len(counts):
    raise ValueError(f'The history holds a measurement twice (counts {counts}): append '
                     'stable_ranks(state) once in track_stable_rank(every=...) steps, or measure '
                     'with stable_ranks(state, params).')
  out = {}
  for name in history[0]:
    if any(name not in h for h in history):
      raise ValueError(f'{name}: not in every entry of the history.')
    x = np.stack([np.asarray(h[name], np.float64) for h in history])
    if not np.isfinite(x).all():
      raise ValueError(f'{name}: a stable rank is NaN or infinite; the weight has such values.')
    if paper:
      out[name] = np.trunc(x)
    elif full is not None:
      out[name] = x / full[name]
    elif isinstance(history[0], StableRanks):
      first = np.asarray(history[0].initial[name], np.float64)
      out[name] = np.where(first > 0, x / np.where(first > 0, first, 1.0), 0.0)
    else:
      raise ValueError('Numbers need their full ranks: ranks_settled(history, full={name: rank}).')
  return out


def _settles(x, limit, window, last, earliest) -> bool:
  smooth, weight = np.empty_like(x), 2 / (window + 1)
  smooth[0] = x[0]
  for t in range(1, len(x)):
    smooth[t] = weight * x[t] + (1 - weight) * smooth[t - 1]
  latched = np.zeros(x.shape[1:], bool)
  for t in range(earliest, len(x) + 1):
    moves = np.abs(np.gradient(smooth[:t], axis=0))[-last:].mean(0)
    latched |= moves <= limit
  return bool(latched.all())


def choose_ranks(state: Any, *, params: Any = None, accumulated: float = 0.0, scaled: bool = True,
                 multiple: int = 1, keep: str = KEPT) -> dict[str, int]:
  """The rank of each watched weight that a factorization makes smaller.

  `r = min(full, max(ceil(xi sr), accumulative rank))`, of a stack the largest of its matrices, then
  rounded up. A weight is left out, so stays full, where `r (R + O) >= R O`, where it was zero at
  init, or where its name matches `keep`.

  Args:
    state: of `track_stable_rank`.
    params: measures these now, as in `stable_ranks`.
    accumulated: in [0, 1]; a rank is at least the number of singular values that make up this share
      of their sum. The paper takes 0.8 for transformers. Needs `params`.
    scaled: by `xi`; False is the plain stable rank, which the paper found too small.
    multiple: ranks are rounded up to a multiple of it: 8 suits CPUs, 128 a TPU's matrix unit.
    keep: pattern of whole names that stay full; by default attention's output projections and
      embeddings, '' for none.

  Returns:
    `{name: rank}` for `low_rank`, empty where no rank pays.

  Raises:
    ValueError: a stable rank is not finite, an argument is out of range, or `params` is missing.

  Example:
    >>> import jaxsparse as jsp
    >>> w = jax.random.normal(jax.random.key(0), (64, 64))
    >>> _, state = jsp.track_stable_rank().init({'kernel': w})
    >>> trained = {'kernel': w.at[0].mul(20.0)}
    >>> 0 < jsp.choose_ranks(state, params=trained)['kernel'] < 32, jsp.choose_ranks(state)
    (True, {})
  """
  rank_numbers.check_multiple(multiple)
  wanted = wanted_ranks(state, params=params, accumulated=accumulated, scaled=scaled)
  return paying_ranks(wanted, multiple, keep)


def paying_ranks(wanted: Mapping[str, tuple[int, tuple[int, int]]], multiple: int,
                 keep: str) -> dict[str, int]:
  """Of what `wanted_ranks` found, the ranks that make a weight smaller, rounded up."""
  kept = names.compile_pattern(keep)
  out = {}
  for name, (r, shape) in wanted.items():
    r = rank_numbers.rounded(r, multiple, min(shape))
    if not kept.fullmatch(name) and rank_numbers.pays(r, shape):
      out[name] = r
  return out


def wanted_ranks(state: Any, *, params: Any = None, accumulated: float = 0.0, scaled: bool = True,
                 only: Collection[str] | None = None, seen: StableRanks | None = None
                 ) -> dict[str, tuple[int, tuple[int, int]]]:
  """`{name: (rank, (R, O))}` of every watched weight, before rounding and whether it pays or not.

  Arguments are those of `choose_ranks` and, `only`, of `stable_ranks`, whose answer for the same
  params `seen` is where it is known.
  """
  if not 0 <= accumulated <= 1:
    raise ValueError(f'accumulated must be a share in [0, 1], got {accumulated!r}.')
  if accumulated and params is None:
    raise ValueError('An accumulative rank is that of weights: choose_ranks(state, params=params).')
  found = _watched(state, only)
  ranks = stable_ranks(state, params, only=only) if seen is None else seen
  layouts = tuple((key, layout) for key, (layout, _) in found.items())
  floors = {}
  if accumulated:
    floors = jax.device_get(_accumulated(layouts, _picked(layouts, params), accumulated))
  out = {}
  for key, layout in layouts:
    name, shape = names.name_of(key), layout.matrix_shape[-2:]
    if not np.isfinite(ranks[name]).all():
      raise ValueError(f'{name}: its stable rank is NaN or infinite; the weight has such values.')
    r = math.ceil(np.max(ranks.scaled(name) if scaled else ranks[name]))
    out[name] = (min(max(r, int(floors.get(key, 0)), 1), min(shape)), shape)
  return out


def attends(weight_names: Sequence[str]) -> bool:
  """Whether the names are those of a transformer: a query, key or value projection is among them.

  Example:
    >>> attends(['blocks/query/kernel']), attends(['hidden_0/kernel'])
    (True, False)
  """
  return any(re.fullmatch(r'(.*/)?(q|k|v|query|key|value|qkv)(_proj)?/(kernel|w|weight)', name)
             for name in weight_names)
