"""The comparison as one self-contained page that opens from disk and fetches nothing.

The page forbids everything by its content security policy and allows its one style sheet and one
script by their hashes; whatever a record says is escaped.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence

from jaxsparse.reports import charts
from jaxsparse.reports import pareto
from jaxsparse.reports import pictures as pictures_lib
from jaxsparse.reports import quoting
from jaxsparse.reports import record as records_lib
from jaxsparse.reports import table

escape = quoting.escaped

# A loss of accuracy a reader calls "the same": what the summary tiles choose among.
_TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Column:
  """One column of the page's table."""

  title: str
  field: str
  hint: str
  wide: bool = False  # left out on narrow screens; the run's details have it


_COLUMNS = (
  Column('Accuracy', 'accuracy', 'Held-out examples right, computed from the packed weights'),
  Column('Δ points', 'delta', 'Accuracy against dense, in percentage points', wide=True),
  Column('Stored', 'size_bytes', 'Bytes of all arrays of the packed model'),
  Column('Ideal FLOPs', 'flops_ideal', 'Per example, if every stored zero were skipped'),
  Column(
    'Executed', 'flops_executed', 'FLOPs per example as this backend really ran them', wide=True
  ),
  Column('Latency', 'latency_ratio', 'Median over dense, interleaved in the same run'),
  Column('Zeros', 'sparsity', 'Fraction of zeros over the masked weights', wide=True),
)


def page(
  records: Sequence[records_lib.Record],
  *,
  title: str,
  summary: str,
  provenance: Mapping[str, str],
  models: Mapping[str, str] | None = None,
  pictures: Sequence[pictures_lib.Picture] = (),
  before: Sequence[str] = (),
  after: Sequence[str] = (),
) -> str:
  """Returns the whole page.

  Args:
    records: runs, at least one unless there are sections before or after; those of one model
      share charts and a table.
    title: heading of the page.
    summary: one or two sentences under it.
    provenance: what made the numbers: command, date, machine class, versions.
    models: a sentence about each model, by model name.
    pictures: pictures of weights, shown with their runs.
    before: sections made by this room, escaped already, above the models.
    after: the same, below them.

  Raises:
    ValueError: if there is no record, or a picture belongs to no run.
  """
  records = [records_lib.finite(record) for record in records]
  if not (records or before or after):
    raise ValueError('A report needs at least one record.')
  runs = {(r.model, r.label) for r in records}
  for picture in pictures:
    if (picture.model, picture.label) not in runs:
      raise ValueError(
        f'Picture of {picture.name} belongs to no run: {picture.model}, {picture.label}.'
      )
  style, script = _asset('report.css'), _asset('report.js')
  sections = [
    _model(model, group, n, (models or {}).get(model, ''), pictures)
    for n, (model, group) in enumerate(pareto.by_model(records).items())
  ]
  facts = ''.join(
    f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in provenance.items()
  )
  policy = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
    f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
  )
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<p class="eyebrow">jaxsparse report</p>
<h1>{escape(title)}</h1>
<p class="lede">{escape(summary)}</p>
</header>
{''.join([*before, *sections, *after])}
<footer>
<h2>Where the numbers come from</h2>
<dl class="facts">{facts}</dl>
<p>Every accuracy is computed by the packed model, not by a simulation of it. Stored bytes are
the bytes of its arrays. FLOPs are those of products and convolutions: ideal ones skip every zero
and use every factor, executed ones are what this backend ran. Latency is the median of runs
interleaved with the dense model's.</p>
<p class="save"><button type="button" id="save">Save results.jsonl</button></p>
</footer>
</main>
<script type="application/json" id="records">{_embedded(records)}</script>
<script>{script}</script>
</body>
</html>
"""


def _model(model, runs, n, description, pictures):
  """One model: tiles, charts, table, pictures, run by run."""
  anchor = f'm{n}'
  base = table.baseline(runs)
  fronts = {axis.field: set(pareto.record_front(runs, axis.field)) for axis in pareto.AXES}
  # A sweep measures no latency; an empty chart says nothing a dash in the table does not.
  measured = {a.field for a in pareto.AXES if any(getattr(r, a.field) is not None for r in runs)}
  figures = ''.join(
    f'<figure><figcaption>{escape(axis.title)}</figcaption>'
    f'{charts.svg(runs, axis, anchor=anchor)}</figure>'
    for axis in pareto.AXES
    if axis.field in measured or not measured
  )
  heads = _head('#', 'Number in the charts', False) + _head('Compression', '', False)
  heads += ''.join(_head(c.title, c.hint, c.wide) for c in _COLUMNS)
  rows = ''.join(_row(run, i, anchor, runs, base, fronts) for i, run in enumerate(runs))
  return f"""<section aria-labelledby="{anchor}">
<h2 id="{anchor}">{escape(model)}</h2>
<p class="about">{escape(description)}</p>
{_tiles(runs, base)}
<div class="charts">{figures}</div>
<p class="legend">
<span><i class="key front"></i>on the front: nothing is cheaper and as accurate</span>
<span><i class="key beaten"></i>beaten</span> <span><i class="key dense"></i>dense</span></p>
<div class="scroll" tabindex="0" role="region" aria-label="Runs of {escape(model)}">
<table class="runs"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>
{_gallery(model, runs, anchor, pictures)}
<h3>Run by run</h3>
{''.join(_details(run, i, anchor, base) for i, run in enumerate(runs))}
</section>"""


def _tiles(runs, base):
  """The best run of each cost among those that lose at most one point."""
  if base is None or base.accuracy is None:
    return ''
  tiles = [
    f'<div class="tile"><p>Dense accuracy</p><strong>{table.percent(base.accuracy)}</strong>'
    f'<span>{pareto.quantity(base.size_bytes, "B")}, '
    f'{pareto.quantity(base.flops_ideal, "FLOP")} an example</span></div>'
  ]
  for axis, verb in zip(pareto.AXES, ('Smallest', 'Least compute', 'Fastest')):
    near = [
      r
      for r in runs
      if not r.baseline
      and r.accuracy is not None
      and getattr(r, axis.field) is not None
      and r.accuracy >= base.accuracy - _TOLERANCE - 1e-9
    ]
    whole = getattr(base, axis.field)
    if not near or not whole:
      continue
    best = min(near, key=lambda r: getattr(r, axis.field))
    gain, text = getattr(best, axis.field) / whole, f'{best.label}, {table.percent(best.accuracy)}'
    if gain > 0.995:
      gain, text = 1.0, 'dense; nothing is cheaper'
    tiles.append(
      f'<div class="tile"><p>{verb} within 1 point</p><strong>{gain:.2f}×</strong>'
      f'<span>{escape(text)}</span></div>'
    )
  return f'<div class="tiles">{"".join(tiles)}</div>'


def _head(title, hint, wide):
  return (
    f'<th scope="col" aria-sort="none"{_wide(wide)}><button type="button" title="{escape(hint)}">'
    f'{escape(title)}<span class="arrow" aria-hidden="true"></span></button></th>'
  )


def _wide(wide):
  return ' class="wide"' if wide else ''


def _row(run, i, anchor, runs, base, fronts):
  cells = ''.join(_cell(run, column, i, runs, base, fronts) for column in _COLUMNS)
  kind = ' class="base"' if run.baseline else ''
  return (
    f'<tr data-run="{anchor}-{i}"{kind}><td data-value="{i}">{i}</td>'
    f'<th scope="row" data-value="{escape(run.label)}">'
    f'<a href="#{anchor}-{i}">{escape(run.label)}</a>'
    f'<code>{escape(run.transform)}</code></th>{cells}</tr>'
  )


def _cell(run, column, i, runs, base, fronts):
  field = column.field
  if field == 'delta':
    known = base and run.accuracy is not None and base.accuracy is not None
    value, text = (run.accuracy - base.accuracy if known else None), table.points(run, base)
    return f'<td{_wide(column.wide)} data-value="{"" if value is None else value}">{text}</td>'
  value = getattr(run, field)
  if value is None:
    reason = escape(run.reasons.get(field, 'Does not apply'))
    return f'<td{_wide(column.wide)} data-value="" title="{reason}">–</td>'
  if field in ('accuracy', 'sparsity'):
    spread = run.details.get(f'{field}_deviation')
    more = f'<small>± {100 * spread:.1f}</small>' if isinstance(spread, float) else ''
    return f'<td{_wide(column.wide)} data-value="{value}">{table.percent(value)} {more}</td>'
  unit = {'size_bytes': 'B', 'latency_ratio': '×'}.get(field, 'FLOP')
  text, small = pareto.quantity(value, unit), ''
  if unit != '×':
    small = f'<small>{table.ratio(run, base, field)}</small>'
  top = max(getattr(r, field) or 0 for r in runs) or 1
  bar = _bar(100 * value / top)
  kind = 'cost' + ' best' * (i in fronts.get(field, ())) + ' wide' * column.wide
  return f'<td class="{kind}" data-value="{value}">{text} {small}{bar}</td>'


def _gallery(model, runs, anchor, pictures):
  shown = [p for p in pictures if p.model == model]
  if not shown:
    return ''
  number = {run.label: i for i, run in enumerate(runs)}
  figures = ''.join(
    f'<figure><a href="#{anchor}-{number[p.label]}">'
    f'<img alt="{escape(p.label)}, {escape(_what(p))}" src="{pictures_lib.data_uri(p.values)}" '
    f'width="{p.values.shape[1]}" height="{p.values.shape[0]}"></a>'
    f'<figcaption><b>{number[p.label]}</b> {escape(p.label)}'
    f'<small>{escape(_what(p))}</small></figcaption></figure>'
    for p in shown
  )
  names = ', '.join(sorted({p.name for p in shown}))
  return (
    f'<h3>What is left of <code>{escape(names)}</code></h3><p class="about">One pixel a weight; '
    f'rows are inputs, columns outputs. Nothing is drawn where a weight is zero.</p>'
    f'<div class="gallery">{figures}</div>'
  )


def _what(picture):
  if picture.values.dtype == bool:
    return f'mask, {100 * (1 - picture.values.mean()):.0f} % zeros'
  levels = len(set(picture.values.ravel().tolist()))
  return f'values, {levels:,} distinct'


def _details(run, i, anchor, base):
  cost = lambda field, unit: (
    f'{pareto.quantity(getattr(run, field), unit)} ({table.ratio(run, base, field)})'
  )
  facts = {
    'Transform': run.transform,
    'Seed': str(run.seed),
    'Accuracy': f'{table.percent(run.accuracy)} ({table.points(run, base)} points)',
    'Stored': cost('size_bytes', 'B'),
    'Ideal': cost('flops_ideal', 'FLOP'),
    'Executed': cost('flops_executed', 'FLOP'),
    'Latency': pareto.quantity(run.latency_ratio, '×'),
    'Zeros': table.percent(run.sparsity),
    'Training': '–' if run.train_seconds is None else f'{run.train_seconds:.1f} s',
  }
  readable = lambda key: key[:1].upper() + key[1:].replace('_', ' ')
  facts |= {readable(k): _fact(v) for k, v in run.details.items() if k != 'weights'}
  facts |= {f'Missing: {k}': v for k, v in run.reasons.items()}
  items = ''.join(f'<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in facts.items())
  return (
    f'<details id="{anchor}-{i}"><summary><b>{i}</b> {escape(run.label)}</summary>'
    f'<dl class="facts">{items}</dl>{_weights(run.details.get("weights", ()))}</details>'
  )


def _fact(value):
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _weights(weights):
  """The weights of a run; entries map name, shape, format, size_bytes, and zeros where known."""
  if not weights:
    return ''
  any_zeros = any('zeros' in w for w in weights)
  zeros_head = '<th scope="col">Zeros</th>' if any_zeros else ''
  rows = ''.join(
    f'<tr><th scope="row"><code>{escape(str(w.get("name", "")))}</code></th>'
    f'<td>{escape("×".join(str(d) for d in w.get("shape", ())))}</td>'
    f'<td>{escape(str(w.get("format", "")))}</td>'
    f'<td>{escape(pareto.quantity(w.get("size_bytes"), "B"))}</td>'
    f'{_zeros(w.get("zeros")) if any_zeros else ""}</tr>'
    for w in weights
  )
  return (
    '<div class="scroll" tabindex="0" role="region" aria-label="Weights">'
    '<table class="weights"><thead><tr>'
    '<th scope="col">Weight</th><th scope="col">Shape</th><th scope="col">Stored as</th>'
    f'<th scope="col">Bytes</th>{zeros_head}</tr></thead>'
    f'<tbody>{rows}</tbody></table></div>'
  )


def _zeros(fraction):
  """A cell with the fraction of zeros of a weight, and its bar."""
  if type(fraction) not in (int, float) or not 0 <= fraction <= 1:
    return '<td>–</td>'
  return f'<td>{table.percent(fraction)}{_bar(100 * fraction)}</td>'


def _bar(width):
  return (
    f'<svg class="bar" viewBox="0 0 100 3" preserveAspectRatio="none" aria-hidden="true">'
    f'<rect width="100" height="3"/>'
    f'<rect class="fill" width="{width:.1f}" height="3"/></svg>'
  )


def _asset(name):
  text = importlib.resources.files('jaxsparse.reports').joinpath(name).read_text(encoding='utf-8')
  return re.sub(
    r'\r\n?', '\n', text
  )  # a browser hashes what it parsed, which has no carriage return


def _hash(text):
  return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')


def _embedded(records):
  """JSON that no record can break out of: `<`, `>` and `&` are written as escapes."""
  text = json.dumps([json.loads(records_lib.to_json(r)) for r in records], allow_nan=False)
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')
