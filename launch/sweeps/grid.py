"""The grid of a sweep: text to a list of points, parsed with `ast` and never evaluated.

    transform=['nm(2, 4)', 'rigl(0.9)'] * seed=[0, 1, 2]      six points: every pair
    zip(width=[16, 32], rate=[1e-3, 5e-4]) * seed=[0, 1]      four: width and rate go together
    transform=['identity()'] + width=[16, 32]                 three: one after the other

`name=[...]` is no Python expression, so every `=` becomes `**` before `ast` reads the text: it
binds tighter than `*` and `+`, and columns can be told in the text as it was given.
"""

import ast
import io
import itertools
import math
import tokenize
from collections.abc import Iterable
from typing import Any

_LONGEST = 20_000
_TERMS = 'name=[values], joined by * (product), + (concatenation), zip(...) and parentheses'
_VALUES = 'numbers, strings, booleans, None'


class GridError(ValueError):
  """What is wrong with a grid, and at which column."""


def points(text: str, *, known: Iterable[str], limit: int = 1000) -> list[dict[str, Any]]:
  """Returns the points of a grid, in the order a nested loop would visit them.

  Args:
    text: the grid; values are numbers, strings, booleans, None, or tuples of them.
    known: names that may be assigned.
    limit: the most points; more are refused before any is made.

  Returns:
    One `{name: value}` a point; points of a concatenation may have different names.

  Raises:
    GridError: the text is no grid, names an unknown name or one twice, has an empty list, unequal
      lengths in a zip, or too many points. Says at which column, counted from 1.

  Example:
    >>> points("rate=[0.1, 0.2] * seed=[0, 1]", known=['rate', 'seed'])[1]
    {'rate': 0.1, 'seed': 1}
    >>> points('seed=[0] * sed=[1]', known=['rate', 'seed'])
    Traceback (most recent call last):
    ...
    launch.sweeps.grid.GridError: --grid, column 12: 'sed' is unknown; known are rate, seed.
  """
  source = _Source(text)
  tree = source.tree()
  try:
    count = _count(tree, source, tuple(known))
    if count > limit:
      raise GridError(f'--grid has {count} points, more than --max_points={limit}.')
    return _expand(tree)
  except RecursionError as error:
    raise GridError('--grid has too many terms; write the values in one list.') from error


class _Source:
  """The text as `ast` reads it, and the way back to the columns of what was given."""

  def __init__(self, text):
    if len(text) > _LONGEST:
      raise GridError(f'--grid has at most {_LONGEST} characters, got {len(text)}.')
    if not text.strip():
      raise GridError(f'--grid is empty; expected {_TERMS}.')
    # A grid in a script may span lines.
    self.given = text.replace('\n', ' ').replace('\t', ' ')
    bad = next((i for i, c in enumerate(self.given) if ord(c) < 32 or ord(c) == 127), None)
    if bad is not None:
      raise GridError(f'--grid, column {bad + 1}: a control character, {self.given[bad]!r}.')
    self._indent = len(self.given) - len(self.given.lstrip(' '))
    self._torn = ''
    self._equals = self._assignments()
    pieces, last = [], self._indent
    for position in self._equals:
      pieces.extend([self.given[last:position], '**'])
      last = position + 1
    self._rewritten = ''.join([*pieces, self.given[last:]])

  def _assignments(self):
    """Positions of `=` between a name and a list; any other is an error, and so is `**`."""
    found, before = [], None
    try:
      for token in tokenize.generate_tokens(io.StringIO(self.given).readline):
        if token.type == tokenize.OP and token.string in ('=', '**'):
          if token.string == '**' or before is None or before.type != tokenize.NAME:
            self.refuse(token.start[1], f'unexpected {token.string}; expected {_TERMS}')
          found.append(token.start[1])
        if token.type not in (tokenize.NEWLINE, tokenize.NL, tokenize.INDENT):
          before = token
    except (tokenize.TokenError, SyntaxError) as error:
      self._torn = str(error.args[0])  # `ast` says it better, and at which column
    return found

  def tree(self):
    """The expression; parsing it is all Python ever does with it."""
    try:
      tree = ast.parse(self._rewritten, mode='eval').body
      if self._torn:
        self.refuse(0, f'{self._torn}; expected {_TERMS}')
      return tree
    except GridError:
      raise
    except SyntaxError as error:
      self.refuse(self._column((error.offset or 1) - 1), f'{error.msg}; expected {_TERMS}')
    except (ValueError, RecursionError, MemoryError) as error:
      self.refuse(0, f'too deep or too large to parse ({type(error).__name__}); expected {_TERMS}')

  def column(self, node):
    """Where in the given text a node starts, counted from 0."""
    return self._from_bytes(node.col_offset)

  def _from_bytes(self, offset):
    # `ast` counts bytes of UTF-8.
    before = self._rewritten.encode('utf-8', 'surrogatepass')[:offset]
    return self._column(len(before.decode('utf-8', 'surrogatepass')))

  def _column(self, rewritten):
    column = rewritten + self._indent
    return column - sum(1 for n, at in enumerate(self._equals) if at + n < column)

  def refuse(self, column, what):
    """Raises the error at a column."""
    raise GridError(f'--grid, column {column + 1}: {what}.')

  def quote(self, node):
    """The node's text, shortened."""
    text = self.given[self.column(node) : self._from_bytes(node.end_col_offset)]
    return repr(text if len(text) <= 40 else text[:37] + '...')


def _count(node, source, known, names=None):
  """How many points an expression has; checks it on the way and collects its names."""
  names = set() if names is None else names
  match node:
    case ast.BinOp(op=ast.Pow(), left=ast.Name(id=name)):
      return _assignment(node, name, source, known, names)
    case ast.BinOp(op=ast.Mult()):
      return _count(node.left, source, known, names) * _count(node.right, source, known, names)
    case ast.BinOp(op=ast.Add()):
      # Sides of a sum are points of their own, so each may say every name once.
      sides = [set(names), set(names)]
      total = sum(_count(n, source, known, s) for n, s in zip((node.left, node.right), sides))
      names.update(*sides)
      return total
    case ast.Call(func=ast.Name(id='zip'), keywords=[]) if node.args:
      counts = [_count(argument, source, known, names) for argument in node.args]
      for argument, count in zip(node.args, counts):
        if count != counts[0]:
          source.refuse(
            source.column(argument),
            f'zip joins equal lengths, found {counts[0]} and then {count} values',
          )
      return counts[0]
  return source.refuse(source.column(node), f'found {source.quote(node)}; expected {_TERMS}')


def _assignment(node, name, source, known, names):
  if name not in known:
    source.refuse(source.column(node), f'{name!r} is unknown; known are {", ".join(sorted(known))}')
  if name in names:
    source.refuse(source.column(node), f'{name!r} is assigned twice in one product')
  names.add(name)
  values = node.right
  if not isinstance(values, ast.List):
    source.refuse(
      source.column(values), f'{name}= takes a list in brackets, found {source.quote(values)}'
    )
  if not values.elts:
    source.refuse(source.column(values), f'{name}=[] is empty; a list has at least one value')
  for value in values.elts:
    _check_literal(value, source)
  return len(values.elts)


def _check_literal(node, source, inside=False):
  match node:
    case ast.Constant(value=float() as number) if not math.isfinite(number):
      source.refuse(source.column(node), 'a number that is not finite')
    case ast.Constant(value=bool() | int() | float() | str() | None):
      pass
    case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
      _check_literal(node.operand, source)
    case ast.Tuple() | ast.List() if not inside:
      for element in node.elts:
        _check_literal(element, source, inside=True)
    case _:
      source.refuse(
        source.column(node), f'found {source.quote(node)}; values are {_VALUES}, or tuples of them'
      )


def _expand(node):
  match node:
    case ast.BinOp(op=ast.Pow()):
      return [{node.left.id: _value(element)} for element in node.right.elts]
    case ast.BinOp(op=ast.Add()):
      return _expand(node.left) + _expand(node.right)
    case ast.Call():
      return [_merged(group) for group in zip(*map(_expand, node.args))]
  return [_merged(pair) for pair in itertools.product(_expand(node.left), _expand(node.right))]


def _merged(parts):
  return {name: value for part in parts for name, value in part.items()}


def _value(node):
  value = ast.literal_eval(node)
  return tuple(value) if isinstance(value, list) else value
