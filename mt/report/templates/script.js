"use strict";
const collator = new Intl.Collator(undefined, {numeric: true, sensitivity: "base"});

function number(cell) {
  const value = parseFloat(cell.dataset.value);
  return isNaN(value) ? -Infinity : value;
}

function sort(table, column, th) {
  const isNumber = th.classList.contains("n"), before = th.getAttribute("aria-sort");
  const isDown = before ? before === "ascending" : isNumber;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", isDown ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const x = a.cells[column], y = b.cells[column];
    const order = isNumber ? number(x) - number(y) || 0 : collator.compare(x.textContent, y.textContent);
    return isDown ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((th, column) => {
    if (!th.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...th.childNodes);
    button.addEventListener("click", () => sort(table, column, th));
    th.append(button);
  });
}

for (const table of document.querySelectorAll("table.searchable")) {
  const label = document.createElement("label"), input = document.createElement("input");
  const found = document.createElement("span"), rows = [...table.tBodies[0].rows];
  input.type = "search";
  input.placeholder = "Search";
  input.setAttribute("aria-label", "Search in the table");
  found.setAttribute("aria-live", "polite");
  label.className = "search";
  label.append(input, found);
  table.parentNode.before(label);
  input.addEventListener("input", () => {
    const wanted = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    const count = rows.filter((row) => !row.hidden).length;
    found.textContent = wanted ? `${count} of ${rows.length} rows` : "";
  });
}
