"""The static walk: which contraction consumes which weight, without computing anything."""

from typing import Any, Callable, NamedTuple

from jaxsparse.numerics import axes as roles_of_axes
from jaxsparse.trace import contraction as contractions_
from jaxsparse.trace import jaxprs
from jaxsparse.trace import origins

INLINED = frozenset({'jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint'})
CUSTOM = frozenset({'custom_jvp_call', 'custom_vjp_call', 'custom_vjp_call_jaxpr'})


class Activations(NamedTuple):
  """A product of two activations, such as attention scores; `multiply_adds` of one execution."""

  site: str
  repeats: int
  multiply_adds: int


class Branches(NamedTuple):
  """A `cond`: one list of nodes a branch."""

  branches: tuple


class Loop(NamedTuple):
  """A `while`, whose number of steps is not known: the nodes of its condition and body."""

  site: str
  nodes: tuple


def contractions(fn: Callable, params: Any, *args,
                 **kwargs) -> tuple[contractions_.Contraction, ...]:
  """Lists the contractions that consume weights, in program order.

  Args:
    fn: called as `fn(params, *args, **kwargs)`; traced, never run.
    params: tree of weights: arrays, formats or `jax.ShapeDtypeStruct`.
    *args: arrays, `jax.ShapeDtypeStruct`, or static values.
    **kwargs: likewise.

  Returns:
    One `Contraction` for each operation, those in every branch of a `cond` among them.

  Example:
    >>> import jax, jax.numpy as jnp
    >>> fn = lambda params, x: jax.nn.relu(x @ params['up']) @ params['down']
    >>> params = {'up': jnp.ones((4, 8)), 'down': jnp.ones((8, 2))}
    >>> [c.name for c in contractions(fn, params, jnp.ones((3, 4)))]
    ['up', 'down']
  """
  return tuple(contractions_in(nodes_of(jaxprs.trace(fn, params, args, kwargs))))


def axes_of(fn: Callable, params: Any, *args,
            **kwargs) -> dict[str, roles_of_axes.DimensionNumbers]:
  """Reads the roles of every weight's axes off the products that consume it.

  Args:
    fn: called as `fn(params, *args, **kwargs)`; traced, never run.
    params: tree of weights.
    *args: inputs, as for `contractions`.
    **kwargs: likewise.

  Returns:
    `{name: DimensionNumbers}`, for `init(params, axes=...)`. Of several products the first decides;
    a lookup (reduction is the vocabulary) decides only where there is no product.

  Example:
    >>> import jax.numpy as jnp
    >>> axes_of(lambda p, x: p['weight'] @ x, {'weight': jnp.ones((3, 4))}, jnp.ones(4))
    {'weight': DimensionNumbers(reduction=(1,), output=(0,))}
  """
  found = contractions(fn, params, *args, **kwargs)
  products = [c for c in found if c.kind != 'gather']
  roles = {}
  for c in [*products, *(c for c in found if c.kind == 'gather')]:
    if c.axes is not None:
      roles.setdefault(c.name, c.axes)
  return roles


def nodes_of(program: jaxprs.Program) -> list:
  """The nodes of a whole program."""
  sources = [None if name is None else origins.origin(name, value.shape)
             for name, value in zip(program.names, program.values)]
  return walk(program.jaxpr, sources, contractions_.Place())[0]


def contractions_in(nodes) -> list[contractions_.Contraction]:
  """The contractions of weights among nodes and inside them."""
  found = []
  for node in nodes:
    if isinstance(node, contractions_.Contraction):
      found.append(node)
    elif isinstance(node, Loop):
      found += contractions_in(node.nodes)
    elif isinstance(node, Branches):
      found += [c for branch in node.branches for c in contractions_in(branch)]
  return found


def walk(jaxpr: Any, sources: list, place: contractions_.Place) -> tuple[list, list]:
  """Nodes of a jaxpr in program order, and the origins of its outputs.

  Args:
    jaxpr: closed or open.
    sources: the origin of each input, None where it is no weight.
    place: where the jaxpr is called.

  Returns:
    `(nodes, origins of the outputs)`; a node is a Contraction, Activations, Branches or Loop.
  """
  jaxpr, _ = jaxprs.opened(jaxpr)
  env = {v: source for v, source in zip(jaxpr.invars, sources) if source is not None}
  look = lambda atom: None if jaxprs.is_literal(atom) else env.get(atom)
  nodes = []
  for step, eqn in enumerate(jaxpr.eqns):
    found, outs = _equation(eqn, [look(v) for v in eqn.invars], place.inside(step))
    nodes += found
    env.update((v, out) for v, out in zip(eqn.outvars, outs) if out is not None)
  return nodes, [look(v) for v in jaxpr.outvars]


def invariant(jaxpr: Any, constants: int, carried: int) -> tuple[bool, ...]:
  """Which carried values a loop's body hands on unchanged."""
  jaxpr, _ = jaxprs.opened(jaxpr)
  before = jaxpr.invars[constants:constants + carried]
  return tuple(b is a for b, a in zip(before, jaxpr.outvars))


def _equation(eqn, sources, place):
  nothing = [None] * len(eqn.outvars)
  found = contractions_.recognize(eqn, sources, place)
  if found:
    return [found], nothing
  cost = contractions_.multiply_adds(eqn)
  if cost:
    return [Activations(place.site, place.repeats, cost)], nothing
  name = eqn.primitive.name
  if name in INLINED:
    return walk(jaxprs.called(eqn), sources, place)
  if name in CUSTOM:
    nodes, outs = walk(jaxprs.called(eqn), sources, place)
    return nodes, outs if contractions_in(nodes) else nothing
  if name in _STRUCTURES:
    return _STRUCTURES[name](eqn, sources, place), nothing
  nodes = [node for jaxpr in _others(eqn)
           for node in walk(jaxpr, [None] * len(jaxprs.opened(jaxpr)[0].invars), place)[0]]
  return nodes, origins.follow(eqn, sources)


def _others(eqn):
  # A Pallas kernel's jaxpr is one program of a grid, and says nothing of the whole.
  return [] if eqn.primitive.name == 'pallas_call' else jaxprs.jaxprs_of(eqn)


def _scan(eqn, sources, place):
  body = eqn.params['jaxpr']
  n_consts, n_carry = jaxprs.scan_counts(eqn.params)
  still = invariant(body, n_consts, n_carry)
  inner = list(sources)
  for i, source in enumerate(sources):
    if n_consts <= i < n_consts + n_carry and not still[i - n_consts]:
      inner[i] = None
    elif i >= n_consts + n_carry and source is not None:
      inner[i] = source.scan(place.site)
  return walk(body, inner, place._replace(repeats=place.repeats * eqn.params['length']))[0]


def _while(eqn, sources, place):
  condition, body = eqn.params['cond_jaxpr'], eqn.params['body_jaxpr']
  n_cond, n_body = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  carry = sources[n_cond + n_body:]
  still = invariant(body, n_body, len(carry))
  carry = [source if same else None for source, same in zip(carry, still)]
  of_cond = walk(condition, [*sources[:n_cond], *carry], place.inside('cond'))[0]
  of_body = walk(body, [*sources[n_cond:n_cond + n_body], *carry], place.inside('body'))[0]
  return [Loop(place.site, tuple(of_cond + of_body))] if of_cond + of_body else []


def _cond(eqn, sources, place):
  branches = tuple(walk(branch, sources[1:], place.inside(f'branch{i}'))[0]
                   for i, branch in enumerate(eqn.params['branches']))
  return [Branches(branches)] if any(branches) else []


_STRUCTURES = {'scan': _scan, 'while': _while, 'cond': _cond}
