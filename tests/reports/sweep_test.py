"""The report of a sweep: seeds brought together, curves, failures, links, and the two tables."""

import csv
import io
import re

import pytest

from jaxsparse import reports
from jaxsparse.reports import board
from jaxsparse.reports import curves
from jaxsparse.reports import quoting
from jaxsparse.reports import runs as runs_lib


def _run(transform, seed, accuracy, size=1000, **more):
  record = None
  if accuracy is not None:
    record = reports.Record(
      model='vision',
      label=transform,
      transform=transform,
      baseline=transform == 'identity()',
      seed=seed,
      accuracy=accuracy,
      size_bytes=size,
    )
  return reports.Run(
    name=f'{re.sub("[^a-z0-9]", "-", transform)}{seed}',
    settings={'transform': transform, 'seed': seed, 'width': 16},
    status='finished' if record else 'failed',
    record=record,
    figures={'loss': 0.5 + seed} if record else {},
    curves={'loss': [(1, 2.0), (2, None), (3, 1.0), (4, 0.5)]},
    files={'metrics': 'runs/a/metrics.jsonl'},
    **more,
  )


def _runs():
  return [
    _run('identity()', 0, 0.9, 4000),
    _run('identity()', 1, 0.94, 4000),
    _run('nm(2, 4)', 0, 0.88, 2000),
    _run('nm(2, 4)', 1, None, reason='Step 3: <loss> is nan.\nline two', code=44, attempts=1),
  ]


def _page(runs):
  return reports.sweep_page(runs, title='A sweep', summary='s', provenance={'Command': 'c'})


def test_seeds_are_brought_together():
  dense, sparse = runs_lib.groups(_runs())
  assert (dense.label, sparse.label) == ('identity()', 'nm(2, 4)')
  assert dense.record.accuracy == pytest.approx(0.92) and dense.record.baseline
  assert dense.record.details['accuracy_deviation'] == pytest.approx(0.02 * 2**0.5)
  assert (dense.record.details['seeds'], dense.record.size_bytes) == ('0, 1', 4000)
  assert sparse.record.accuracy == 0.88 and 'accuracy_deviation' not in sparse.record.details
  assert len(sparse.runs) == 2


def test_what_differs_within_the_sweep_is_in_the_label_and_one_dense_run_is_the_measure():
  runs = [_run('identity()', 0, 0.9), _run('identity()', 0, 0.8)]
  runs[1] = runs[1]._replace(settings={**runs[1].settings, 'width': 32})
  first, second = runs_lib.groups(runs)
  assert (first.label, second.label) == ('identity(), width=16', 'identity(), width=32')
  assert first.record.baseline and not second.record.baseline


def test_a_page_describes_every_architecture():
  runs = [_run('identity()', 0, 0.9), _run('nm(2, 4)', 0, 0.8), _run('rigl(0.9)', 0, 0.8)]
  for run, about in zip(runs, ('A CNN.', 'A ViT.', 'A CNN.')):
    run.record.details['about'] = about
  assert 'A CNN. A ViT.<' in _page(runs)


def test_the_page_tells_means_failures_curves_and_files():
  page = _page(_runs())
  assert '92.00 ± 2.83 %' in page and '1 of 2' in page
  assert '1 of 4 runs did not finish' in page and '<td>44</td>' in page
  assert 'Step 3: &lt;loss&gt; is nan.' in page and '<pre>line two</pre>' in page
  assert page.count('href="runs/a/metrics.jsonl"') == 4
  assert page.count('class="curve c0"') == 2 and page.count('class="curve c1"') == 2
  ids = re.findall(r' id="([^"]+)"', page)
  assert len(ids) == len(set(ids))
  assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_a_sweep_of_which_nothing_finished_still_has_a_page():
  page = _page(_runs()[3:])
  assert '1 of 1 runs did not finish' in page and 'Over seeds' not in page
  with pytest.raises(ValueError, match='at least one run'):
    _page([])


@pytest.mark.parametrize(
  'path', ['../x', '/etc/passwd', 'a/../../x', 'javascript:alert(1)', '//evil', 'a b', '.x', '']
)
def test_links_lead_below_the_page(path):
  run = _runs()[0]._replace(files={'x': path})
  with pytest.raises(ValueError, match='lies below the page'):
    _page([run])


def test_a_curve_has_gaps_and_few_points():
  chart = curves.svg('loss', [curves.Curve('a', 0, [(i, 1.0 / (i + 1)) for i in range(10_000)])])
  assert 'log scale' in chart and len(re.findall('[ML]', chart)) < 300
  chart = curves.svg(
    'loss', [curves.Curve('a', 9, [(0, 1.0), (1, None), (2, float('nan')), (3, 2)])]
  )
  (path,) = re.findall(' d="([^"]+)"', chart)
  assert path.count('M') == 2 and 'class="curve c1"' in chart
  assert 'No run logged' in curves.svg('loss', [curves.Curve('a', 0, [(0, None)])])
  assert '<path' in curves.svg('loss', [curves.Curve('a', 0, [(0, 1e300), (5, 3.0)])])
  for points in (
    [(0, 0.0)],
    [(7, -1.0), (7, -1.0)],
    [(0, 1e-320), (1, 1.0)],
    [(0, 1e29), (1, -1e29)],
  ):
    assert 'nan' not in curves.svg('loss', [curves.Curve('a', 0, points)])


def _table(runs):
  return list(csv.DictReader(io.StringIO(reports.csv_text(runs))))


def test_csv_has_a_row_a_run_and_no_nan():
  runs = _runs()
  runs[0] = runs[0]._replace(figures={'loss': float('nan'), '=cmd': 1.5})
  rows = _table(runs)
  assert [row['seed'] for row in rows] == ['0', '1', '0', '1']
  assert (rows[0]['accuracy'], rows[0]['figure.loss'], rows[1]['figure.loss']) == ('0.9', '', '1.5')
  assert rows[3]['accuracy'] == '' and rows[3]['code'] == '44'
  assert rows[0]['figure.=cmd'] == '1.5'


def test_a_setting_called_like_a_column_keeps_its_own():
  runs = [r._replace(settings={**r.settings, 'model': 'vit', 'size': ''}) for r in _runs()]
  rows = _table(runs)
  assert [row['setting.model'] for row in rows] == ['vit'] * 4
  assert [row['model'] for row in rows] == ['vision', 'vision', 'vision', '']
  assert 'size=&#x27;&#x27;' in _page(runs)


@pytest.mark.parametrize(
  'value, cell',
  [
    ('=1+1', "'=1+1"),
    ('+x', "'+x"),
    ('-x', "'-x"),
    ('@x', "'@x"),
    ('\t=x', "'\t=x"),
    ('  =x', "'  =x"),
    ('\uff1dx', "'\uff1dx"),
    ('-0.5', '-0.5'),
    ('+1e-3', '+1e-3'),
    ('-1+1', "'-1+1"),
    ('-1_000', "'-1_000"),
    ('-inf', "'-inf"),
    (-0.5, -0.5),
    (-3, -3),
    (float('inf'), None),
    (None, None),
    (True, True),
    ('a=b', 'a=b'),
    ('', ''),
    ('\u202egpj', '\\u202egpj'),
    ('\ud800', '\\ud800'),
  ],
)
def test_a_cell_is_no_formula_and_a_number_is_left_alone(value, cell):
  assert quoting.cell(value) == cell


def test_parquet_has_types_and_nulls():
  parquet = pytest.importorskip('pyarrow.parquet')
  runs = _runs()
  runs[0] = runs[0]._replace(settings={**runs[0].settings, 'width': 'wide', 'big': 10**30})
  table = parquet.read_table(io.BytesIO(reports.parquet(runs))).to_pydict()
  assert table['accuracy'] == [0.9, 0.94, 0.88, None]
  assert table['size_bytes'] == [4000, 4000, 2000, None]
  assert table['width'] == ['wide', '16', '16', '16'] and table['big'][0] == str(10**30)
  assert table['seed'] == [0, 1, 0, 1]


def _shown(rows, **console):
  from rich import console as console_lib

  file = io.StringIO()
  with reports.show_board(
    't', console=console_lib.Console(file=file, width=90, **console)
  ) as update:
    for several in rows:
      update(several)
  return file.getvalue()


def test_a_board_that_is_no_terminal_says_each_change_once():
  waiting, running = board.Row('a', 'waiting'), board.Row('a', 'running', 3, 10, 0.25)
  other = board.Row('b', 'failed', note='exit code 1')
  said = _shown([[waiting, other], [running, other], [running, other]])
  assert said.splitlines() == ['[1/2] failed b: exit code 1', '[1/2] running a, loss 0.25']


def test_a_board_on_a_terminal_shows_steps():
  rows = [board.Row('a', 'running', 3, 10, 0.25), board.Row('b', 'running')]
  said = _shown([rows], force_terminal=True)
  assert '3/10' in said and '0.25' in said and '2 running' in said
