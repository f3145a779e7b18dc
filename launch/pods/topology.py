"""TPU slices: what a chip has, which slices there are, how they are called where.

Speeds are the vendor's peak figures a chip (docs.cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and
tpu7x, read November 2026). `hbm_bytes` is what the compiler may fill of a device, as libtpu 0.0.52
says when a program is too large for it: less than the data sheet's capacity.
"""

import math
import re
from typing import NamedTuple

_GIB = 2**30
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = (
  *('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16'),
  '16x16x16',
)


class Chip(NamedTuple):
  """One generation of chips.

  Attributes:
    flops: peak bfloat16 operations a second of a chip.
    bandwidth: bytes a second between a chip and its memory.
    hbm_bytes: memory of a device that a program may fill.
    devices: JAX devices a chip.
    slices: common slices, in chips.
    most: chips of the largest slice.
    label: value of the GKE node label `gke-tpu-accelerator`.
    options: what libtpu wants to know besides, to lay it out as JAX sees it on the machine.
  """

  flops: float
  bandwidth: float
  hbm_bytes: int
  devices: int
  slices: tuple[str, ...]
  most: int
  label: str
  options: dict[str, str]


CHIPS = {
  'v4': Chip(
    flops=275e12,
    bandwidth=1200e9,
    hbm_bytes=int(30.75 * _GIB),
    devices=1,
    slices=_CUBES,
    most=4096,
    label='tpu-v4-podslice',
    options={'chip_config_name': 'megacore'},
  ),
  'v5e': Chip(
    flops=197e12,
    bandwidth=819e9,
    hbm_bytes=int(15.75 * _GIB),
    devices=1,
    slices=_FLAT,
    most=256,
    label='tpu-v5-lite-podslice',
    options={},
  ),
  'v5p': Chip(
    flops=459e12,
    bandwidth=2765e9,
    hbm_bytes=int(95.73 * _GIB),
    devices=1,
    slices=(*_CUBES, '16x16x24'),
    most=6144,
    label='tpu-v5p-slice',
    options={},
  ),
  'v6e': Chip(
    flops=918e12,
    bandwidth=1638e9,
    hbm_bytes=int(31.24 * _GIB),
    devices=1,
    slices=_FLAT,
    most=256,
    label='tpu-v6e-slice',
    options={},
  ),
  'tpu7x': Chip(
    flops=2307e12,
    bandwidth=7380e9,
    hbm_bytes=int(94.74 * _GIB),
    devices=2,
    slices=_CUBES,
    most=9216,
    label='tpu7x',
    options={},
  ),
}


class Topology(NamedTuple):
  """A slice of one generation.

  Attributes:
    generation: a key of `CHIPS`.
    sides: chips along each side.
  """

  generation: str
  sides: tuple[int, ...]

  @property
  def chip(self) -> Chip:
    """What each of its chips is."""
    return CHIPS[self.generation]

  @property
  def shape(self) -> str:
    """Its sides as they are written, such as `'4x4x4'`."""
    return 'x'.join(map(str, self.sides))

  @property
  def name(self) -> str:
    """As libtpu calls it, such as `'v5p:4x4x4'`."""
    return f'{self.generation}:{self.shape}'

  @property
  def chips(self) -> int:
    """How many chips it has."""
    return math.prod(self.sides)

  @property
  def devices(self) -> int:
    """How many devices JAX sees on it."""
    return self.chips * self.chip.devices

  def hosts(self, chips_per_host: int | None = None) -> int:
    """How many machines it takes.

    Args:
      chips_per_host: chips of each machine; None is four, or one for a single chip.

    Raises:
      ValueError: the machines there are do not have that many, or it does not divide the slice.
    """
    each = chips_per_host or min(4, self.chips)
    possible = {1} if self.chips == 1 else {4, 8} if self.shape == '2x4' else {4}
    if each not in possible:
      raise ValueError(
        f'A machine of a {self.name} slice has {" or ".join(map(str, sorted(possible)))} chips, '
        f'got {each}.'
      )
    return self.chips // each


def parse(text: str) -> Topology:
  """Returns the slice of a name such as `'v5e:16x16'`.

  Args:
    text: generation, colon, sides in chips.

  Raises:
    ValueError: there is no such generation or slice; lists those there are.

  Example:
    >>> parse('v5p:4x4x4').chips, parse('tpu7x:4x4x4').devices
    (64, 128)
  """
  generation, _, shape = text.partition(':')
  if generation not in CHIPS:
    raise ValueError(
      f'--topology={_short(text)}: expected generation:sides, such as v5e:16x16; generations are '
      f'{", ".join(CHIPS)}.'
    )
  chip = CHIPS[generation]
  if shape in chip.slices:
    return Topology(generation, tuple(map(int, shape.split('x'))))
  solid = chip.slices is not _FLAT
  # Larger slices are made of cubes of 4x4x4, whatever their sides.
  if solid and re.fullmatch(r'[1-9]\d{0,2}(x[1-9]\d{0,2}){2}', shape):
    sides = tuple(map(int, shape.split('x')))
    whole = all(side % 4 == 0 for side in sides) and list(sides) == sorted(sides)
    if whole and math.prod(sides) <= chip.most:
      return Topology(generation, sides)
  more = f', and ascending multiples of 4 up to {chip.most} chips' if solid else ''
  raise ValueError(
    f'--topology={_short(text)}: slices of {generation} are {", ".join(chip.slices)}{more}.'
  )


def environment() -> dict[str, str]:
  """Variables under which libtpu compiles for slices that are not there.

  It must not ask a metadata server for the machine's own TPU, nor take the lock that lets one
  process a machine load it. JAX itself runs on the CPU.
  """
  return {
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'JAX_PLATFORMS': 'cpu',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
  }


def _short(text):
  return repr(text if len(text) <= 80 else text[:77] + '...')
