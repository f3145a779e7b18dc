"""Question: what is as fast here as it should be? Every benchmark of speed, one after another.

Command: python -m experiments.benchmarks [PART ...] [--to=FOLDER]
Parts: those of `PARTS`, all unless given; about 40 minutes on a machine that does nothing else.
Peers and limits are printed in each table. Each part is a process of its own, so that what one
leaves behind does not slow the next; one that fails is named at the end, and the rest still run.
With --to, tables are kept as PART.txt and time against density is drawn beside y = x.
"""

import pathlib
import subprocess
import sys

PARTS = {
  'products': ['block_sparse', 'cpu', 'wall'],
  'training': ['block_sparse', 'training'],
  'native': ['native_products'],
  'grouped': ['grouped_products'],
  'integers': ['quantized_inference'],
  'channels': ['shrunk_speed'],
  'decoding': ['decoding'],
  'tpu': ['tpu_bundles'],
}


def run(part: str, folder: pathlib.Path | None) -> bool:
  """Runs one part, shows what it says while it says it, and keeps it in `folder`."""
  module, *words = PARTS[part]
  if folder is not None and part == 'products':
    words.append(f'--draw={folder / "density.png"}')
  print(f'--- {part}: python -m experiments.benchmarks.{" ".join([module, *words])}', flush=True)
  command = [sys.executable, '-m', f'experiments.benchmarks.{module}', *words]
  with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
    said = []
    for line in process.stdout:
      print(line, end='', flush=True)
      said.append(line)
  if folder is not None:
    folder.joinpath(f'{part}.txt').write_text(''.join(said))
  return process.returncode == 0


def main(words: list[str]) -> int:
  """Runs the parts named, or all; 1 where one failed, 2 where one is not known."""
  folders = [pathlib.Path(w.removeprefix('--to=')) for w in words if w.startswith('--to=')]
  parts = [w for w in words if not w.startswith('--to=')] or list(PARTS)
  unknown = [part for part in parts if part not in PARTS]
  if unknown:
    print(f'unknown: {", ".join(unknown)}; parts are {", ".join(PARTS)}', file=sys.stderr)
    return 2
  folder = folders[-1] if folders else None
  if folder is not None:
    folder.mkdir(parents=True, exist_ok=True)
  failed = [part for part in parts if not run(part, folder)]
  if failed:
    print(f'failed: {", ".join(failed)}', file=sys.stderr)
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
