"""A sweep as one page: fronts of the means, spread over seeds, curves, every run, every failure."""

import posixpath
import re
from collections.abc import Mapping, Sequence

from jaxsparse.reports import curves
from jaxsparse.reports import html
from jaxsparse.reports import pareto
from jaxsparse.reports import quoting
from jaxsparse.reports import runs as runs_lib
from jaxsparse.reports import table

escape = quoting.escaped
_MOST_METRICS = 6
# A link may only lead below the page's own folder.
_PATH = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*/?')


def sweep_page(
  runs: Sequence[runs_lib.Run],
  *,
  title: str,
  summary: str,
  provenance: Mapping[str, str],
) -> str:
  """Returns the whole page; links lead to the runs' files beside it.

  Args:
    runs: every point, finished or not, at least one.
    title: heading of the page.
    summary: one or two sentences under it.
    provenance: what made the numbers.

  Raises:
    ValueError: if there is no run, or a file of one lies outside the page's folder.
  """
  if not runs:
    raise ValueError('A sweep has at least one run.')
  groups = runs_lib.groups(runs)
  records = [group.record for group in groups if group.record is not None]
  about = {}
  for record in records:
    # A grid over architectures has several under one name.
    about.setdefault(record.model, {})[str(record.details.get('about', ''))] = None
  return html.page(
    records,
    title=title,
    summary=summary,
    provenance=provenance,
    models={model: ' '.join(texts).strip() for model, texts in about.items()},
    before=[_failures(runs)],
    after=[_seeds(groups), _curves(groups), _every(runs, groups)],
  )


def _failures(runs):
  failed = [run for run in runs if run.status != runs_lib.FINISHED]
  if not failed:
    return ''
  rows = ''.join(
    f'<tr id="failed-{escape(run.name)}"><th scope="row"><a href="#run-{escape(run.name)}">'
    f'{escape(run.name)}</a></th><td>{escape(run.status)}</td>'
    f'<td>{"–" if run.code is None else run.code}</td><td>{run.attempts}</td>'
    f'<td class="reason">{_lines(run.reason)}</td></tr>'
    for run in failed
  )
  return _section(
    'failures',
    f'{len(failed)} of {len(runs)} runs did not finish',
    'Starting the same sweep again tries these alone.',
    _table(('Run', 'How', 'Exit code', 'Tries', 'Reason'), rows, 'Failures'),
  )


def _seeds(groups):
  shown = [group for group in groups if group.record is not None]
  if not shown:
    return ''
  names = dict.fromkeys(
    name for group in shown for run in group.runs for name in run.figures if name != 'accuracy'
  )
  names = list(names)[:_MOST_METRICS]
  rows = ''
  for group in shown:
    done = [run for run in group.runs if run.record is not None]
    cells = [f'{len(done)} of {len(group.runs)}']
    cells.append(_plus_minus([run.record.accuracy for run in done], 100, ' %', 2))
    cells.extend(_plus_minus([run.figures.get(name) for run in done], 1, '', 4) for name in names)
    cells.append(pareto.quantity(group.record.size_bytes, 'B'))
    rows += f'<tr><th scope="row">{_text(group.label)}</th>'
    rows += ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'
  heads = ('Settings', 'Seeds', 'Accuracy', *names, 'Stored')
  hint = 'Mean ± sample standard deviation over the seeds that finished.'
  return _section('seeds', 'Over seeds', hint, _table(heads, rows, 'Mean and deviation over seeds'))


def _plus_minus(values, factor, unit, digits):
  found = runs_lib.spread(values)
  if found is None:
    return '–'
  write = lambda value, digits: (
    f'{factor * value:.{digits}f}' if factor != 1 else f'{value:.{digits}g}'
  )
  less = digits if factor != 1 else 2
  more = '' if found.deviation is None else f' ± {write(found.deviation, less)}'
  return f'{write(found.mean, digits)}{more}{unit}'


def _curves(groups):
  metrics = dict.fromkeys(name for group in groups for run in group.runs for name in run.curves)
  if not metrics:
    return ''
  figures = ''
  for metric in list(metrics)[:_MOST_METRICS]:
    drawn = [
      curves.Curve(f'{group.label}, seed {run.settings.get("seed")}', n, run.curves[metric])
      for n, group in enumerate(groups)
      for run in group.runs
      if metric in run.curves
    ]
    figures += (
      f'<figure><figcaption>{_text(metric)}</figcaption>{curves.svg(metric, drawn)}</figure>'
    )
  keys = ''.join(
    f'<span><i class="stroke c{n % curves.COLOURS}"></i>{_text(group.label)}</span> '
    for n, group in enumerate(groups)
  )
  body = f'<div class="charts curves">{figures}</div><p class="legend">{keys}</p>'
  return _section('curves', 'Learning curves', 'One line a run, one colour a setting.', body)


def _every(runs, groups):
  number = {run.name: n for n, group in enumerate(groups) for run in group.runs}
  rows = ''
  for run in runs:
    record = run.record
    settings = ', '.join(f'{name}={_said(value)}' for name, value in run.settings.items())
    links = ' '.join(
      f'<a href="{escape(_checked(path))}">{_text(word)}</a>' for word, path in run.files.items()
    )
    size = pareto.quantity(record.size_bytes if record else None, 'B')
    seconds = '–' if run.seconds is None else f'{run.seconds:.0f} s'
    rows += (
      f'<tr id="run-{escape(run.name)}"><th scope="row"><i class="stroke '
      f'c{number[run.name] % curves.COLOURS}"></i>{escape(run.name)}<code>{_text(settings)}</code>'
      f'</th><td>{escape(run.status)}</td>'
      f'<td>{table.percent(record.accuracy if record else None)}</td><td>{size}</td>'
      f'<td>{seconds}</td><td class="files">{links}</td></tr>'
    )
  heads = ('Run', 'Status', 'Accuracy', 'Stored', 'Time', 'Files')
  return _section('runs', 'Every run', '', _table(heads, rows, 'Every run'))


def _said(value):
  return "''" if value == '' else value


def _checked(path):
  if not _PATH.fullmatch(path) or '..' in path.split('/') or posixpath.isabs(path):
    raise ValueError(f'A file of a run lies below the page, got {path!r}.')
  return path


def _section(anchor, title, hint, body):
  about = f'<p class="about">{escape(hint)}</p>' if hint else ''
  heading = f'<h2 id="{anchor}">{escape(title)}</h2>'
  return f'<section aria-labelledby="{anchor}">{heading}{about}{body}</section>'


def _table(heads, rows, label):
  side = lambda head: ' class="left"' if head in ('Reason', 'Files') else ''
  cells = ''.join(f'<th scope="col"{side(head)}>{_text(head)}</th>' for head in heads)
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
    f'<table class="plain"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table></div>'
  )


def _text(text):
  return escape(str(text))


def _lines(text):
  first, _, rest = text.partition('\n')
  more = f'<pre>{_text(rest)}</pre>' if rest.strip() else ''
  return f'{_text(first)}{more}'
