"""The page: nothing a record says gets out of its place, and nothing is fetched."""

import base64
import hashlib
import json
import re
from html import parser

import numpy as np
import pytest

from jaxsparse import reports
from jaxsparse.reports import pictures
from jaxsparse.reports import table
from jaxsparse.reports import ticks

_EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(1)">\'"&'


class _Parser(parser.HTMLParser):
  """Collects tags, attributes and the text of scripts and styles; checks that tags close."""

  _VOID = {'meta', 'img', 'rect', 'circle', 'line', 'path'}

  def __init__(self):
    super().__init__()
    self.tags, self.open, self.raw = [], [], {}

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in self._VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] in ('script', 'style'):
      self.raw.setdefault(self.open[-1], []).append(data)


def _parsed(page):
  found = _Parser()
  found.feed(page)
  found.close()
  assert not found.open
  return found


def _runs():
  weights = [{'name': _EVIL, 'shape': [2, 3], 'format': _EVIL, 'size_bytes': 24}]
  return [
    reports.Record(
      model=_EVIL,
      label='dense',
      transform='identity()',
      baseline=True,
      accuracy=0.99,
      size_bytes=1000,
      flops_ideal=1e6,
      flops_executed=1e6,
      latency_ratio=1.0,
    ),
    reports.Record(
      model=_EVIL,
      label=_EVIL,
      transform=_EVIL,
      accuracy=0.98,
      size_bytes=100,
      flops_ideal=1e5,
      flops_executed=1e6,
      latency_ratio=float('nan'),
      sparsity=0.9,
      details={_EVIL: _EVIL, 'weights': weights},
    ),
    reports.Record(model='empty', label='failed', transform='t', reasons={'accuracy': _EVIL}),
  ]


def _page(runs=None):
  return reports.html_page(
    runs or _runs(),
    title=_EVIL,
    summary=_EVIL,
    provenance={_EVIL: _EVIL},
    models={_EVIL: _EVIL},
    pictures=[reports.Picture(_EVIL, _EVIL, _EVIL, np.eye(3, dtype=bool))],
  )


def test_what_a_record_says_stays_text():
  found = _parsed(_page())
  assert sum(tag == 'script' for tag, _ in found.tags) == 2
  assert not [a for _, attrs in found.tags for a in attrs if a.startswith('on') or a == 'style']
  assert all(
    attrs['src'].startswith('data:image/png;base64,') for t, attrs in found.tags if t == 'img'
  )


def test_zeros_of_each_weight_have_a_bar():
  weights = [{'name': f'w{i}', 'zeros': zeros} for i, zeros in enumerate((0.75, _EVIL, 2.0, True))]
  run = reports.Record(model='m', label='l', transform='t', details={'weights': weights})
  page = _page([run, *_runs()])
  cells = page.partition('>Zeros</th>')[2].partition('</table>')[0]
  assert '<td>75.0 %<svg' in cells and 'width="75.0"' in cells
  assert cells.count('<td>–</td>') >= 3
  assert cells.count('class="fill"') == 1
  assert page.count('>Zeros</th>') == 1
  _parsed(page)


def test_nothing_is_fetched_and_only_its_own_script_runs():
  page = _page()
  found = _parsed(page)
  policy = next(
    a['content'] for _, a in found.tags if a.get('http-equiv') == 'Content-Security-Policy'
  )
  assert policy.startswith("default-src 'none'")
  assert 'unsafe' not in policy
  for kind, text in (('style', found.raw['style'][0]), ('script', found.raw['script'][1])):
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}'" in policy
  links = [a.get(k) for _, a in found.tags for k in ('href', 'src') if a.get(k)]
  assert all(link.startswith(('#', 'data:')) for link in links)
  assert 'http' not in re.sub('http-equiv', '', page)
  assert 'url(' not in page and '@import' not in page


def test_anchors_are_unique_and_links_arrive():
  found = _parsed(_page())
  ids = [a['id'] for _, a in found.tags if 'id' in a]
  assert len(ids) == len(set(ids))
  assert {a['href'][1:] for _, a in found.tags if a.get('href', '').startswith('#')} <= set(ids)


def test_records_are_embedded_without_nan_and_survive():
  text = _parsed(_page()).raw['script'][0]
  assert '<' not in text
  fields = json.loads(text, parse_constant=pytest.fail)
  assert fields[1]['label'] == _EVIL and fields[1]['latency_ratio'] is None


def test_table_is_sortable_and_missing_figures_say_why():
  page = _page()
  heads = [a for t, a in _parsed(page).tags if t == 'th' and a.get('aria-sort')]
  assert len(heads) == 2 * 9 and all(a['aria-sort'] == 'none' for a in heads)
  assert 'data-value="" title="nan is not a finite number"' in page
  assert 'data-value="100"' in page


def test_a_page_needs_records_and_pictures_need_a_run():
  with pytest.raises(ValueError, match='at least one record'):
    reports.html_page([], title='', summary='', provenance={})
  picture = reports.Picture('m', 'nobody', 'w', np.ones((2, 2)))
  with pytest.raises(ValueError, match='belongs to no run: m, nobody'):
    reports.html_page(_runs(), title='', summary='', provenance={}, pictures=[picture])


def test_picture_pixels():
  import io

  from matplotlib import image

  mask = np.array([[True, False, True], [False, False, True]])
  pixels = image.imread(io.BytesIO(pictures.png(mask)), format='png')
  np.testing.assert_array_equal(pixels[..., 3] > 0, mask)
  values = image.imread(io.BytesIO(pictures.png(np.array([[-1.0, 0.0, 0.5]]))), format='png')
  assert values[0, 0, 2] > values[0, 0, 0] and values[0, 2, 0] > values[0, 2, 2]  # blue, orange
  assert values[0, 1, 3] == 0 and values[0, 0, 3] > values[0, 2, 3] > 0


@pytest.mark.parametrize('values', [np.zeros((2, 0)), np.zeros(3), np.array([[np.nan]])])
def test_what_is_no_picture_is_refused(values):
  with pytest.raises(ValueError, match='A picture shows'):
    pictures.png(values)


@pytest.mark.parametrize('values', [[1e-9], [3, 3], [0.1, 1e9], [12_345, 12_346], [96.7, 98.5]])
def test_ticks_are_few_and_ascend(values):
  for found in (ticks.linear(values), ticks.logarithmic(values)):
    assert 1 <= len(found) <= 8 and found == sorted(set(found))


def test_terminal_table_fits_and_shows_markup_as_text():
  import io

  from rich import console as console_lib

  for width in (80, 140):
    text = io.StringIO()
    reports.show_table(_runs(), console=console_lib.Console(file=text, width=width))
    assert max(map(len, text.getvalue().splitlines())) <= width
    assert '0.10×' in text.getvalue() and 'nan' not in text.getvalue()


def test_points():
  base, run = _runs()[:2]
  assert table.points(run, base) == '−1.0'
  assert table.points(base, base) == '–'
