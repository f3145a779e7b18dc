"""Adapters in the files of Hugging Face's PEFT: `adapter_model.safetensors`, `adapter_config.json`.

Names are `base_model.model.<module>.lora_A.weight` `[rank, in]`, `lora_B.weight` `[out, rank]` and
`lora_magnitude_vector` `[out]`: a^T, b^T and the magnitudes of `lora` and `dora`, whose `in` and
`out` are the products of a kernel's reduction and output axes (heads times their width). The
adapter belongs to the base that `unmerge` gives, which is the original weight for a `gaussian()`
start and what `pissa()` or `loftq()` left of it otherwise.
"""

import json
import os
import pathlib
from typing import Any, Callable, Iterator

import jax.numpy as jnp
import numpy as np

from jaxsparse.core import names
from jaxsparse.core import spelling as spell
from jaxsparse.core import transform as transforms
from jaxsparse.lowrank import starts
from jaxsparse.lowrank.dora import Dora  # the room's `dora` and `lora` are the factories
from jaxsparse.lowrank.lora import Lora

_WEIGHTS, _CONFIG = 'adapter_model.safetensors', 'adapter_config.json'
_PREFIX = 'base_model.model.'


def export_peft(directory: Any, transform: transforms.Transform, params: Any, *,
                modules: Callable[[str], str] = names.module_path) -> pathlib.Path:
  """Writes the adapters of `lora` or `dora` as PEFT's two files; needs safetensors.

  Args:
    directory: made where it is not there.
    transform: under which they were trained; one `lora` or `dora`, also in `at`, `rules`, a chain.
    params: its latents. Of a stack `[layer, in, out]`, layer i is written as `<module>.<i>`.
    modules: the other model's name of the module that holds a weight, from the weight's name.

  Returns:
    The directory.

  Raises:
    ValueError: the transform has no adapter, or several of different settings; a factor is not
      finite; two weights have one module. ImportError: safetensors is not installed.

  Example:
    >>> import tempfile, jaxsparse as jsp
    >>> transform = jsp.lora(2, alpha=4.0)
    >>> params, _ = transform.init({'query': {'kernel': jnp.ones((8, 2, 3))}})
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   folder = export_peft(directory, transform, params)
    ...   json.loads((folder / 'adapter_config.json').read_text())['target_modules']
    ['query']
  """
  settings = _settings(transform)
  arrays, ranks = {}, {}
  for leaf, factors in _adapters(params):
    for module, cell in _cells(modules(leaf.name), factors):
      if module in ranks:
        raise ValueError(f'{leaf.name}: another weight is called {module!r} too; give `modules` '
                         'that tell them apart.')
      ranks[module] = cell['lora_A.weight'].shape[0]
      for key, x in cell.items():
        if not np.isfinite(x).all():
          raise ValueError(f'{leaf.name}: the values of {key} are NaN or infinite; expected a '
                           'finite adapter.')
        arrays[f'{_PREFIX}{module}.{key}'] = np.ascontiguousarray(x)
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  config = {
      'peft_type': 'LORA', 'task_type': None, 'base_model_name_or_path': None, 'bias': 'none',
      'fan_in_fan_out': False, 'inference_mode': True, 'init_lora_weights': True,
      'lora_dropout': 0.0, 'target_modules': sorted(ranks), 'alpha_pattern': {},
      # A rank above a weight's full rank is cut.
      'rank_pattern': {m: r for m, r in sorted(ranks.items()) if r != settings['r']}, **settings}
  _safetensors().save_file(arrays, directory / f'{_WEIGHTS}.writing', {'format': 'pt'})
  os.replace(directory / f'{_WEIGHTS}.writing', directory / _WEIGHTS)
  text = json.dumps(config, indent=2, sort_keys=True)
  (directory / f'{_CONFIG}.writing').write_text(text, encoding='utf-8')
  os.replace(directory / f'{_CONFIG}.writing', directory / _CONFIG)
  return directory


def import_peft(directory: Any, transform: transforms.Transform, params: Any, *,
                modules: Callable[[str], str] = names.module_path) -> Any:
  """Latents with the adapters of PEFT's two files in place of their own; needs safetensors.

  Args:
    directory: that holds them.
    transform: with the rank, alpha, scaling and kind that the files tell.
    params: its latents on the base at hand, such as those fresh from `transform.init`.
    modules: as in `export_peft`.

  Returns:
    A tree like `params`; factors have the dtypes of those they replace.

  Raises:
    ValueError: the files are damaged; they tell of another transform (the message spells the one
      expected); a module is missing in either, or a shape differs: it names the weight. OSError:
      they are not there. ImportError: safetensors is not installed.
  """
  directory = pathlib.Path(directory)
  try:
    config = json.loads((directory / _CONFIG).read_text(encoding='utf-8'))
    found = {key: config[key] for key in ('r', 'lora_alpha')}
  except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
    raise ValueError(f'{directory / _CONFIG} is no configuration of a LoRA adapter: '
                     f'{error!r}.') from error
  found |= {key: bool(config.get(key, False)) for key in ('use_rslora', 'use_dora')}
  settings = _settings(transform)
  if found != settings:
    raise ValueError(f'{directory} was made by {_spelled(found)}; got {_spelled(settings)}.')
  if config.get('alpha_pattern'):
    raise ValueError(f'{directory}: alpha_pattern is not supported; expected one alpha for all.')
  numpy = _safetensors()
  raw = (directory / _WEIGHTS).read_bytes()
  try:
    arrays = numpy.load(raw)
  except Exception as error:   # safetensors' own class, which is not known before it is imported
    raise ValueError(f'{directory / _WEIGHTS} is damaged: {error}.') from error
  # Older files say `lora_magnitude_vector.weight`.
  arrays = {k.replace('vector.weight', 'vector').removeprefix(_PREFIX): x
            for k, x in arrays.items()}
  made = {leaf.key: _read(leaf, factors, modules(leaf.name), arrays, directory)
          for leaf, factors in _adapters(params)}
  if arrays:
    raise ValueError(f'{directory} adapts {", ".join(sorted(arrays)[:5])}, which no weight here '
                     'does; select the same modules, or pass `modules` that name them.')
  leaves, rebuild = names.named_leaves(params, stop=set(made))
  return rebuild([made.get(leaf.key, leaf.value) for leaf in leaves])


def _read(leaf, factors, module, arrays, directory):
  """Latents like `factors` from `arrays`, whose entries are taken out."""
  parts = []
  for name, cell in _cells(module, factors):
    for key, mine in cell.items():
      x = arrays.pop(f'{name}.{key}', None)
      if x is None:
        raise ValueError(f'{leaf.name}: {directory} has no {name}.{key}; pass `modules` that name '
                         'its modules.')
      if x.shape != mine.shape:
        raise ValueError(f'{leaf.name}: {name}.{key} has shape {list(x.shape)}, expected '
                         f'{list(mine.shape)}.')
      parts.append(x)
  fields = len(factors)
  turned = lambda x: x.T if x.ndim == 2 else x[None]
  stacked = [np.stack([turned(x) for x in parts[i::fields]]) for i in range(fields)]
  return type(factors)(*[jnp.asarray(x.reshape(old.shape), old.dtype)
                         for x, old in zip(stacked, factors)])


def _cells(module: str, factors) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
  """Of each matrix of a stack, its module and arrays by PEFT's names."""
  keys = ('lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector')
  wide = [np.asarray(x, np.float16 if x.dtype == np.float16 else np.float32) for x in factors]
  batch = wide[0].shape[:-2]
  for index in np.ndindex(*batch):
    name = '.'.join([module, *map(str, index)])
    yield name, {key: x[index].T if key != keys[2] else x[index][0] for key, x in zip(keys, wide)}


def _adapters(params) -> list[tuple[names.Leaf, Any]]:
  """The latents of `lora` and `dora` in a tree, as leaves with their weight's name."""
  fields = [leaf.key for leaf in names.named_leaves(params)[0] if ':' in leaf.key]
  nodes = names.named_leaves(params, stop={key.rpartition(':')[0] for key in fields})[0]
  return [(node, node.value) for node in nodes if isinstance(node.value, (Lora, Dora))]


def _settings(transform) -> dict[str, Any]:
  """What PEFT's configuration says of a transform."""
  found = []
  def visit(t):
    call = t.spec.spelling
    if isinstance(call, spell.Call) and call.name in ('lora', 'dora'):
      given = dict(call.kwargs)
      scaling = given.get('scaling', starts.over_rank)
      if scaling not in (starts.over_rank, starts.rslora):
        raise ValueError(f'PEFT knows no scaling like {scaling!r}; expected over_rank or rslora.')
      found.append({'r': call.args[0], 'lora_alpha': given.get('alpha', 16.0),
                    'use_rslora': scaling is starts.rslora, 'use_dora': call.name == 'dora'})
    for part in t.spec.parts:
      visit(part)
  visit(transform)
  if not found or any(other != found[0] for other in found):
    raise ValueError(f'Expected a transform with one lora or dora, found {len(found)} of different '
                     'settings: export them one by one.' if found else
                     'Expected a transform with a lora or dora, found '
                     f'{transforms.spell_or(transform, "one made by hand")}.')
  return found[0]


def _spelled(settings) -> str:
  scaling = ', scaling=rslora' if settings['use_rslora'] else ''
  word = 'dora' if settings['use_dora'] else 'lora'
  return f'{word}({settings["r"]}, alpha={float(settings["lora_alpha"])}{scaling})'


def _safetensors():
  try:
    from safetensors import numpy
  except ImportError as error:
    raise ImportError('PEFT\'s files need safetensors: pip install safetensors') from error
  return numpy
