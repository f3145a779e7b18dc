"""Reports: what was measured, drawn and written so that a reader can check it.

`Record` holds one run's figures; `write_jsonl` and `write_directory` write files whole or not at
all; `pareto_front`, `pareto_png`, `show_table` and `html_page` compare runs;
`show_progress` tells how far one is.
"""

from jaxsparse.reports.board import Row
from jaxsparse.reports.board import show_board
from jaxsparse.reports.html import page as html_page
from jaxsparse.reports.mask_charts import masks_png
from jaxsparse.reports.mask_charts import overlap_png
from jaxsparse.reports.mask_charts import sparsity_png
from jaxsparse.reports.overlap import Churn
from jaxsparse.reports.overlap import Overlap
from jaxsparse.reports.overlap import churn
from jaxsparse.reports.overlap import overlap as mask_overlap
from jaxsparse.reports.overlap import overlap_matrix
from jaxsparse.reports.pareto import front as pareto_front
from jaxsparse.reports.pareto import png as pareto_png
from jaxsparse.reports.pictures import Picture
from jaxsparse.reports.progress import Progress
from jaxsparse.reports.progress import show as show_progress
from jaxsparse.reports.provenance import provenance
from jaxsparse.reports.record import Record
from jaxsparse.reports.record import check_directory
from jaxsparse.reports.record import finite
from jaxsparse.reports.record import from_json
from jaxsparse.reports.record import read_jsonl
from jaxsparse.reports.record import to_json
from jaxsparse.reports.record import write_directory
from jaxsparse.reports.record import write_jsonl
from jaxsparse.reports.record import write_whole
from jaxsparse.reports.runs import Run
from jaxsparse.reports.sheet import csv_text
from jaxsparse.reports.sheet import parquet
from jaxsparse.reports.sweep import sweep_page
from jaxsparse.reports.table import show as show_table

__all__ = [
  'Record',
  'finite',
  'to_json',
  'from_json',
  'write_jsonl',
  'read_jsonl',
  'write_whole',
  'write_directory',
  'check_directory',
  'pareto_front',
  'pareto_png',
  'show_table',
  'show_progress',
  'Progress',
  'html_page',
  'provenance',
  'Picture',
  'Row',
  'show_board',
  'Run',
  'sweep_page',
  'csv_text',
  'parquet',
  'masks_png',
  'sparsity_png',
  'overlap_png',
  'mask_overlap',
  'overlap_matrix',
  'churn',
  'Overlap',
  'Churn',
]
