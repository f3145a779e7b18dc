"""Interpreting scan, while, cond and remat: weights go in, aux comes out.

Aux of a weight that a scan slices is stacked by the scan; aux of any other weight is merged
through the carry, so that a weight shared by a thousand steps costs one aux, not a thousand.
"""

import functools
from typing import Any

import jax

from jaxsparse.trace import jaxprs
from jaxsparse.trace import tracked
from jaxsparse.trace import walk


def _remat(eqn, values, how, place, evaluate):
  jaxpr, consts = jaxprs.opened(eqn.params['jaxpr'])
  body = lambda *values: evaluate(jaxpr, consts, list(values), how, place)
  policy, prevent_cse = eqn.params['policy'], eqn.params['prevent_cse']
  return jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)(*values)


def _scan(eqn, values, how, place, evaluate):
  params = eqn.params
  jaxpr, constants = jaxprs.opened(params['jaxpr'])
  n_consts, n_carry = jaxprs.scan_counts(params)
  still = walk.invariant(jaxpr, n_consts, n_carry)
  consts, carry, fixed = _settle(eqn, values, still, n_consts, n_carry, how)
  xs = [_sliceable(v, atom, how) for v, atom in zip(
      values[n_consts + n_carry:], eqn.invars[n_consts + n_carry:])]
  inside = place._replace(repeats=place.repeats * params['length'])

  def body(carry, xs):
    slices = [tracked.Tracked(x.value.drop_leading() if x.packed else x.value,
                              x.origin.scan(place.site)) if isinstance(x, tracked.Tracked) else x
              for x in xs]
    inputs = [*consts, *_weave(carry, fixed, still), *slices]
    outs, found = evaluate(jaxpr, constants, inputs, how, inside)
    outs = [tracked.plain(v, atom) for v, atom in zip(outs, jaxpr.outvars)]
    after = [v for v, same in zip(outs[:n_carry], still) if not same]
    stacked = {k: v for k, v in found.items() if _sliced_by(k, place)}
    return after, outs[n_carry:], stacked, {k: v for k, v in found.items() if k not in stacked}

  shared = {}
  if how.merge is not None:
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), xs)
    _, _, _, shared = jax.eval_shape(body, carry, one)

  def step(state, xs):
    carry, so_far = state
    carry, ys, stacked, found = body(carry, xs)
    so_far = tracked.flagged(tracked.join(so_far, found, how.merge))
    return (carry, so_far), (ys, stacked)

  (carry, merged), (ys, stacked) = jax.lax.scan(
      step, (carry, tracked.unseen(shared)), xs, length=params['length'],
      reverse=params['reverse'], unroll=params['unroll'])
  if params['length']:
    # What every step sees is certain to have been seen.
    merged = {key: seen if shared[key].flag is not None else seen._replace(flag=None)
              for key, seen in merged.items()}
  outer = {_stacked(key): _whole(seen) for key, seen in stacked.items()}
  return [*_weave(carry, fixed, still), *ys], merged | outer


def _while(eqn, values, how, place, evaluate):
  params = eqn.params
  condition, cond_constants = jaxprs.opened(params['cond_jaxpr'])
  jaxpr, constants = jaxprs.opened(params['body_jaxpr'])
  n_cond, n_body = params['cond_nconsts'], params['body_nconsts']
  n_consts, n_carry = n_cond + n_body, len(values) - n_cond - n_body
  still = walk.invariant(jaxpr, n_body, n_carry)
  consts, carry, fixed = _settle(eqn, values, still, n_consts, n_carry, how)

  def test(carry):
    inputs = [*consts[:n_cond], *_weave(carry, fixed, still)]
    (go,), found = evaluate(condition, cond_constants, inputs, how, place.inside('cond'))
    return go, found

  def body(carry):
    inputs = [*consts[n_cond:], *_weave(carry, fixed, still)]
    outs, found = evaluate(jaxpr, constants, inputs, how, place.inside('body'))
    outs = [tracked.plain(v, atom) for v, atom in zip(outs, jaxpr.outvars)]
    return [v for v, same in zip(outs, still) if not same], found

  shared, tested = {}, {}
  if how.merge is not None:
    (_, tested), (_, shared) = jax.eval_shape(test, carry), jax.eval_shape(body, carry)

  def step(state):
    carry, so_far, _ = state
    carry, found = body(carry)
    so_far = tracked.flagged(tracked.join(so_far, found, how.merge))
    if not tested:
      return carry, so_far, None
    go, found = test(carry)
    return carry, tracked.flagged(tracked.join(so_far, found, how.merge)), go

  if not tested:
    start = carry, tracked.unseen(shared), None
    carry, found, _ = jax.lax.while_loop(lambda s: test(s[0])[0], step, start)
  else:
    # A condition cannot return aux, so one that has some moves into the body.
    go, found = test(carry)
    start = carry, tracked.unseen(shared) | tracked.flagged(found), go
    carry, found, _ = jax.lax.while_loop(lambda s: s[2], step, start)
  return _weave(carry, fixed, still), found


def _cond(eqn, values, how, place, evaluate):
  index, operands = tracked.plain(values[0], eqn.invars[0]), values[1:]

  def branch(i, operands):
    jaxpr, constants = jaxprs.opened(eqn.params['branches'][i])
    outs, found = evaluate(jaxpr, constants, list(operands), how, place.inside(f'branch{i}'))
    return [tracked.plain(v, atom) for v, atom in zip(outs, jaxpr.outvars)], found

  every = range(len(eqn.params['branches']))
  expected = {}
  for i in every if how.merge is not None else ():
    expected |= jax.eval_shape(functools.partial(branch, i), operands)[1]

  def padded(i, operands):
    outs, found = branch(i, operands)
    return outs, tracked.unseen(expected) | tracked.flagged(found)

  return jax.lax.switch(index, [functools.partial(padded, i) for i in every], operands)


def _settle(eqn, values, still, n_consts, n_carry, how):
  """Constants, carried values, and the carried values that never change, which may be weights.

  A carried weight that the body changes is no longer the weight: it is carried as an array.
  """
  carried = values[n_consts:n_consts + n_carry]
  atoms = eqn.invars[n_consts:n_consts + n_carry]
  fixed = [v for v, same in zip(carried, still) if same]
  moving = [(v, atom) for v, atom, same in zip(carried, atoms, still) if not same]
  arrays = tracked.densified([v for v, _ in moving], [a for _, a in moving], eqn.primitive.name,
                             how)
  return values[:n_consts], arrays, fixed


def _weave(moving, fixed, still) -> list:
  """Carried values in the body's order."""
  moving, fixed = iter(moving), iter(fixed)
  return [next(fixed) if same else next(moving) for same in still]


def _sliceable(value: Any, atom: Any, how: tracked.Run) -> Any:
  """A scanned value; a format only if its leading axis is stored as a batch axis."""
  if not tracked.is_packed(value):
    return value
  positions = value.origin.positions
  if positions and positions[0] == 0 and 0 in value.value.layout.batch:
    return value
  tracked.report_dense(value, 'A scan over an axis that is not its leading batch axis', how)
  return tracked.Tracked(tracked.plain(value, atom), value.origin)


def _sliced_by(key: tracked.Key, place) -> bool:
  return bool(key.scans) and key.scans[-1][1] == place.site


def _stacked(key: tracked.Key) -> tracked.Key:
  (axis, _), rest = key.scans[-1], key.scans[:-1]
  return key._replace(scans=rest, stacked=(axis, *key.stacked))


def _whole(seen: tracked.Seen) -> tracked.Seen:
  """Stacked aux; its flag says whether any step saw it."""
  return seen if seen.flag is None else tracked.Seen(seen.flag.any(), seen.value)


RULES = {'scan': _scan, 'while': _while, 'cond': _cond, 'remat': _remat, 'remat2': _remat,
         'checkpoint': _remat}
