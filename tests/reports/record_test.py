"""Records and files: whole or not at all, and no NaN passes for a number."""

import json
import os

import pytest
from absl.testing import parameterized

from jaxsparse import reports


def _record(**fields):
  return reports.Record(**{'model': 'cnn', 'label': 'int8', 'transform': 't', **fields})


class RecordTest(parameterized.TestCase):
  @parameterized.parameters(float('nan'), float('inf'), float('-inf'))
  def test_a_figure_that_is_no_number_becomes_null_with_a_reason(self, value):
    line = reports.to_json(_record(accuracy=value, details={'loss': [1.0, value]}))
    fields = json.loads(line, parse_constant=self.fail)
    self.assertIsNone(fields['accuracy'])
    self.assertEqual(fields['details'], {'loss': [1.0, None]})
    self.assertEqual(fields['reasons']['accuracy'], f'{value} is not a finite number')
    self.assertIn('details/loss/1', fields['reasons'])

  def test_a_reason_given_is_kept(self):
    record = reports.finite(_record(accuracy=float('nan'), reasons={'accuracy': 'diverged'}))
    self.assertEqual(record.reasons, {'accuracy': 'diverged'})

  def test_round_trip(self):
    record = _record(accuracy=0.5, size_bytes=10, details={'é</script>': ['\n', None]})
    self.assertEqual(reports.from_json(reports.to_json(record)), record)
    self.assertNotIn('\n', reports.to_json(record))

  def test_details_hold_json_only(self):
    with self.assertRaisesRegex(ValueError, 'details/a: .*got object'):
      reports.to_json(_record(details={'a': object()}))

  @parameterized.parameters(
    ('[]', 'got list'),
    ('{"model": "m"}', "missing fields \\['label', 'transform'\\]"),
    ('{"model": "m", "label": "l", "transform": "t", "acuracy": 1}', "unknown fields \\['acuracy'"),
  )
  def test_what_is_no_record_is_refused(self, line, message):
    with self.assertRaisesRegex(ValueError, message):
      reports.from_json(line)


def test_jsonl_round_trip_and_bad_line(tmp_path):
  path = reports.write_jsonl(tmp_path / 'results.jsonl', [_record(seed=0), _record(seed=1)])
  assert [record.seed for record in reports.read_jsonl(path)] == [0, 1]
  path.write_text(path.read_text() + '{"half')
  with pytest.raises(ValueError, match='line 3'):
    reports.read_jsonl(path)


@pytest.mark.parametrize('failing', ['fsync', 'replace'])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failing):
  path = reports.write_whole(tmp_path / 'report.html', 'old')

  def fail(*_, **__):
    raise OSError('No space left on device')

  monkeypatch.setattr(os, failing, fail)
  with pytest.raises(OSError, match='No space'):
    reports.write_whole(path, 'new')
  assert path.read_text() == 'old'
  assert [p.name for p in tmp_path.iterdir()] == ['report.html']


def test_a_record_that_cannot_be_written_leaves_the_old_file(tmp_path):
  path = reports.write_jsonl(tmp_path / 'results.jsonl', [_record()])
  before = path.read_text()
  with pytest.raises(ValueError):
    reports.write_jsonl(path, [_record(), _record(details={'x': object()})])
  assert path.read_text() == before


def test_written_files_are_readable_by_others(tmp_path):
  mask = os.umask(0o022)
  try:
    assert reports.write_whole(tmp_path / 'f', b'x').stat().st_mode & 0o777 == 0o644
  finally:
    os.umask(mask)


def test_a_directory_appears_whole(tmp_path):
  path = reports.write_directory(tmp_path / 'runs' / 'one', {'a': 'text', 'b': b'\0'})
  assert {p.name: p.read_bytes() for p in path.iterdir()} == {'a': b'text', 'b': b'\0'}
  assert [p.name for p in path.parent.iterdir()] == ['one']


def test_a_directory_that_fails_half_way_is_not_there(tmp_path):
  with pytest.raises(TypeError):
    reports.write_directory(tmp_path / 'one', {'a': 'text', 'b': None})
  assert not list(tmp_path.iterdir())


def test_an_empty_directory_is_taken_and_a_full_one_refused(tmp_path):
  (tmp_path / 'one').mkdir()
  reports.write_directory(tmp_path / 'one', {'a': 'text'})
  with pytest.raises(ValueError, match='holds files already'):
    reports.write_directory(tmp_path / 'one', {'a': 'other'})
  assert (tmp_path / 'one' / 'a').read_text() == 'text'
  with pytest.raises(ValueError, match='is a file'):
    reports.check_directory(tmp_path / 'one' / 'a')
  with pytest.raises(ValueError, match='cannot be created'):
    reports.check_directory(tmp_path / 'one' / 'a' / 'b')
