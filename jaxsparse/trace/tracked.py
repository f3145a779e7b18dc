"""Weights on their way through a program, and what hooks say about them."""

import dataclasses
import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.formats import format as formats
from jaxsparse.trace import contraction as contractions
from jaxsparse.trace import origins


@functools.partial(jax.tree_util.register_dataclass, data_fields=['value'], meta_fields=['origin'])
@dataclasses.dataclass(frozen=True)
class Tracked:
  """A weight, or what layout operations made of it.

  Attributes:
    value: the array as the program sees it, or a format in the weight's natural axes (less those
      sliced off): transposes and casts of a format are remembered, not carried out.
    origin: which weight it is.
  """

  value: Any
  origin: origins.Origin

  @property
  def packed(self) -> bool:
    """Whether the value is a format."""
    return formats.is_format(self.value)


class Key(NamedTuple):
  """Which aux belongs together.

  Attributes:
    name: of the weight.
    scans: `(natural axis, site)` of the scans around that slice the weight, outermost first.
    stacked: natural axes of the scans left behind, which stacked the aux, outermost first.
  """

  name: str
  scans: tuple[tuple[int, str], ...]
  stacked: tuple[int, ...] = ()


class Seen(NamedTuple):
  """An aux, and whether any hook produced it: None for certainly, else a bool array.

  With the flag any associative merge will do, one without an identity element too.
  """

  flag: Any
  value: Any


class Run(NamedTuple):
  """What an interpretation needs everywhere.

  Attributes:
    hook: `(contraction, x, w) -> (y, aux)`.
    merge: associative `(aux, aux) -> aux`.
    report: `(name, what)`, called where a format is densified or a derivative dropped.
  """

  hook: Callable
  merge: Callable
  report: Callable


def source_of(value: Any) -> origins.Origin | None:
  """The origin of a value, None when it is no weight."""
  return value.origin if isinstance(value, Tracked) else None


def is_packed(value: Any) -> bool:
  """Whether a value is a weight held as a format."""
  return isinstance(value, Tracked) and value.packed


def plain(value: Any, atom: Any) -> Any:
  """A value without its origin: the array that the program sees at a variable."""
  if not isinstance(value, Tracked):
    return value
  return contractions.dense(value.value, value.origin, atom.aval.dtype)


def report_dense(value: Any, operation: str, how: Run):
  """Says that a format is about to be densified; nothing for anything else."""
  if is_packed(value):
    how.report(value.origin.name, f'{operation} has no rule for this {type(value.value).__name__}, '
               'so it is computed with the dense array')


def densified(values: list, atoms: list, operation: str, how: Run) -> list:
  """Operands as arrays; every format among them is reported."""
  for value in values:
    report_dense(value, operation, how)
  return [plain(value, atom) for value, atom in zip(values, atoms)]


def join(a: dict, b: dict, merge: Callable) -> dict:
  """Merges two collections of aux, `{Key: Seen}`."""
  return a | b | {key: combine(a[key], b[key], merge) for key in a if key in b}


def combine(a: Seen, b: Seen, merge: Callable) -> Seen:
  """Merges two aux of which either may not have been seen."""
  merged = merge(a.value, b.value)
  value = _select(b.flag, _select(a.flag, merged, b.value), a.value)
  return Seen(None if a.flag is None or b.flag is None else a.flag | b.flag, value)


def _select(flag, x, y):
  if flag is None:
    return x
  return jax.tree.map(lambda u, v: jnp.where(flag, u, v), x, y)


def unseen(found: dict) -> dict:
  """Zeros like a (possibly abstract) collection of aux, flagged as not seen."""
  zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
  return {key: Seen(jnp.zeros((), bool), zeros(seen.value)) for key, seen in found.items()}


def flagged(found: dict) -> dict:
  """The same collection with every flag an array, as a carry or a branch must return it."""
  return {key: Seen(jnp.ones((), bool) if seen.flag is None else seen.flag, seen.value)
          for key, seen in found.items()}
