"""The spelled form of a transform, parsed with `ast` and never evaluated.

The public namespace is the registry: each workshop's TRANSFORMS and VALUES, the combinators and
the schedules. Calls, `|`, literals and bare registered names are all there is.
"""

import ast
import difflib
import inspect
from typing import Any, Callable

from jaxsparse import lowrank
from jaxsparse import quantization
from jaxsparse import sharing
from jaxsparse import sparsity
from jaxsparse.core import combine
from jaxsparse.core import frozen
from jaxsparse.core import packed_blocks
from jaxsparse.core import packed_masks
from jaxsparse.core import rounds
from jaxsparse.core import schedules
from jaxsparse.core import staged
from jaxsparse.core import transform as transforms

_LONGEST = 10_000
_ROOMS = (sparsity, quantization, lowrank, sharing)
_COMBINATORS = (combine.at, combine.chain, combine.rules, frozen.frozen, packed_masks.packed_masks,
                packed_blocks.packed_blocks, staged.staged, transforms.identity)
_SCHEDULES = (schedules.constant, schedules.cubic, schedules.linear, schedules.cosine,
              schedules.at_step, rounds.alternating, rounds.cyclic, rounds.iterative)


def words() -> dict[str, Callable]:
  """{word: factory or value} of everything a spelled form may say.

  Example:
    >>> [word for word in sorted(words()) if word.startswith('c')]
    ['chain', 'channel', ...'cosine', 'cubic', ...'cyclic']
  """
  listed = [*_COMBINATORS, *_SCHEDULES]
  for room in _ROOMS:
    listed.extend([*room.TRANSFORMS, *room.VALUES])
  return {factory.__name__: factory for factory in listed}


def parse(text: str, *, longest: int = _LONGEST) -> transforms.Transform:
  """The transform that `text` spells, such as `"nm(2, 4) | fake_quantize('int8')"`.

  Args:
    text: calls of registered words with literals, joined by `|` for `chain`.
    longest: characters at most; recipes of a program's own making, with a rank a layer, are longer
      than what is typed.

  Returns:
    A Transform; `spell` gives its canonical text.

  Raises:
    ValueError: an unknown word, a Python expression, wrong arguments, or text that is not a
      transform. The message quotes the word, what was found and what was expected.

  Example:
    >>> parse("nm(2, 4) | fake_quantize('int8')")
    Transform(nm(2, 4) | fake_quantize('int8'))
  """
  if not isinstance(text, str):
    raise ValueError(f'A spelled transform is text, got {type(text).__name__}.')
  if len(text) > longest:
    raise ValueError(f'A spelled transform has at most {longest} characters, got {len(text)}.')
  try:
    tree = ast.parse(text.strip(), mode='eval').body
    made = _build(tree, text)
  except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
    raise ValueError(f'{_short(text)} is not a spelled transform: {error}.') from error
  if not isinstance(made, transforms.Transform):
    raise ValueError(f'{_short(text)} does not spell a transform; expected a call such as '
                     f"nm(2, 4), found {_short(ast.unparse(tree))}.")
  return made


def _short(text: str) -> str:
  return repr(text if len(text) <= 80 else text[:77] + '...')


def _build(node: ast.AST, text: str) -> Any:
  match node:
    case ast.BinOp(op=ast.BitOr()):
      stages = [_build(node.left, text), _build(node.right, text)]
      for side, made in zip((node.left, node.right), stages):
        if not isinstance(made, transforms.Transform):
          raise ValueError(f"'|' joins transforms; found {_short(ast.unparse(side))} in "
                           f'{_short(text)}.')
      return combine.chain(*stages)
    case ast.Call(func=ast.Name(id=word)):
      return _call(word, node, text)
    case ast.Name(id=word):
      value = _known(word, text)
      if value in (t for room in _ROOMS for t in room.TRANSFORMS) or value in _COMBINATORS:
        raise ValueError(f'{word!r} in {_short(text)} is a transform to be called: '
                         f'{word}{inspect.signature(value)}.')
      return value
    case ast.Constant(value=bool() | int() | float() | str() | None):
      return node.value
    case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
      return -number
    case ast.List():
      return [_build(x, text) for x in node.elts]
    case ast.Tuple():
      return tuple(_build(x, text) for x in node.elts)
    case ast.Dict() if None not in node.keys:
      return {_build(k, text): _build(v, text) for k, v in zip(node.keys, node.values)}
  raise ValueError(f'{_short(ast.unparse(node))} in {_short(text)} is a Python expression; '
                   'expected calls of registered words with literals, joined by |.')


def _known(word: str, text: str):
  known = words()
  if word not in known:
    raise ValueError(f'{word!r} in {_short(text)} is not a known word{_meant(word, known)}; known '
                     f'are {", ".join(sorted(known))}.')
  return known[word]


def _meant(word, known) -> str:
  near = difflib.get_close_matches(word, known, n=1)
  return f', did you mean {near[0]!r}' if near else ''


def _call(word: str, node: ast.Call, text: str) -> Any:
  factory = _known(word, text)
  if any(keyword.arg is None for keyword in node.keywords):
    raise ValueError(f'** in {_short(text)} is a Python expression; name the arguments.')
  args = [_build(a, text) for a in node.args]
  kwargs = {keyword.arg: _build(keyword.value, text) for keyword in node.keywords}
  signature = inspect.signature(factory)
  try:
    signature.bind(*args, **kwargs)
  except TypeError as error:
    names = [*signature.parameters]
    strange = [k for k in kwargs if k not in names]
    meant = _meant(strange[0], names) if strange else ''
    raise ValueError(f'{word!r} in {_short(text)}: {error}{meant}; it takes '
                     f'{", ".join(names) or "nothing"}.') from error
  try:
    return factory(*args, **kwargs)
  except (TypeError, ValueError, AttributeError) as error:
    raise ValueError(f'{word!r} in {_short(text)}: {error}') from error
