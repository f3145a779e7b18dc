"""Quantized weights in the files of compressed-tensors, which vLLM and llm-compressor read.

`model.safetensors` holds, for a weight `[in, out]` of a module, the transpose as PyTorch has it:

  pack-quantized    `weight_packed` int32 `[out, ceil(in / (32 // bits))]`, the first code in the
                    lowest bits, each plus `2^(bits - 1)`; `weight_shape` int64 `[2]`;
  int-quantized     `weight` int8 `[out, in]`;
  float-quantized   `weight` float8_e4m3 `[out, in]`;

with `weight_scale` `[out, groups]`, `[out, 1]` or `[1]`, and zero points less `2^(bits - 1)` where
there are any: `weight_zero_point`, packed along the outputs under pack-quantized, but int8 `[1]` of
a tensor. `config.json` names each module's scheme under `quantization_config`, so that it is read
without this library. Layout and names are those of github.com/neuralmagic/compressed-tensors.
"""

import json
import os
import pathlib
import re
from typing import Any, Callable, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.core import axes as roles
from jaxsparse.core import names
from jaxsparse.formats import format as formats
from jaxsparse.formats import quantized
from jaxsparse.numerics import grids
from jaxsparse.numerics import scales

_WEIGHTS, _CONFIG = 'model.safetensors', 'config.json'
_PACKED, _INTEGERS, _FLOATS = 'pack-quantized', 'int-quantized', 'float-quantized'


class _Scheme(NamedTuple):
  """What `quantization_config` says of a module."""

  form: str
  bits: int
  kind: str        # 'int' or 'float'
  symmetric: bool
  strategy: str    # 'tensor', 'channel' or 'group'
  group: int | None

  @property
  def packs_zero(self) -> bool:
    """Whether zero points are packed like the codes; that of a tensor is a number."""
    return self.form == _PACKED and self.strategy != 'tensor'

  def weights(self) -> dict:
    """The arguments, as compressed-tensors writes them."""
    return {'num_bits': self.bits, 'type': self.kind, 'symmetric': self.symmetric,
            'strategy': self.strategy, 'group_size': self.group, 'dynamic': False,
            'actorder': None, 'block_structure': None, 'observer': 'minmax', 'observer_kwargs': {}}


def export_compressed_tensors(directory: Any, params: Any, *,
                              modules: Callable[[str], str] = names.module_path) -> pathlib.Path:
  """Writes packed params as `model.safetensors` and `config.json`; needs safetensors.

  Args:
    directory: made where it is not there.
    params: packed: matrices on integer grids, with a scale a tensor, a channel or a group, and
      float8_e4m3 by tensor or channel. Arrays that are no `QArray` are written in their own
      shape, under their path by dots; kernels of two axes as `<module>.weight`, transposed.
    modules: the other model's name of the module that holds a weight, from the weight's name.

  Returns:
    The directory.

  Raises:
    ValueError: a weight that the layout has no place for; two leaves of one name. ImportError:
      safetensors is not installed.

  Example:
    >>> import tempfile, jaxsparse as jsp
    >>> params, transform = {'query': {'kernel': jnp.ones((16, 3))}}, jsp.quantize('int4', group=8)
    >>> packed = transform.pack(*transform.init(params))
    >>> with tempfile.TemporaryDirectory() as directory:
    ...   written = export_compressed_tensors(directory, packed)
    ...   back = import_compressed_tensors(written, params)
    >>> back['query']['kernel'].scale.shape
    (2, 3)
  """
  numpy = _safetensors()
  arrays, by_scheme = {}, {}
  for leaf in names.named_leaves(params)[0]:
    for key, value in _entries(leaf.name, leaf.value, modules, by_scheme).items():
      if key in arrays:
        raise ValueError(f'{leaf.name}: {key} is written already; give other names by modules=.')
      arrays[key] = np.ascontiguousarray(value)
  groups = {
      f'group_{n}': {'targets': sorted(targets), 'format': scheme.form, 'weights': scheme.weights(),
                     'input_activations': None, 'output_activations': None}
      for n, (scheme, targets) in enumerate(sorted(by_scheme.items(), key=str))}
  forms = {scheme.form for scheme in by_scheme}
  config = {'quantization_config': {
      'quant_method': 'compressed-tensors', 'quantization_status': 'compressed',
      'format': forms.pop() if len(forms) == 1 else 'mixed-precision', 'config_groups': groups,
      'ignore': [], 'kv_cache_scheme': None, 'global_compression_ratio': None}}
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  numpy.save_file(arrays, directory / f'{_WEIGHTS}.writing', {'format': 'pt'})
  os.replace(directory / f'{_WEIGHTS}.writing', directory / _WEIGHTS)
  (directory / f'{_CONFIG}.writing').write_text(json.dumps(config, indent=2), encoding='utf-8')
  os.replace(directory / f'{_CONFIG}.writing', directory / _CONFIG)
  return directory


def import_compressed_tensors(directory: Any, params: Any, *,
                              modules: Callable[[str], str] = names.module_path) -> Any:
  """Params with the weights of compressed-tensors' files in their place; needs safetensors.

  Args:
    directory: with `model.safetensors` and `config.json`.
    params: the model's tree, for names, shapes, dtypes: arrays or `jax.ShapeDtypeStruct`.
    modules: as for `export_compressed_tensors`.

  Returns:
    The same tree: `QArray` where the file has codes, arrays elsewhere.

  Raises:
    ValueError: files that are missing or damaged, a scheme or an activation order that is not
      supported, a weight that is not there or of another shape; the message names it.
  """
  directory = pathlib.Path(directory)
  _safetensors()
  try:
    config = json.loads((directory / _CONFIG).read_text(encoding='utf-8'))['quantization_config']
    arrays = _arrays((directory / _WEIGHTS).read_bytes())
    schemes = [_read_group(config, group) for group in config['config_groups'].values()]
  except Exception as error:   # safetensors' own class, which is not known before it is imported
    raise ValueError(f'{directory}: {_WEIGHTS} or {_CONFIG} is missing, damaged or of another '
                     f'method: {error!r}.') from error
  leaves, rebuild = names.named_leaves(params)
  return rebuild([_leaf(leaf, modules, arrays, schemes) for leaf in leaves])


def _entries(name, value, modules, by_scheme) -> dict:
  module = modules(name)
  if not formats.is_format(value):
    if getattr(value, 'ndim', 0) == 2 and name.split('/')[-1] == 'kernel':
      return {f'{module}.weight': np.asarray(value).T}
    return {name.replace('/', '.'): np.asarray(value)}
  scheme = _scheme_of(name, value)
  by_scheme.setdefault(scheme, []).append(module)
  codes = np.asarray(value.code_matrix()).T
  found = {'weight_scale': np.asarray(value.scale_values, np.float32).T}
  if scheme.strategy == 'tensor':
    found['weight_scale'] = found['weight_scale'].reshape(1)
  offset = 0 if scheme.symmetric else 2 ** (scheme.bits - 1)
  if scheme.form == _FLOATS:
    found['weight'] = codes.view(jnp.dtype(value.grid.floating))
  elif scheme.form == _INTEGERS:
    found['weight'] = (codes.astype(np.int32) - offset).astype(np.int8)
  else:
    found['weight_packed'] = _packed(codes.astype(np.int64) - offset, scheme.bits)
    found['weight_shape'] = np.asarray(codes.shape, np.int64)
  if not scheme.symmetric:
    zero = np.asarray(value.zero).T.astype(np.int64) - offset
    found['weight_zero_point'] = (_packed(zero.T, scheme.bits).T if scheme.packs_zero
                                  else zero.reshape(found['weight_scale'].shape).astype(np.int8))
  return {f'{module}.{key}': x for key, x in found.items()}


def _scheme_of(name, value) -> _Scheme:
  if not isinstance(value, quantized.QArray) or value.layout.batch:
    raise ValueError(f'{name}: compressed-tensors holds single quantized matrices; got '
                     f'{type(value).__name__} of {value.shape}.')
  grid, group = value.grid, value.group
  rows, _ = value.layout.matrix_shape
  plain = value.factor is None and value.input_scale is None and not isinstance(group, tuple)
  plain = plain and (value.zero is None or value.zero.dtype == jnp.uint8)
  floats = grid.name == 'float8_e4m3' and group is None
  if not plain or not (floats or grid.is_integer):
    raise ValueError(f'{name}: compressed-tensors has no place for {grid.name} with these scales; '
                     'integers by tensor, channel or group, and float8_e4m3 by tensor or channel, '
                     'have one.')
  if group is not None and rows % group:
    raise ValueError(f'{name}: groups of {group} do not divide {rows} rows, as compressed-tensors '
                     'asks.')
  strategy = 'group' if group is not None else (
      'tensor' if value.scale_values.shape[-1] == 1 != value.layout.matrix_shape[-1] else 'channel')
  form = _FLOATS if floats else _INTEGERS if grid.bits == 8 and group is None else _PACKED
  return _Scheme(form, grid.bits, 'float' if floats else 'int', value.zero is None, strategy, group)


def _packed(codes, bits) -> np.ndarray:
  """Signed codes `[n, m]` as int32 `[n, ceil(m / (32 // bits))]`."""
  many = 32 // bits
  codes = (codes + 2 ** (bits - 1)).astype(np.uint32)
  codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % many))).reshape(len(codes), -1, many)
  shifts = np.arange(many, dtype=np.uint32) * np.uint32(bits)
  return np.bitwise_or.reduce(codes << shifts, axis=-1).view(np.int32)


def _unpacked(words, bits, size) -> np.ndarray:
  """The inverse: unsigned codes, int64 `[n, size]`."""
  shifts = np.arange(32 // bits, dtype=np.uint32) * np.uint32(bits)
  codes = (words.view(np.uint32)[..., None] >> shifts) & np.uint32(2**bits - 1)
  return codes.reshape(len(words), -1)[:, :size].astype(np.int64)


def _read_group(config, group) -> tuple[tuple, _Scheme]:
  w = group['weights']
  scheme = _Scheme(group.get('format') or config['format'], int(w['num_bits']), w['type'],
                   bool(w['symmetric']), w['strategy'], w.get('group_size'))
  if scheme.form not in (_PACKED, _INTEGERS, _FLOATS) or scheme.strategy not in (
      'tensor', 'channel', 'group'):
    raise ValueError(f'{scheme.form} by {scheme.strategy} is not supported')
  return tuple(group['targets']), scheme


def _leaf(leaf, modules, arrays, schemes):
  name, module = leaf.name, modules(leaf.name)
  own, dotted = f'{module}.weight', name.replace('/', '.')
  if f'{module}.weight_scale' in arrays and leaf.is_weight:
    return _stored(name, leaf.value, module, arrays, _scheme_for(name, module, schemes))
  kernel = own in arrays and name.split('/')[-1] == 'kernel'
  if not kernel and dotted not in arrays:
    raise ValueError(f'{name}: the file has neither {own} nor {dotted}; give names by modules=.')
  found = arrays[own].T if kernel else arrays[dotted]
  if found.shape != leaf.value.shape:
    raise ValueError(f'{name}: the file has shape {found.shape}, expected {leaf.value.shape}.')
  return jnp.asarray(found, leaf.value.dtype)


def _scheme_for(name, module, schemes) -> _Scheme:
  """Of targets by name, by regular expression, or else by the class of modules."""
  for targets, scheme in schemes:
    if module in targets or any(t.startswith('re:') and re.match(t[3:], module) for t in targets):
      return scheme
  for targets, scheme in schemes:
    if 'Linear' in targets:
      return scheme
  raise ValueError(f'{name}: no group of {_CONFIG} targets {module}.')


def _stored(name, w, module, arrays, scheme) -> quantized.QArray:
  layout = roles.Layout(w.shape, w.dtype, roles.known_axes(name, w.shape))
  *_, rows, columns = layout.matrix_shape
  get = lambda key: arrays.get(f'{module}.{key}')
  if get('weight_g_idx') is not None:
    raise ValueError(f'{name}: weight_g_idx, groups in the order of activations, is not supported.')
  source = get('weight_packed' if scheme.form == _PACKED else 'weight')
  shape = None if source is None else (
      tuple(int(n) for n in get('weight_shape')) if scheme.form == _PACKED else source.shape)
  if shape != (columns, rows):
    raise ValueError(f'{name}: the file has a weight of shape {shape} for {module}, expected '
                     f'{(columns, rows)}.')
  zero, offset = get('weight_zero_point'), 2 ** (scheme.bits - 1)
  if scheme.form == _FLOATS:
    codes, grid = source.view(np.int8), grids.grid('float8_e4m3')
  else:
    codes = (_unpacked(source, scheme.bits, rows) if scheme.form == _PACKED
             else source.astype(np.int64) + offset)
    if scheme.symmetric:
      codes, grid = codes - offset, grids.integer(scheme.bits, narrow=False)
    else:
      grid = grids.grid(f'uint{scheme.bits}')
  scale = np.asarray(get('weight_scale'), np.float32).reshape(-1, 1) if (
      scheme.strategy == 'tensor') else np.asarray(get('weight_scale'), np.float32)
  if scheme.symmetric:
    zero = None
  elif scheme.packs_zero:
    zero = _unpacked(np.ascontiguousarray(zero.T), scheme.bits, columns).astype(np.uint8)
  else:
    zero = (zero.astype(np.int64) + offset).astype(np.uint8).reshape(scale.shape).T
  found = scales.Scale(jnp.asarray(scale.T), None if zero is None else jnp.asarray(zero))
  group = scheme.group if scheme.strategy == 'group' else None
  codes = jnp.asarray(codes.T.astype(np.int32))
  return quantized.QArray.of_codes(codes, found, layout, grid, group)


def _arrays(raw: bytes) -> dict[str, np.ndarray]:
  """The arrays of a file; safetensors' own reader for numpy has no float8."""
  import safetensors
  kinds = {'F8_E4M3': 'float8_e4m3fn', 'F8_E5M2': 'float8_e5m2', 'BF16': 'bfloat16',
           'F16': 'float16', 'F32': 'float32', 'F64': 'float64', 'I8': 'int8', 'U8': 'uint8',
           'I16': 'int16', 'I32': 'int32', 'I64': 'int64', 'BOOL': 'bool'}
  return {name: np.frombuffer(found['data'], jnp.dtype(kinds[found['dtype']])).reshape(
      found['shape']) for name, found in safetensors.deserialize(raw)}


def _safetensors():
  try:
    from safetensors import numpy
  except ImportError as error:
    raise ImportError('these files need safetensors: pip install safetensors') from error
  return numpy
