"""Records what JaxPruner answers, for `tests/sparsity/jaxpruner_test.py` to compare with.

Run with JaxPruner (google-research/jaxpruner, commit f133ee5) importable:
`python tests/golden/jaxpruner_record.py`. It writes `jaxpruner.npz` beside itself: inputs as
arrays, all masks one after the other as bits (`masks`), and the table of cases as JSON (`cases`),
{group: [case]}, where a case says where its mask starts (`at`) and its `shape`.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

jax.tree_map = jax.tree_util.tree_map   # JaxPruner is older than its removal

import jaxpruner  # noqa: E402
from jaxpruner import mask_calculator  # noqa: E402
from jaxpruner import sparsity_distributions  # noqa: E402
from jaxpruner import sparsity_types  # noqa: E402

RNG = np.random.default_rng(0)
SPARSITIES = (0.0, 0.1, 0.25, 0.3, 1 / 3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.99)


class Record:
  """Arrays and cases as they come."""

  def __init__(self):
    self.arrays, self.bits, self.cases, self.length = {}, [], {}, 0

  def mask(self, mask) -> dict:
    mask = np.asarray(mask)
    case = {'at': self.length, 'shape': list(mask.shape)}
    self.bits.append(mask.astype(bool).ravel())
    self.length += mask.size
    return case

  def case(self, group, **case):
    self.cases.setdefault(group, []).append(case)

  def save(self, path):
    text = json.dumps(self.cases, separators=(',', ':')).encode()
    np.savez_compressed(path, masks=np.packbits(np.concatenate(self.bits)),
                        cases=np.frombuffer(text, np.uint8), **self.arrays)


def scores(record):
  """{name: nonnegative scores}, with and without ties."""
  normal = lambda *shape: np.abs(RNG.normal(size=shape)).astype(np.float32)
  found = {
      'normal': normal(8, 12), 'ragged': normal(10, 14), 'odd': normal(5, 7), 'row': normal(1, 24),
      'column': normal(24, 1), 'ties': RNG.integers(0, 4, (8, 12)).astype(np.float32),
      'constant': np.ones((5, 7), np.float32), 'zeros': np.zeros((8, 12), np.float32),
      'wide': (normal(8, 12) * 10.0 ** RNG.integers(-20, 20, (8, 12))).astype(np.float32),
      'rank3': normal(4, 6, 5), 'rank4': normal(3, 3, 4, 6),
  }
  record.arrays |= {f'scores/{k}': v for k, v in found.items()}
  return found


def patterns(record):
  found = scores(record)
  for name, s in found.items():
    for sparsity in SPARSITIES:
      mask = mask_calculator.topk_mask_calculator(jnp.asarray(s), sparsity)
      record.case('unstructured', scores=name, sparsity=sparsity, **record.mask(mask))
  for name in ('normal', 'ties', 'column', 'wide', 'rank3', 'rank4'):
    s = found[name]
    for n, m in ((1, 2), (2, 4), (1, 4), (3, 4), (2, 3), (5, 6), (4, 8), (1, 12)):
      for axis in range(s.ndim):
        if s.shape[axis] % m == 0:
          kind = sparsity_types.NByM(n, m, axis)
          mask = mask_calculator.topk_n_by_m_mask_calculator(jnp.asarray(s), 0.5, kind)
          record.case('n_m', scores=name, n=n, m=m, axis=axis, **record.mask(mask))
  for name in ('normal', 'ragged', 'odd', 'ties', 'rank4'):
    s = found[name]
    for rows, columns in ((1, 2), (2, 2), (2, 4), (4, 3), (3, 5)):
      for mean in (True, False):
        for sparsity in (0.0, 0.3, 0.5, 0.8):
          case = {'scores': name, 'rows': rows, 'columns': columns, 'mean': mean,
                  'sparsity': sparsity}
          try:
            mask = mask_calculator.topk_block_mask_calculator(
                jnp.asarray(s), sparsity, rows, columns, mean)
          except (TypeError, ValueError):
            mask = np.zeros((0,))
          record.case('block', **case, **record.mask(mask))
  for name in ('normal', 'odd', 'ties', 'constant', 'rank3', 'rank4'):
    for axis in range(found[name].ndim):
      for sparsity in (0.0, 0.3, 0.5, 0.8, 0.95):
        kind = sparsity_types.Channel(axis)
        mask = mask_calculator.topk_channel_mask_calculator(
            jnp.asarray(found[name]), sparsity, kind)
        record.case('channel', scores=name, axis=axis, sparsity=sparsity, **record.mask(mask))


SHAPES = {
    'mlp': {'in': (98, 40), 'mid': (40, 20), 'out': (20, 10)},
    'odd': {'a': (7, 13), 'b': (13, 3), 'c': (3, 11)},
    'wide': {'big': (100, 100), 'thin': (10, 10), 'bias': (10,)},
    'conv': {'conv1': (3, 3, 3, 8), 'conv2': (3, 3, 8, 16), 'dense': (64, 10)},
    'attention': {'query': (16, 2, 8), 'out': (2, 8, 16), 'mlp': (16, 64)},
    'one': {'only': (9, 5)},
    'alike': {'a': (8, 8), 'b': (8, 8), 'c': (8, 8), 'd': (8, 32)},
}


def trees(record):
  """Whole models: the sparsity of each kernel, and the masks."""
  for name, shapes in SHAPES.items():
    shaped = {k: {'kernel': jnp.zeros(shape)} for k, shape in shapes.items()}
    for sparsity in SPARSITIES:
      found = sparsity_distributions.erk(shaped, sparsity)
      found = {k: v['kernel'] for k, v in found.items() if v['kernel'] is not None}
      record.case('erk', tree=name, shapes=shapes, sparsity=sparsity,
                  found={k: float(v) for k, v in found.items()})
  for tree in ('odd', 'conv', 'attention', 'alike'):
    values = {k: RNG.normal(size=s, scale=0.2 + RNG.random()).astype(np.float32)
              for k, s in SHAPES[tree].items()}
    grads = {k: RNG.normal(size=s).astype(np.float32) for k, s in SHAPES[tree].items()}
    for kind, table in (('w', values), ('g', grads)):
      record.arrays |= {f'{tree}/{kind}/{k}': v for k, v in table.items()}
    params, grads = ({k: {'kernel': jnp.asarray(v)} for k, v in t.items()} for t in (values, grads))
    for sparsity in (0.25, 0.5, 0.8, 0.95):
      for rule in ('uniform', 'erk', 'pooled', 'pooled_normalized'):
        for score in ('magnitude', 'saliency'):
          if rule.startswith('pooled'):
            kind = {'magnitude': jaxpruner.GlobalMagnitudePruning,
                    'saliency': jaxpruner.GlobalSaliencyPruning}[score]
            updater = kind(sparsity=sparsity, use_normalization=rule != 'pooled')
          else:
            share = getattr(sparsity_distributions, rule)
            kind = {'magnitude': jaxpruner.MagnitudePruning,
                    'saliency': jaxpruner.SaliencyPruning}[score]
            updater = kind(sparsity_distribution_fn=lambda p, f=share, s=sparsity: f(p, s))
          _, masks = updater.instant_sparsify(params, grads=grads)
          record.case('tree', tree=tree, rule=rule, score=score, sparsity=sparsity,
                      masks={k: record.mask(m['kernel']) for k, m in masks.items()})


def drop_and_grow(record):
  updater = jaxpruner.algorithms.RigL()
  for kind in ('rigl', 'set'):
    for shape in ((8, 12), (5, 7), (1, 30), (4, 6, 5)):
      for density in (0.1, 0.5, 0.9):
        for fraction in (0.0, 0.1, 0.3, 0.5):
          w = RNG.normal(size=shape).astype(np.float32)
          size = w.size
          old = np.zeros(size, bool)
          old[RNG.permutation(size)[:round(size * density)]] = True
          old = old.reshape(shape)
          growth = RNG.random(shape) if kind == 'set' else np.abs(RNG.normal(size=shape))
          growth = growth.astype(np.float32)
          new = updater._update_masks(jnp.asarray(old, jnp.uint8), jnp.abs(jnp.asarray(w * old)),
                                      jnp.asarray(growth), fraction)
          index = len(record.cases.get('drop_grow', []))
          record.arrays[f'drop_grow/{index}'] = np.stack([w, growth])
          record.case('drop_grow', kind=kind, fraction=fraction, old=record.mask(old),
                      new=record.mask(new))


def schedules(record):
  for target, start, end, every, power in (
      (0.9, 10, 100, 10, 3), (0.9, 10, 99, 20, 3), (0.75, 2, 11, 3, 3), (0.5, 0, 20, 5, 3),
      (0.95, 5, 6, 1, 3), (0.8, 3, 40, 7, 3), (0.9, 10, 100, 10, 1), (0.6, 1, 30, 4, 1)):
    s = jaxpruner.PolynomialSchedule(every, start, end, power)
    steps = range(end + 3)
    values = [float(s.get_sparsity_at_step(target, jnp.asarray(t))) for t in steps]
    record.case('schedule', target=target, start=start, end=end, every=every, power=power,
                values=values, due=[t for t in steps if s.is_mask_update_iter(t)])


def trajectories(record):
  """Fourteen steps of one kernel whose gradients are given, as JaxPruner's own loop takes them."""
  steps, shape = 14, (8, 8)
  grads = RNG.normal(size=(steps, *shape)).astype(np.float32)
  start = RNG.normal(size=shape).astype(np.float32)
  record.arrays |= {'trajectory/grads': grads, 'trajectory/start': start}
  uniform = lambda s: lambda params: sparsity_distributions.uniform(params, s)
  periodic = jaxpruner.PeriodicSchedule(3, 2, 11)
  half = {'sparsity_distribution_fn': uniform(0.5)}
  updaters = {
      'magnitude': lambda: jaxpruner.MagnitudePruning(
          scheduler=jaxpruner.PolynomialSchedule(3, 2, 11),
          sparsity_distribution_fn=uniform(0.75)),
      'straight_through': lambda: jaxpruner.SteMagnitudePruning(
          sparsity_distribution_fn=uniform(0.75)),
      'static': lambda: jaxpruner.StaticRandomSparse(**half),
      'rigl': lambda: jaxpruner.RigL(scheduler=periodic, **half),
      'rigl_cosine': lambda: jaxpruner.RigL(
          scheduler=periodic, drop_fraction_fn=optax.cosine_decay_schedule(0.5, 11), **half),
      'sparse_evolution': lambda: jaxpruner.SET(scheduler=periodic, **half),
  }
  optimizers = {'sgd': optax.sgd(0.1), 'momentum': optax.sgd(0.1, momentum=0.9),
                'adam': optax.adam(0.05), 'adamw': optax.adamw(0.05, weight_decay=0.1)}
  for method, make in updaters.items():
    for name, inner in optimizers.items():
      updater = make()
      tx = updater.wrap_optax(inner)
      params = {'kernel': jnp.asarray(start)}
      state = tx.init(params)
      if method in ('static', 'rigl', 'rigl_cosine', 'sparse_evolution'):
        params = updater.post_gradient_update(params, state)
      masks, seen = [], []
      if method == 'sparse_evolution' and name == 'sgd':
        draws = [updater._get_grow_scores(state._replace(count=jnp.asarray(t)), params, None)
                 for t in (3, 6, 9)]
        record.arrays['trajectory/draws'] = np.stack([d['kernel'] for d in draws])
      first = state.masks['kernel']
      for g in grads:
        if method == 'straight_through':
          view = updater.pre_forward_update(params, state)['kernel']
          masks.append(np.asarray(view) != 0)
        updates, state = tx.update({'kernel': jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        params = updater.post_gradient_update(params, state)
        seen.append(np.asarray(params['kernel']))
        if method != 'straight_through':
          masks.append(np.asarray(state.masks['kernel']))
      record.arrays[f'trajectory/{method}/{name}'] = np.stack(seen)[[2, 5, 8, 13]]
      found = {} if first is None else {'first': record.mask(first)}
      record.case('trajectory', method=method, optimizer=name,
                  masks=record.mask(np.stack(masks)), **found)


def main():
  record = Record()
  for part in (patterns, trees, drop_and_grow, schedules, trajectories):
    part(record)
  record.save(pathlib.Path(__file__).with_name('jaxpruner.npz'))
  print({group: len(cases) for group, cases in record.cases.items()})


if __name__ == '__main__':
  main()
