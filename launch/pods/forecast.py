"""The figures of a plan: memory against HBM, operations, bytes, time; as JSON and as a table."""

from typing import Any

from launch.pods import aot
from launch.pods import topology

_UNITS = ((2**40, 'TiB'), (2**30, 'GiB'), (2**20, 'MiB'), (2**10, 'KiB'), (1, 'B'))
_ROOM = ('arguments', 'outputs', 'aliased', 'temporaries', 'code')


def figures(where: topology.Topology, found: aot.Compiled, counted: int) -> dict[str, Any]:
  """Returns what is known of one compiled program on one device; JSON values.

  The time is an estimate: the larger of the operations at the chip's peak bfloat16 speed and the
  bytes at its HBM bandwidth, without communication. The compiler counts a loop's body once in
  operations and bytes alike, so its bytes are scaled as our count of operations is to its own.

  Args:
    where: the slice.
    found: what the compiler says.
    counted: `aot.count_flops`, of all devices.

  Example:
    >>> room = aot.Memory(arguments=2**30, outputs=2**30, aliased=2**30, temporaries=0, code=0)
    >>> found = aot.Compiled(room, None, 1e12, 1e9, {}, '')
    >>> one = figures(topology.parse('v5e:1x1'), found, counted=2 * 10**12)
    >>> one['fits'], one['hbm_bytes_accessed'], round(one['estimate_seconds'], 4)
    (True, 2000000000.0, 0.0102)
  """
  chip = where.chip
  flops = counted / where.devices
  known = found.memory is not None
  total = found.memory.total if known else found.needed
  out = {
    'fits': known and total <= chip.hbm_bytes,
    'memory_bytes': found.memory._asdict() if known else None,
    'memory_total_bytes': total,
    'hbm_bytes': chip.hbm_bytes,
    'flops_per_device': flops,
    'flops_by_xla': found.flops,
    'bytes_accessed_by_xla': found.bytes_accessed,
    'collectives': found.collectives if found.collectives is not None else 'unavailable',
    'compute_seconds': flops * chip.devices / chip.flops,
  }
  if found.flops and found.bytes_accessed:
    scale = max(1.0, flops / found.flops)
    out['hbm_bytes_accessed'] = found.bytes_accessed * scale
    out['memory_seconds'] = out['hbm_bytes_accessed'] * chip.devices / chip.bandwidth
    out['estimate_seconds'] = max(out['compute_seconds'], out['memory_seconds'])
  if found.reason:
    out['reason'] = found.reason
  return out


def table(plan: dict[str, Any]) -> str:
  """Returns a plan as text.

  Args:
    plan: what `launch.pod plan --json` writes.
  """
  mesh = ','.join(f'{axis}:{size}' for axis, size in plan['mesh'].items())
  lines = [
    f'{plan["experiment"]} {plan["size"]}'.strip() + f', {plan["transform"]}',
    f'{plan["topology"]}: {plan["devices"]} devices, mesh {mesh}; '
    f'{plan["parameters"]:,} weights, {plan["examples"]:,} examples a step',
  ]
  for name, one in plan['programs'].items():
    lines += ['', f'program: {name}', *_program(one)]
  lines += ['', 'state                  whole     a device     expected  ratio']
  for role, row in plan['state'].items():
    whole, here, expected = (_bytes(row[k]) for k in ('total', 'a_device', 'expected'))
    lines.append(f'  {role:<12} {whole:>13} {here:>12} {expected:>12}  {row["ratio"]:.3f}')
  lines += [f'REPLICATED BY ACCIDENT: {text}' for text in plan['accidents']]
  lines += ['', plan['verdict'], f'{plan["cpu_seconds"]:.0f} s of CPU, {plan["versions"]}']
  return '\n'.join(lines)


def _program(one):
  """The lines of one program."""
  hbm, total = one['hbm_bytes'], one['memory_total_bytes']
  rows = []
  if one['memory_bytes'] is not None:
    rows += [(f'  {part}', _bytes(one['memory_bytes'][part])) for part in _ROOM]
  if total is None:
    rows.append(('  total', f'more than the {_bytes(hbm)} there are: DOES NOT FIT'))
  elif one['fits']:
    margin = f'{_bytes(hbm - total)} free, {1 - total / hbm:.0%}'
    rows.append(('  total', f'{_bytes(total)} of {_bytes(hbm)}: fits, {margin}'))
  else:
    rows.append(('  total', f'{_bytes(total)} of {_bytes(hbm)}: DOES NOT FIT'))
  rows.append(('FLOPs a device', f'{one["flops_per_device"]:.4g} (jsp.flops, an equal share)'))
  if one['flops_by_xla'] is not None:
    rows.append(('  XLA says', f'{one["flops_by_xla"]:.4g} (the bodies of loops once)'))
  if one['bytes_accessed_by_xla'] is not None:
    said = f'{_bytes(one["bytes_accessed_by_xla"])} (likewise)'
    rows.append(('bytes accessed', said))
  found = one['collectives']
  if isinstance(found, dict):
    found = ', '.join(f'{count} {kind}' for kind, count in found.items()) or 'none'
  rows.append(('collectives', f'{found} (sites)' if found[0].isdigit() else found))
  if 'estimate_seconds' in one:
    parts = f'compute {_time(one["compute_seconds"])}, HBM {_time(one["memory_seconds"])}'
    rows.append(('time a step', f'about {_time(one["estimate_seconds"])} ({parts}): an estimate'))
    rows.append(('', 'not measured: peak bfloat16 speed and bandwidth, no communication'))
  if 'reason' in one:
    rows.append(('note', one['reason']))
  return ['memory a device', *(f'{name:<18} {value}' for name, value in rows)]


def _bytes(count) -> str:
  """A number of bytes for readers."""
  unit, name = next(((u, n) for u, n in _UNITS if abs(count) >= u), _UNITS[-1])
  return f'{count / unit:.4g} {name}'


def _time(seconds) -> str:
  return f'{seconds * 1e3:.3g} ms' if seconds < 1 else f'{seconds:.3g} s'
