"""Transforms of transforms: `chain`, `at`, `rules`."""

import dataclasses
from typing import Any, Callable

import jax

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import stages as staging
from jaxsparse.core import transform as transforms
from jaxsparse.core import weights
from jaxsparse.formats import format as formats

Transform = transforms.Transform


def chain(*stages: Transform) -> Transform:
  """Data flows left to right: `chain(nm(2, 4), fake_quantize('int8'))` prunes, then quantizes.

  `init` runs right to left, as the inverse of a composition, so the first stage's latents are
  what is stored. A stage that leaves no weight to transform (`nf4`, `clustered`) is initialized
  last, on what the stages to its left make of the weight, and takes the weight over: those keep
  their state and act no more, though codes of a pruned weight are stored in its sparse form.
  `nm(2, 4) | lora(16)` prunes the factors, `lora(16, base=nm(2, 4))` the base. `update` pulls
  `grads` back, so each stage gets the gradient at its own output.

  Args:
    *stages: transforms; chains are flattened and identities dropped.

  Returns:
    A Transform whose state is the tuple of the stages' states; a single stage is itself.

  Example:
    >>> import jaxsparse as jsp
    >>> jsp.chain(jsp.nm(2, 4), jsp.identity())
    Transform(nm(2, 4))
  """
  _check_transforms('chain', stages)
  flat = []
  for stage in stages:
    flat.extend(stage.spec.parts if _is(stage, '|') else [] if _is(stage, 'identity') else [stage])
  if len(flat) < 2:
    return flat[0] if flat else transforms.identity()
  parts = tuple(flat)

  def init(params, **extra):
    return _init_stages(parts, params, extra)

  def update(params, state, *, grads=None, **extra):
    inputs, pulls = [], []
    for part, s in zip(parts, _states(parts, state)):
      inputs.append(params)
      step = lambda p, part=part, s=s: formats.densify(part.apply(p, s))
      params, pull = transforms.pullback(step, params) if grads is not None else (
          step(params), None)
      pulls.append(pull)
    new = []
    for part, s, x, pull in reversed([*zip(parts, state, inputs, pulls)]):
      new.append(part.update(x, s, grads=grads, **extra))
      grads = None if pull is None else pull(grads)
    return tuple(reversed(new))

  def pack(params, state):
    return _stored_as_pruned(parts, state, _fold(parts, 'pack')(params, state))

  spelling = spell.Call('|', parts, ())
  following = staging.of_parts(parts, lambda others: chain(*others), only_first=True)
  return Transform(init, _fold(parts, 'apply'), update, pack,
                   _joined(parts, spelling, following))


def _init_stages(parts, params, extra):
  *left, last = parts
  latents, state = last.init(params, **extra)
  if not left:
    return latents, (state,)
  leaves, rebuild = names.named_leaves(params)
  nodes, _ = names.named_leaves(latents, stop={leaf.key for leaf in leaves})
  closed = {node.key for node in nodes
            if names.is_latents(node.value) and not type(node.value).__latents__}
  if not closed:
    latents, states = _init_stages(left, latents, extra)
    return latents, (*states, state)
  # Closed weights are initialized on what the left stages make of them.
  by_key = lambda tree: {node.key: node.value for node in names.named_leaves(
      tree, stop={leaf.key for leaf in leaves})[0]}
  pick = lambda inside, outside: rebuild(
      [inside[leaf.key] if leaf.key in closed else outside[leaf.key] for leaf in leaves])
  original, opened = by_key(params), by_key(latents)
  left_latents, states = _init_stages(left, pick(original, opened), extra)
  made = left_latents
  for part, s in zip(left, states):
    made = part.apply(made, s)
  latents, state = last.init(pick(by_key(formats.densify(made)), original), **extra)
  states = jax.tree.map(lambda s: _supersede(s, closed), states, is_leaf=_is_weights_state)
  return pick(by_key(latents), by_key(left_latents)), (*states, state)


def _is_weights_state(x):
  return isinstance(x, weights.WeightsState)


def _supersede(state, closed):
  if not _is_weights_state(state):
    return state
  owner = lambda key: key in closed or any(key.startswith(c + ':') for c in closed)
  entries = tuple((k, e._replace(superseded=True) if owner(k) else e) for k, e in state.entries)
  return dataclasses.replace(state, entries=entries)


def _stored_as_pruned(parts, states, stored):
  """Weights that a stage took over, in the sparse form of the stage that had pruned them."""
  if transforms.is_traced((states, stored)):
    return stored   # what is zero, which the form depends on, is not known yet
  for part, state in _single(parts, states):
    # A stage whose latents are something else (factors, codes) pruned nothing.
    closed = {key: e._replace(superseded=False) for key, e in state.entries
              if e.superseded and e.latents == weights.kind(e.layout)}
    leaves, rebuild = names.named_leaves(stored, stop=set(closed))
    held = {leaf.key: leaf.value for leaf in leaves
            if leaf.key in closed and formats.is_format(leaf.value)}
    if not held:
      continue
    dense = rebuild([held[leaf.key].todense() if leaf.key in held else leaf.value
                     for leaf in leaves])
    again = dataclasses.replace(state, entries=tuple((k, closed[k]) for k in held))
    pruned, _ = names.named_leaves(part.pack(dense, again), stop=set(held))
    forms = {leaf.key: leaf.value for leaf in pruned if leaf.key in held}
    stored = rebuild([held[leaf.key].stored_as(forms[leaf.key]) if leaf.key in held else leaf.value
                      for leaf in leaves])
  return stored


def _single(parts, states):
  """`(transform, WeightsState)` of every method in stages, those inside rules and chains too."""
  for part, state in zip(parts, states):
    if _is_weights_state(state):
      yield part, state
    elif isinstance(state, tuple) and len(state) == len(part.spec.parts):
      yield from _single(part.spec.parts, state)


def at(pattern: str, transform: Transform) -> Transform:
  """Only the weights whose whole name matches `pattern` (`re.fullmatch`); others pass untouched.

  Args:
    pattern: a regular expression of names such as `'(.*/)?kernel'`.
    transform: what is done to them.

  Returns:
    A Transform with the state of `transform`.

  Raises:
    ValueError: the pattern is malformed; or, in `init`, matches no weight (the message lists the
      names there are).

  Example:
    >>> import jax.numpy as jnp, jaxsparse as jsp
    >>> params = {'kernel': jnp.ones((4, 4)), 'table': jnp.ones((4, 4))}
    >>> _, state = jsp.at('kernel', jsp.nm(2, 4)).init(params)
    >>> list(jsp.masks(state))
    ['kernel']
  """
  spelling = spell.call(at, locals())
  _check_transforms('at', [transform])
  regex = names.compile_pattern(pattern)

  def init(params, **extra):
    leaves, _ = names.named_leaves(params)
    hit = {leaf.key for leaf in leaves if regex.fullmatch(leaf.name)}
    _check_selected(pattern, transform, leaves, hit)
    return weights.init_selected(transform, params, hit, extra)

  following = staging.of_parts((transform,), lambda parts: at(pattern, *parts), only_first=True)
  return transform._replace(init=init, spec=transform.spec._replace(
      spelling=spelling, parts=(transform,), next_stage=following and (
          lambda params, state, course: following(params, (state,), course))))


def rules(pairs: list[tuple[str, Transform]]) -> Transform:
  """Each weight by the first rule whose pattern matches its name.

  Args:
    pairs: `[(pattern, transform), ...]`. Every weight must be covered, or the last rule be
      `('.*', identity())` or `('.*', frozen())`; every rule but that one must match a weight.

  Returns:
    A Transform whose state is the tuple of the rules' states.

  Raises:
    ValueError: (in `init`) a weight is uncovered or a rule matches nothing.

  Example:
    >>> import jaxsparse as jsp
    >>> jsp.rules([('head', jsp.identity()), ('.*', jsp.nm(2, 4))])
    Transform(rules([('head', identity()), ('.*', nm(2, 4))]))
  """
  pairs = [(pattern, transform) for pattern, transform in pairs]
  spelling = spell.call(rules, locals())
  _check_transforms('rules', [transform for _, transform in pairs])
  compiled = [names.compile_pattern(pattern) for pattern, _ in pairs]
  parts = tuple(transform for _, transform in pairs)

  def init(params, *, grads=None, **extra):
    leaves, _ = names.named_leaves(params)
    first = {leaf.key: next((i for i, regex in enumerate(compiled)
                             if regex.fullmatch(leaf.name)), None) for leaf in leaves}
    uncovered = [leaf.name for leaf in leaves if leaf.is_weight and first[leaf.key] is None]
    if uncovered:
      raise ValueError(f'No rule covers {", ".join(uncovered)}; add a rule, or end with '
                       "('.*', identity()).")
    states = []
    for i, (pattern, transform) in enumerate(pairs):
      hit = {key for key, rule in first.items() if rule == i}
      if not (_is(transform, 'identity', 'frozen') and i == len(pairs) - 1):
        _check_selected(pattern, transform, leaves, hit)
      params, state = weights.init_selected(transform, params, hit, extra | {'grads': grads})
      states.append(state)
    return params, tuple(states)

  def update(params, state, **extra):
    return tuple(part.update(params, s, **extra) for part, s in zip(parts, _states(parts, state)))

  patterns = [pattern for pattern, _ in pairs]
  following = staging.of_parts(parts, lambda others: rules([*zip(patterns, others)]),
                              only_first=False)
  return Transform(init, _fold(parts, 'apply'), update, _fold(parts, 'pack'),
                   _joined(parts, spelling, following))


def _check_selected(pattern, transform, leaves, hit):
  if not hit:
    raise names.no_match(pattern, [leaf.name for leaf in leaves])
  if not _is(transform, 'identity', 'frozen') and not any(
      leaf.is_weight for leaf in leaves if leaf.key in hit):
    found = ', '.join(f'{leaf.name} {_kind(leaf.value)}' for leaf in leaves if leaf.key in hit)
    raise ValueError(f'{pattern!r} matches no weight that can be compressed: expected floating '
                     f'arrays of rank 2 or more, found {found}; biases and scales of norms stay.')


def _kind(x: Any) -> str:
  return f'{x.dtype}{list(x.shape)}' if hasattr(x, 'shape') else type(x).__name__


def _check_transforms(word: str, given) -> None:
  for transform in given:
    if not isinstance(transform, Transform):
      raise TypeError(f'{word} takes Transforms, got {transform!r}; in text form, parse it first.')


def _is(transform: Transform, *words: str) -> bool:
  spelling = transform.spec.spelling
  return isinstance(spelling, spell.Call) and spelling.name in words


def _states(parts, state):
  if not isinstance(state, tuple) or len(state) != len(parts):
    shown = f'{len(state)} states' if isinstance(state, tuple) else type(state).__name__
    raise ValueError(f'The state does not match the transform: found {shown}, expected a tuple '
                     f'of {len(parts)}, one a stage.')
  return state


def _fold(parts: tuple[Transform, ...], function: str) -> Callable:
  """Runs `function` of each part on what the one before it returned."""
  def run(params, state):
    for part, s in zip(parts, _states(parts, state)):
      params = params if part.spec.takes_formats else formats.densify(params)
      params = getattr(part, function)(params, s)
    return params
  return run


def _joined(parts: tuple[Transform, ...], spelling: spell.Call,
            next_stage: Callable | None) -> transforms.Spec:
  due: Callable = lambda count: any(part.spec.due(count) for part in parts)
  return transforms.Spec(spelling, due, any(p.spec.restructures for p in parts), parts,
                         takes_formats=True, projects=all(p.spec.projects for p in parts),
                         regrows=any(p.spec.regrows for p in parts),
                         dense_updates=any(p.spec.dense_updates for p in parts),
                         needs=frozenset().union(*(p.spec.needs for p in parts)),
                         next_stage=next_stage)
