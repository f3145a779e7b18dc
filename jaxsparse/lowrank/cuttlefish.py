"""Cuttlefish: trains whole weights, then factors of them, and finds by itself when and which ranks.

Wang, Agarwal, Tanaka, Xing and Papailiopoulos, "Cuttlefish: Low-Rank Model Training without All the
Tuning" (MLSys 2023, arXiv:2305.02538). At the end of each epoch the stable rank of every weight is
looked at. When those of the layers that may be factored have stopped moving, or at the cap, which
is this library's, each weight becomes two factors whose rank is its scaled stable rank; where that
saves nothing it stays whole, and so do the first layers that factors would not make faster. Without
a normalization in the model weights stay near their random start, and Cuttlefish rightly factors
nothing.
"""

import re
from typing import NamedTuple

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import stages
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import ranks as rank_numbers
from jaxsparse.lowrank import stable_rank
from jaxsparse.lowrank.low_rank import low_rank

_PROFILES = ('time', 'cost', 'none')
# Small data have short epochs, in which ranks hardly move and a look costs as much as training.
_MOST_LOOKS = 32


class _Manner(NamedTuple):
  """Arguments of `cuttlefish` that depend on the kind of model."""

  cap: float
  scaled: bool
  accumulated: float
  warmup: int
  rate: float


_ORDINARY = _Manner(cap=0.5, scaled=True, accumulated=0.0, warmup=5, rate=1 / 3)
_PAPERS_TRANSFORMER = _ORDINARY._replace(accumulated=0.8)
# Found on the byte language model by its loss on fresh training text (BUILD_NOTES.md). Scaled
# stable ranks of its narrow weights stay full; what it learns late it learns in factors as well.
_TRANSFORMER = _Manner(cap=0.2, scaled=False, accumulated=0.62, warmup=2, rate=1.0)


def cuttlefish(*, every: int | None = None, tolerance: float | None = None, window: int = 5,
               last: int = 5, earliest: int = 5, cap: float | None = None, paper: bool = False,
               scaled: bool | None = None, accumulated: float | None = None, multiple: int = 1,
               keep: str = stable_rank.KEPT, profile: str = 'time', speedup: float = 1.5,
               ratio: float = 0.25, normalize: bool = False,
               warmup: int | None = None, rate: float | None = None) -> transforms.Transform:
  """Full-rank training that turns into low-rank training once, by itself.

  `launch.run` needs nothing but `--transform="cuttlefish()"`. In a loop of your own, ask
  `transform.spec.next_stage(params, state, jsp.Course(...))` between steps and `restage` to what it
  answers, or use `track_stable_rank`, `ranks_settled` and `choose_ranks` directly.

  Where `cap`, `scaled`, `accumulated`, `warmup` and `rate` are None they are 0.2, False, 0.62, 2
  and 1 for transformers, which have query, key or value weights, and 0.5, True, 0, 5 and 1/3 for
  other models. The paper's transformers differ from others by `accumulated=0.8` alone, which
  `paper=True` takes.

  Args:
    every: steps between two looks, the 'epochs' below; None is an epoch, but more where that were
      over 32 looks before the cap, and less where it were under `earliest`.
    tolerance, window, last, earliest: as in `ranks_settled`.
    cap: share of the run after which the factors come even if ranks still move.
    paper: as in `ranks_settled`; ranks are still chosen by scaled stable ranks.
    scaled, accumulated, multiple: as in `choose_ranks`.
    keep: as there. The model's first and last layer stay whole too, where the run knows them.
    profile: how layers are found that factors do not make faster. 'time' measures each shape of
      product on this backend, 'cost' compiles it and compares operations, for machines without the
      device; 'none' asks nothing. The leading layers that are not `speedup` times faster, in the
      order of use, stay whole.
    speedup: least worthwhile one.
    ratio: of the rank that is profiled to the full rank.
    normalize: a normalization between the factors, as in `low_rank`.
    warmup: looks over which updates grow from zero again after the change. Without it training at
      a high rate collapses.
    rate: what updates are multiplied by after the change: the gradient of a factor has the other
      one in it, so the same learning rate of SGD moves the product further. A third is what the
      paper's transformers take; its convolutional networks take 1.

  Returns:
    A Transform that leaves the weights whole and has a `Spec.next_stage`.

  Raises:
    ValueError: an argument is out of range.

  Example:
    >>> import jaxsparse as jsp
    >>> jsp.parse("at('(.*/)?kernel', cuttlefish(cap=0.4))")
    Transform(at('(.*/)?kernel', cuttlefish(cap=0.4)))
  """
  spelling = spell.call(cuttlefish, locals())
  watch = stable_rank.track_stable_rank(None)
  stable_rank.check_every(every)
  rank_numbers.check_multiple(multiple)
  names.compile_pattern(keep)
  for name, value, low, high in (
      ('cap', cap or 0, 0, 1), ('ratio', ratio, 0, 1), ('accumulated', accumulated or 0, 0, 1),
      ('window', window, 1, None), ('last', last, 1, None), ('earliest', earliest, 1, None),
      ('warmup', warmup or 0, 0, None), ('speedup', speedup, 0, None)):
    if not (low <= value and (high is None or value <= high)):
      raise ValueError(f'{name} must be at least {low}' + (f' and at most {high}' if high else '')
                       + f', got {value!r}.')
  if rate is not None and not rate > 0:
    raise ValueError(f'rate must be more than 0, got {rate!r}.')
  if profile not in _PROFILES:
    raise ValueError(f'profile must be one of {", ".join(_PROFILES)}, got {profile!r}.')
  given = {name: value for name, value in
           _Manner(cap, scaled, accumulated, warmup, rate)._asdict().items() if value is not None}
  rule = dict(tolerance=tolerance, window=window, last=last, earliest=earliest, paper=paper)

  def next_stage(params, state, course):
    notes = course.notes or {'speedups': None, 'history': [], 'done': False}
    if profile != 'none' and course.speedups is not None and notes['speedups'] is None:
      layers = _candidates(state, course)
      notes = notes | {'speedups': dict(course.speedups(layers, ratio, profile, speedup))}
    if notes['done'] or course.count == 0:
      return stages.Turn(notes)
    weight_names = course.order or stable_rank.watched_names(state)
    manner = _usual(weight_names, paper)._replace(**given)
    end = manner.cap * course.steps
    gap = every or _gap(course.epoch, int(end), max(earliest, 2))
    if course.count % gap:
      return stages.Turn(notes)
    # A layer that stays whole in any case need not have settled, nor be looked at.
    looked = _candidates(state, course) or None
    seen = stable_rank.stable_ranks(state, params, only=looked)
    notes = notes | {'history': [*notes['history'], [course.count, _plain(seen)]]}
    history = [stable_rank.StableRanks({name: values[name] for name in seen}, full=seen.full,
                                       initial=seen.initial, count=count)
               for count, values in notes['history']]
    settled = stable_rank.ranks_settled(history, **rule)
    if not settled and course.count + gap <= end:
      return stages.Turn(notes)
    chosen, report = _choose(params, state, course, notes['speedups'] or {}, seen, manner)
    report = {'look': len(history), 'settled': settled, 'capped': not settled} | report
    notes = notes | {'done': True}
    if not chosen:
      return stages.Turn(notes, report=report)
    return stages.Turn(notes, low_rank(chosen, normalize=normalize), manner.warmup * gap,
                       manner.rate, report)

  def _choose(params, state, course, speedups, seen, manner):
    wanted = stable_rank.wanted_ranks(state, params=params, accumulated=manner.accumulated,
                                      scaled=manner.scaled, only=[*seen], seen=seen)
    ranks = stable_rank.paying_ranks(wanted, multiple, keep)
    ends = _ends(course)
    slow = slow_start(_candidates(state, course), speedups, speedup)
    chosen = {n: r for n, r in ranks.items() if n not in ends and n not in slow}
    return chosen, {'ranks': chosen, 'wanted': {n: r for n, (r, _) in wanted.items()},
                    'slow': sorted(slow), 'speedups': {n: round(x, 2) for n, x in speedups.items()}}

  def _candidates(state, course):
    """Layers that may be factored, in the order of use."""
    watched = stable_rank.watched_names(state)
    return [n for n in course.order if n in watched and n not in _ends(course)
            and not re.fullmatch(keep, n)]

  return watch._replace(spec=watch.spec._replace(spelling=spelling, next_stage=next_stage))


def _usual(weight_names, paper) -> _Manner:
  """What a model with these weights gets where nothing is said."""
  if not stable_rank.attends(weight_names):
    return _ORDINARY
  return _PAPERS_TRANSFORMER if paper else _TRANSFORMER


def _gap(epoch, end, earliest) -> int:
  """Steps between looks, so that they are few enough to be cheap and as many as the rule needs."""
  return max(1, min(max(epoch, -(-end // _MOST_LOOKS)), end // earliest))


def slow_start(order: list[str], speedups: dict[str, float], least: float) -> set[str]:
  """The leading layers, in the order of use, that factors make less than `least` times faster.

  Example:
    >>> sorted(slow_start(['a', 'b', 'c', 'd'], {'a': 1.1, 'b': 1.2, 'c': 2.0, 'd': 1.0}, 1.5))
    ['a', 'b']
  """
  slow: set[str] = set()
  for name in order:
    if speedups.get(name, least) >= least:
      break
    slow.add(name)
  return slow


def _ends(course) -> set[str]:
  return {*course.order[:1], *course.order[-1:]}


def _plain(ranks):
  """As JSON has it; Python's floats come back to the bit."""
  return {name: value.tolist() for name, value in ranks.items()}
