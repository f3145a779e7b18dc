'use strict';
// Sorting: a click or Enter on a heading; a figure that is missing stays last either way.
for (const table of document.querySelectorAll('table.runs')) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector('button').addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending';
    heads.forEach((other) => other.setAttribute('aria-sort', 'none'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === '' || y === '') return (x === '') - (y === '');
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
// A run pointed at anywhere lights up everywhere.
const light = (event, on) => {
  const run = event.target.closest('[data-run]');
  if (!run) return;
  document.querySelectorAll(`[data-run="${run.dataset.run}"]`).forEach((e) => e.classList.toggle('hot', on));
};
for (const name of ['mouseover', 'focusin']) document.addEventListener(name, (event) => light(event, true));
for (const name of ['mouseout', 'focusout']) document.addEventListener(name, (event) => light(event, false));
// A link to a run opens its details.
const open = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) {
    target.open = true;
    target.scrollIntoView({block: 'nearest'});
  }
};
addEventListener('hashchange', open);
open();
document.getElementById('save').addEventListener('click', () => {
  const records = JSON.parse(document.getElementById('records').textContent);
  const lines = records.map((record) => JSON.stringify(record) + '\n');
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(lines, {type: 'application/jsonl'}));
  link.download = 'results.jsonl';
  link.click();
  URL.revokeObjectURL(link.href);
});
