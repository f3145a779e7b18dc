"""What arrives from outside is data: nothing runs, nothing escapes, nothing is written elsewhere.

Every input of `_HOSTILE` goes through transforms, fields, grids, names, results and reports, in a
folder whose contents are known before and after; `_CANARY` is what they try to leave behind.
"""

import csv
import io
import json
import os
import pathlib
import re
import subprocess
import sys
from html import parser

import pytest

from jaxsparse import reports
from launch import documents
from launch.runs import overlay
from launch.sweeps import conductor
from launch.sweeps import gather
from launch.sweeps import keeper
from launch.sweeps import places as places_lib
from launch.sweeps import points
from launch.sweeps.engines import xmanager

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_CANARY = 'canary_has_died'
_HOSTILE = [
  # shells
  f'$(touch {_CANARY})',
  f'`touch {_CANARY}`',
  f'; touch {_CANARY};',
  f'| touch {_CANARY}',
  f'&& touch {_CANARY} &',
  f"'; touch {_CANARY}; '",
  f'"; touch {_CANARY}; "',
  f'a\ntouch {_CANARY}\n',
  f'a\r\ntouch {_CANARY}',
  '${PATH}',
  '$PATH',
  f'> {_CANARY}',
  '!!',
  # paths
  f'../{_CANARY}',
  f'../../../../../../tmp/{_CANARY}',
  f'/tmp/{_CANARY}',
  '~',
  '~root/.ssh/authorized_keys',
  f'..%2f..%2f{_CANARY}',
  f'%2e%2e/{_CANARY}',
  f'..\\..\\{_CANARY}',
  f'runs/../../{_CANARY}',
  '.',
  '..',
  '/dev/sda',
  '/dev/stdout',
  'CON',
  'nul.txt',
  'a' * 300,
  # flags
  '--flagfile=/etc/passwd',
  '--fromenv=workdir',
  '--tryfromenv=workdir',
  '--workdir=/etc',
  '-h',
  '--',
  'x --workdir=/etc',
  # Python
  f"__import__('os').system('touch {_CANARY}')",
  f"(lambda: open('{_CANARY}', 'w'))()",
  f"[open('{_CANARY}', 'w') for _ in (1,)]",
  '().__class__.__base__.__subclasses__()',
  'identity().__class__',
  'jsp.identity.__globals__',
  f"nm(2, 4) | open('{_CANARY}', 'w')",
  f"eval(\"open('{_CANARY}', 'w')\")",
  f"nm(*open('{_CANARY}', 'w'))",
  "nm(**{'n': 2})",
  '{0.__class__.__mro__}',
  '%s%s%s%n',
  'f\'{__import__("os")}\'',
  '10**10**10',
  '9' * 5000,
  '(' * 10_000 + ')' * 10_000,
  '[' * 150 + ']' * 150,
  '-' * 9000 + '1',
  'nm(2, 4) | ' * 900 + 'nm(2, 4)',
  'a' * 200_000,
  'nm(2, 4);import os',
  'nm(2, 4)\0',
  '\0',
  # pages
  '<script>alert(1)</script>',
  '</script><script>alert(1)</script>',
  '"><img src=x onerror=alert(1)>',
  "' onmouseover='alert(1)",
  '<svg onload=alert(1)>',
  '</title><svg/onload=alert(1)>',
  'javascript:alert(1)',
  '<!--',
  ']]>',
  '&lt;script&gt;',
  '</style><style>*{background:url(//evil)}</style>',
  # sheets
  '=1+1',
  '=HYPERLINK("http://evil","x")',
  '+1+1',
  '-1+1',
  '@SUM(A1)',
  '\t=1+1',
  ' =1+1',
  '\uff1d1+1',
  # writing
  'user\u202egpj.exe',
  '\u2066\u2069\u200b\ufeff',
  '\x1b[31mred\x1b[0m\x07',
  '[red]rich markup[/red] [link=http://evil]x[/link]',
  'e\u0301\u0301\u0301' * 50,
  '😀' * 40,
  'ä\ud800ö',
  '',
  ' ',
]


def _at(text):
  """A transform that is fit to run and has the text in it."""
  return f'at({re.escape(text)!r}, nm(2, 4))'


@pytest.fixture
def canary(tmp_path, monkeypatch):
  """A working directory that must look afterwards as it did before; runs may use `out` alone."""
  home = tmp_path / 'a' / 'b' / 'c'
  home.mkdir(parents=True)
  (home / 'sentinel').write_text('alive')
  monkeypatch.chdir(home)
  monkeypatch.setenv('HOME', str(home))
  outside = lambda: sorted(
    str(p.relative_to(tmp_path)) for p in tmp_path.rglob('*') if tmp_path / 'out' not in p.parents
  )
  (tmp_path / 'out').mkdir()
  before = outside(), set(pathlib.Path('/tmp').glob(f'*{_CANARY}*'))
  yield tmp_path / 'out'
  assert (home / 'sentinel').read_text() == 'alive'
  assert before == (outside(), set(pathlib.Path('/tmp').glob(f'*{_CANARY}*')))
  assert not [p for p in tmp_path.rglob('*') if _CANARY in p.name]


def test_there_are_at_least_forty():
  assert len(set(_HOSTILE)) == len(_HOSTILE) >= 40


def _safe(words):
  """Every argument is one flag from the list, however its value reads."""
  known = {'experiment', 'size', 'transform', 'seed', 'set', 'workdir', 'mesh'}
  for word in words:
    assert re.match(r'--([a-z_]+)=', word)[1] in known
    assert '\0' not in word
    os.fsencode(word)


def _checked(out, grid, **more):
  """The plan, or None after a clean refusal."""
  settings = conductor.Settings('vision', grid, workdir=str(out / 'sweep'), **more)
  try:
    plan = conductor.checked(settings)
  except ValueError as error:
    assert str(error) and 'Traceback' not in str(error)
    assert len(str(error)) < 3000
    return None
  for point in plan.points:
    assert points.NAME.fullmatch(point.name)
    assert plan.places.run(point.name).resolve().parent == (out / 'sweep' / 'runs').resolve()
    _safe(points.argv(point, str(plan.places.run(point.name))))
    # What a shell would make of the printed command is the argument list again.
  return plan


def test_transforms_fields_and_grids(canary):
  plans = 0
  for text in _HOSTILE:
    for grid in (
      text,
      f'transform=[{text!r}]',
      f'data=[{text!r}]',
      f'model=[{text}]',
      f'seed=[{text!r}]',
      f'size=[{text!r}]',
      f'{text}=[1]',
    ):
      plans += _checked(canary, grid) is not None
    plans += _checked(canary, 'seed=[0]', fields=text) is not None
    plans += _checked(canary, 'seed=[0]', fields=f'model={text}') is not None
    plans += _checked(canary, 'seed=[0]', options=text) is not None
    plans += _checked(canary, 'seed=[0]', options=f'mesh={text!r}') is not None
    plans += _checked(canary, 'seed=[0]', transform=text) is not None
    with pytest.raises(ValueError, match='unknown'):
      overlay.load(text)
  # The empty size, empty fields and options, a harmless comment: few mean anything.
  assert plans < 25
  assert not list(canary.iterdir())


def test_printed_commands_mean_to_a_shell_what_they_mean_to_us(canary):
  asked = []
  for text in _HOSTILE:
    plan = _checked(canary, f'transform=[{_at(text)!r}]') if len(text) < 400 else None
    asked += [points.argv(point, '/w') for point in plan.points] if plan else []
  assert len(asked) > 70
  trials = [xmanager.Trial('a', tuple(words)) for words in asked]
  lines = '\n'.join(xmanager.commands(trials, xmanager.Cloud(), 1)[2:])
  program = f'{sys.executable} -m launch.run'
  assert lines.count(program) == len(asked)
  script = 'import json, sys; print(json.dumps(sys.argv[1:]))'
  # The shell reads every command; one process is shown the words of all.
  shown = subprocess.run(
    [
      'bash',
      '-c',
      f'show() {{ words+=("$@"); }}\n{lines.replace(program, "show")}\n'
      f'exec {sys.executable} -c "$SCRIPT" "${{words[@]}}"',
    ],
    capture_output=True,
    text=True,
    env={**os.environ, 'SCRIPT': script},
    timeout=120,
    check=True,
  )
  assert json.loads(shown.stdout) == [word for words in asked for word in words]


def test_names_lead_nowhere(canary):
  places = places_lib.Places(canary)
  for text in _HOSTILE:
    if points.NAME.fullmatch(text):
      assert places.run(text).parent == canary / 'runs'
      continue
    for place in (places.run, places.log, places.state, places.point_lock):
      with pytest.raises(ValueError, match='Not the name of a point'):
        place(text)


def test_real_command_lines_end_with_a_sentence(canary):
  fit = [t for t in _HOSTILE if '\0' not in t and len(t) < 100_000 and '\ud800' not in t]
  out = str(canary / 'run')
  fixed = ['--experiment=vision', '--size=smoke', f'--workdir={out}']
  # Nine hundred stages are a transform, if a slow one.
  run = [[*fixed, f'--transform={t}'] for t in fit if not t.startswith('nm(2, 4) |')]
  run += [[*fixed, f'--set={t}'] for t in fit if t.strip()]
  run += [[*fixed, f'--size={t}'] for t in fit if t]
  run += [[f'--experiment={t}', f'--workdir={out}'] for t in fit]
  run += [[*fixed, f'--transform={_at(t)}'] for t in fit[:3]]
  sweep = [[*fixed, '--engine=local', f'--grid={t}'] for t in fit]
  sweep += [[*fixed, '--engine=local', f'--grid=transform=[{t!r}, 1]'] for t in fit]
  for program, lines in (('run', run), ('sweep', sweep)):
    for words, outcome in zip(lines, _outcomes(program, lines)):
      said = f'{[w[:100] for w in words]}: {outcome}'
      assert outcome['code'] == 2, said
      assert 'Traceback' not in outcome['said'], said
      assert outcome['said'].startswith(f'launch.{program}: '), said
  # A transform that matches no weight is refused once the weights are known, before anything is.
  assert not list(canary.glob('run/*'))


def _outcomes(program, lines):
  done = subprocess.run(
    [sys.executable, '-m', 'tests.launch.hostile_cases', program],
    input=json.dumps(lines),
    capture_output=True,
    text=True,
    timeout=300,
    check=True,
    env={**os.environ, 'PYTHONPATH': str(_ROOT)},
  )
  return json.loads(done.stdout.splitlines()[-1])


class _Page(parser.HTMLParser):
  """Tags, attributes and links of a page."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.links = [], set(), []
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.update(name for name, _ in attrs)
    self.links += [value for name, value in attrs if name in ('href', 'src')]


def test_what_a_run_leaves_behind_stays_text(canary):
  """Results, reasons, metrics, provenance and logs of a run that means harm."""
  texts = [text for text in _HOSTILE if len(text) < 6000]
  fields = ','.join(repr(_at(text)) for text in texts[:60])
  plan = conductor.checked(
    conductor.Settings('vision', f'transform=[{fields}]', workdir=str(canary / 's'))
  )
  places = plan.places
  with places.alone():
    places.record('transform=[...]', plan.defaults, plan.points)
  for n, point in enumerate(plan.points):
    _leave(places, point, texts, n)
  assert conductor.report(plan) == len(plan.points) // 2
  page = _Page((canary / 's' / 'report.html').read_text())
  assert page.tags.count('script') == 2 and page.tags.count('img') == 0
  assert not {'onerror', 'onload', 'onmouseover', 'style'} & page.attributes
  wild = [
    link for link in page.links if not re.fullmatch(r'#[\w-]+[\w.-]*|(runs|logs)/[\w./-]+', link)
  ]
  assert not wild and not [link for link in page.links if '..' in link]
  text = (canary / 's' / 'report.html').read_text()
  assert not re.search('[\u202a-\u202e\u2066-\u2069\x00\x1b]', text)
  _check_sheet(canary / 's' / 'results.csv')


def _leave(places, point, texts, n):
  text, run = texts[n % len(texts)], places.run(point.name)
  run.mkdir()
  lines = [{'step': i, text: 1.0 / (i + 1), 'loss': 0.5} for i in range(3)]
  lines += [{'step': text}, {'step': -1, 'loss': 1}, {'step': 3, 'loss': text}, [text], text]
  written = '\n'.join(json.dumps(line) for line in lines) + '\nnot json\n{"step": 4, "loss": NaN}\n'
  (run / 'metrics.jsonl').write_text(written)
  (run / 'provenance.json').write_text(json.dumps({text: text, 'machine': text}))
  (run / 'config.json').write_text(json.dumps({'config': {'steps': text}}))
  log = b'--- try 1 ---\n\xff\xfe\0' + text.encode('utf-8', 'ignore')
  places.log(point.name).write_bytes(log)
  if n % 2:
    outcome = {'status': 'failed', 'code': 1, 'reason': f'{text}\n{text}', 'attempts': 2}
    documents.write(places.state(point.name), outcome)
    return
  record = {'model': text, 'label': text, 'transform': text, 'accuracy': 0.5, 'size_bytes': 10}
  record |= {'details': {text: text, 'about': text}, 'reasons': {'latency_ratio': text}}
  result = {'status': 'finished', 'record': record, 'figures': {text: 1.0, 'loss': 0.25}}
  (run / 'result.json').write_text(json.dumps(result))
  documents.write(places.state(point.name), {'status': 'finished', 'attempts': 1})


def _check_sheet(path):
  with open(path, newline='', encoding='utf-8') as file:
    table = list(csv.reader(file))
  assert len({len(row) for row in table}) == 1
  for row in table:
    for cell in row:
      assert not re.match(r'\s*[=+@\uff1d]', cell), cell
      assert not cell.startswith('-') or float(cell) < 0


@pytest.mark.parametrize(
  'record',
  [
    {'accuracy': '<script>'},
    {'accuracy': [1]},
    {'size_bytes': True},
    {'label': {'a': 1}},
    {'model': None},
    {'seed': '0'},
    {'details': []},
    {'reasons': {'accuracy': 1}},
    {'surprise': 1},
  ],
  ids=str,
)
def test_a_result_of_the_wrong_shape_is_no_result(canary, record):
  plan = conductor.checked(conductor.Settings('vision', 'seed=[0]', workdir=str(canary / 's')))
  with plan.places.alone():
    plan.places.record('', plan.defaults, plan.points)
  run = plan.places.run(plan.points[0].name)
  run.mkdir()
  whole = {'model': 'm', 'label': 'l', 'transform': 't', **record}
  (run / 'result.json').write_text(json.dumps({'status': 'finished', 'record': whole}))
  assert conductor.report(plan) == 1
  assert 'result.json holds no record' in (canary / 's' / 'report.html').read_text()


def test_links_out_of_the_sweep_are_refused(canary):
  plan = conductor.checked(conductor.Settings('vision', 'seed=[0]', workdir=str(canary / 's')))
  (canary / 's').mkdir()
  elsewhere = canary / 'elsewhere'
  elsewhere.mkdir()
  places = plan.places
  with places.alone():
    (canary / 's' / 'runs').symlink_to(elsewhere)
    with pytest.raises(ValueError, match='is a link'):
      places.record('', plan.defaults, plan.points)
    (canary / 's' / 'runs').unlink()
    places.record('', plan.defaults, plan.points)
    places.log(plan.points[0].name).symlink_to(elsewhere / 'log')
  (job,) = conductor._jobs(plan, plan.points)
  with pytest.raises(OSError):
    keeper.keep(job)
  places.run(plan.points[0].name).symlink_to(elsewhere)
  with places.alone(), pytest.raises(ValueError, match='is a link'):
    places.record('', plan.defaults, plan.points)
  assert not list(elsewhere.iterdir())


def test_metrics_without_end_are_read_in_part(canary):
  run = canary / 'run'
  run.mkdir()
  lines = (f'{{"step": {i}, "loss": {i}.5}}\n' for i in range(5000))
  (run / 'metrics.jsonl').write_text(''.join(lines) + '[' * 100_000 + '\n')
  curve = gather.curves(run)['loss']
  assert len(curve) == 5000
  chart = reports.sweep_page(
    [reports.Run('a', {'transform': 't', 'seed': 0}, 'failed', curves={'loss': curve})],
    title='',
    summary='',
    provenance={},
  )
  assert len(chart) < 60_000


def test_a_terminal_is_not_spoken_to(canary):
  from rich import console as console_lib

  for terminal in (False, True):
    file = io.StringIO()
    console = console_lib.Console(file=file, force_terminal=terminal, width=80)
    with reports.show_board('\x1b[2J', console=console) as update:
      update([reports.Row('a', 'running', 1, 2, 0.5)])
      update([reports.Row('a', 'failed', note=text) for text in _HOSTILE if len(text) < 400][:1])
      for n, text in enumerate(_HOSTILE):
        update([reports.Row(f'n{n}', 'failed', note=text[:400])])
    said = file.getvalue()
    assert '\x1b[2Jx' not in said and '\x1b[31mred' not in said and '\x07' not in said
    assert '[red]rich markup[/red]' in said
