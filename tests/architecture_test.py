"""The shape of the house: who imports whom, sizes, names, docstrings."""

import ast
import pathlib
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE = _ROOT / 'jaxsparse'

# Room: the rooms it may import, then the third parties beyond jax and numpy (which all may).
_WORKSHOP = ({'core', 'formats', 'numerics'}, set())
_MAY_IMPORT = {
  'numerics': (set(), set()),
  'kernels': ({'numerics'}, set()),
  'formats': ({'numerics', 'kernels'}, set()),
  'core': ({'formats', 'numerics'}, {'chex', 'optax'}),
  'sparsity': _WORKSHOP,
  # Qwix, and the safetensors of compressed-tensors, are optional.
  'quantization': (_WORKSHOP[0], {'qwix', 'safetensors'}),
  # PEFT's files are safetensors, which comes with an extra.
  'lowrank': (_WORKSHOP[0], {'safetensors'}),
  'sharing': _WORKSHOP,
  'trace': ({'core', 'formats', 'kernels', 'numerics'}, {'absl.logging'}),
  'recipes': ({'sparsity', 'quantization', 'lowrank', 'sharing', 'core', 'formats'}, set()),
  'optimizers': ({'core', 'formats', 'numerics'}, {'optax'}),
  'training': ({'core', 'formats', 'optimizers'}, {'optax', 'orbax', 'absl.logging'}),
  # Drawing libraries and file formats come with extras, so they are imported inside functions only.
  'reports': (set(), {'matplotlib', 'rich', 'pyarrow'}),
}
_LAZY = {'matplotlib', 'rich', 'pyarrow', 'qwix', 'safetensors'}
_EVERYWHERE = {'jax', 'jaxlib', 'numpy', 'ml_dtypes'}
_STDLIB = set(sys.stdlib_module_names)
_BANNED_NAMES = {
  'utils',
  'util',
  'helpers',
  'helper',
  'common',
  'misc',
  'base',
  'manager',
  'managers',
}
_BANNED_IMPORTS = {'pickle', 'cloudpickle', 'dill', 'marshal', 'shelve', 'joblib'}
_EXPERIMENTS = {'flax', 'optax', 'sklearn', 'matplotlib', 'rich', 'IPython'}
# Readers of pretrained models come with the models extra; no framework they were made with does.
_EXPERIMENTS |= {'onnx', 'safetensors', 'tokenizers'}
# Engines and trackers come with the launch extra, so they are imported inside functions only.
_LAUNCH = {'absl', 'experiments', 'launch', 'tensorboardX', 'executorlib', 'submitit', 'xmanager'}
_MOST_LINES = 500


def _sources(*folders):
  return sorted(p for folder in folders for p in (_ROOT / folder).rglob('*.py'))


def _name(path):
  return str(path.relative_to(_ROOT))


def _by_file(*folders):
  return pytest.mark.parametrize('path', _sources(*folders), ids=_name)


def _tree(path):
  return ast.parse(path.read_text(encoding='utf-8'), str(path))


def _imports(path):
  """Yields `(dotted module or name, is at top level, line)` for every import of a file."""
  tree = _tree(path)
  top = {id(node) for node in tree.body}
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield alias.name, id(node) in top, node.lineno
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{_name(path)}:{node.lineno}: imports are absolute'
      assert all(a.name != '*' for a in node.names), f'{_name(path)}:{node.lineno}: no import *'
      for alias in node.names:
        yield f'{node.module}.{alias.name}', id(node) in top, node.lineno


def _rooms():
  return sorted(p.name for p in _PACKAGE.iterdir() if p.is_dir() and p.name != '__pycache__')


def _room(path):
  parts = path.relative_to(_PACKAGE).parts
  return parts[0] if len(parts) > 1 else None


def _covers(allowed, module):
  return any(module == name or module.startswith(name + '.') for name in allowed)


def test_every_room_is_in_the_table_and_every_row_is_a_room():
  assert set(_rooms()) == set(_MAY_IMPORT)


@_by_file('jaxsparse')
def test_imports_follow_the_table(path):
  room = _room(path)
  if room is None:
    return  # jaxsparse/__init__.py re-exports from every room.
  rooms, parties = _MAY_IMPORT[room]
  for module, is_top, line in _imports(path):
    where = f'{_name(path)}:{line}'
    first = module.split('.')[0]
    if first == 'jaxsparse':
      target = module.split('.')[1]
      assert target in rooms | {room}, f'{where}: {room} may not import {target}'
    else:
      assert _covers(parties | _EVERYWHERE | _STDLIB, module), (
        f'{where}: {room} may not import {module}'
      )
      assert not (is_top and first in _LAZY), f'{where}: {first} is imported inside functions'


def _module(path):
  parts = path.relative_to(_ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def test_no_import_cycles():
  files = {_module(path): path for path in _sources('jaxsparse', 'experiments', 'launch')}
  arrows = {}
  for module, path in files.items():
    found = [m for m, _, _ in _imports(path)]
    arrows[module] = {m if m in files else m.rpartition('.')[0] for m in found} & set(files) - {
      module
    }
  # A module of a room imports its siblings through the room (`from jaxsparse.room import sibling`).
  done, path_here = set(), []

  def visit(module):
    assert module not in path_here, ' -> '.join([*path_here[path_here.index(module) :], module])
    if module in done:
      return
    path_here.append(module)
    for target in sorted(arrows[module]):
      visit(target)
    path_here.pop()
    done.add(module)

  for module in sorted(files):
    visit(module)


@_by_file('experiments', 'launch')
def test_front_uses_public_names_only(path):
  launch = path.relative_to(_ROOT).parts[0] == 'launch'
  for module, _, line in _imports(path):
    where = f'{_name(path)}:{line}: {module}'
    if module.split('.')[0] == 'jaxsparse':
      assert module.count('.') <= 1, f'{where} is not a public name'
    elif launch:
      assert _covers(_STDLIB | _EVERYWHERE | _LAUNCH, module), f'{where} in launch'
    else:
      # A benchmark measures launchers and peers; an experiment knows neither.
      benchmark = path.parent.name == 'benchmarks'
      measured = {'launch', 'orbax', 'qwix', 'scipy', 'torch'} if benchmark else set()
      front = {'experiments'} | measured
      assert _covers(_STDLIB | _EVERYWHERE | _EXPERIMENTS | front, module), where


@_by_file('jaxsparse', 'experiments', 'launch', 'tests')
def test_files_are_small_and_well_named(path):
  lines = len(path.read_text(encoding='utf-8').splitlines())
  assert lines <= _MOST_LINES, f'{lines} lines; split by noun'
  assert not {path.stem, path.parent.name} & _BANNED_NAMES, 'named for nothing'


@_by_file('jaxsparse', 'experiments', 'launch')
def test_nothing_is_evaluated_or_unpickled(path):
  for module, _, line in _imports(path):
    assert module.split('.')[0] not in _BANNED_IMPORTS, f'line {line}: {module}'
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
      assert node.func.id not in {'eval', 'exec', 'compile', '__import__'}, f'line {node.lineno}'
    allows = [
      k.value for k in getattr(node, 'keywords', []) if getattr(k, 'arg', '') == 'allow_pickle'
    ]
    assert all(getattr(v, 'value', True) is False for v in allows), (
      f'line {node.lineno}: allow_pickle'
    )


@_by_file('jaxsparse', 'experiments', 'tests')
def test_flags_live_in_launch(path):
  if path.is_relative_to(_ROOT / 'tests' / 'launch'):
    return
  assert not any(_covers({'absl.flags', 'absl.app'}, m) for m, _, _ in _imports(path))


@_by_file('jaxsparse')
def test_core_knows_pytrees_not_frameworks(path):
  frameworks = {'flax', 'haiku', 'equinox'}
  assert not any(m.split('.')[0] in frameworks for m, _, _ in _imports(path))


@_by_file('jaxsparse')
def test_the_library_does_not_print(path):
  if _room(path) == 'reports':
    return  # The terminal table is reports' business, through rich.
  for node in ast.walk(_tree(path)):
    if isinstance(node, ast.Call):
      assert getattr(node.func, 'id', '') != 'print', f'line {node.lineno}'


@_by_file('jaxsparse', 'experiments', 'launch')
def test_public_names_have_docstrings(path):
  if path.parent.name == 'notebooks':
    return  # A notebook explains itself in its cells.
  tree = _tree(path)
  if tree.body:
    assert ast.get_docstring(tree), 'module without docstring'
  definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
  bare = [
    n.name
    for n in tree.body
    if isinstance(n, definitions) and not n.name.startswith('_') and not ast.get_docstring(n)
  ]
  assert not bare, f'public without docstring: {bare}'


def test_every_public_name_has_a_docstring():
  import jaxsparse

  names = [n for n in dir(jaxsparse) if not n.startswith('_')]
  bare = [n for n in names if callable(getattr(jaxsparse, n)) and not getattr(jaxsparse, n).__doc__]
  assert not bare


def test_no_folder_is_empty():
  folders = [
    p
    for top in ('jaxsparse', 'experiments', 'launch', 'tests')
    for p in [_ROOT / top, *(_ROOT / top).rglob('*')]
    if p.is_dir() and p.name != '__pycache__'
  ]
  empty = [_name(f) for f in folders if not any(c.name != '__pycache__' for c in f.iterdir())]
  assert not empty


def test_no_function_outgrows_a_screen():
  long = [
    f'{_name(path)}: {node.name}, {node.end_lineno - node.lineno + 1} lines'
    for path in _sources('jaxsparse', 'experiments', 'launch')
    for node in ast.walk(_tree(path))
    if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno + 1 > 120
  ]
  assert not long
