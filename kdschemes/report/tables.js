"use strict";
const FILTERED_FROM = 8;
const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, P: 1e15 };
const NOTHING = new Set(["-", "nan", ""]);

function value(cell) {
  const text = cell.textContent.trim();
  const found = /^[<>\u2264]?\s*([-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)\s*([kMGTP](?![\w]))?/i.exec(text);
  if (NOTHING.has(text)) return { missing: true };
  if (!found) return { text };
  return { text, number: Number(found[1].replaceAll(",", "")) * (UNITS[found[2]] ?? 1) };
}

function compare(a, b) {
  if (a.number !== undefined && b.number !== undefined && a.number !== b.number) return a.number - b.number;
  return (a.text ?? "").localeCompare(b.text ?? "", undefined, { numeric: true });
}

function sortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  if (original.length < 2) return;
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.title = "sort";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const after = before === null ? "descending" : before === "descending" ? "ascending" : null;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      if (after) head.setAttribute("aria-sort", after);
      const sign = after === "ascending" ? 1 : -1;
      const rows = original.map((row) => ({ row, key: value(row.cells[column]) }));
      if (after) {
        rows.sort((a, b) => (a.key.missing ? 1 : 0) - (b.key.missing ? 1 : 0) || sign * compare(a.key, b.key));
      }
      body.replaceChildren(...rows.map(({ row }) => row));
    });
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < FILTERED_FROM) return;
  const input = document.createElement("input");
  input.className = "filter";
  input.type = "search";
  input.placeholder = `filter ${rows.length} rows`;
  input.setAttribute("aria-label", "Show the rows that contain all these words");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent.toLowerCase()).join(" ");
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
  table.closest(".scroll").before(input);
}

for (const table of document.querySelectorAll(".scroll table")) {
  sortable(table);
  filterable(table);
}
