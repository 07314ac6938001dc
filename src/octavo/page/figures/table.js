// "Show as table": all values of a figure or a list, in a <details> that is filled only while it is open.

import { el } from "octavo/dom";
import { formatSignificant, t } from "octavo/i18n";

// `content()` returns {columns, rows, before}:
//   columns   the names of the columns
//   rows      each a list of cells, the first one the row's header; a cell is text, a node, or a number to be formatted
//   before    nodes to put before the table
// `label()` returns the table's name for screen readers. Call `.fill()` after the content has changed.
export function dataTable(content, { label, dir = null, maxRows = Infinity }) {
  const details = el("details", { class: "table" }, el("summary", { textKey: "figure.table" }));
  details.fill = () => {
    for (const old of [...details.children].slice(1)) old.remove();
    if (!details.open) return;
    const { columns, rows, before = [] } = content();
    const visible = rows.slice(0, maxRows);
    const header = columns.map((name) => el("th", { scope: "col" }, name));
    const table = el("table", {}, el("thead", {}, el("tr", {}, header)), el("tbody", {}, visible.map(tableRow)));
    const scroll = { class: "scroll", tabindex: "0", role: "group", "aria-label": label() };
    details.append(...[before].flat(), el("div", { ...scroll, dir }, table));
    if (rows.length > visible.length)
      details.append(el("p", { class: "quiet" }, t("figure.more", { shown: visible.length, all: rows.length })));
  };
  details.addEventListener("toggle", details.fill);
  return details;
}

function tableRow([header, ...cells]) {
  const content = (cell) => (typeof cell === "number" || cell === null ? formatSignificant(cell) : cell);
  return el(
    "tr",
    {},
    el("th", { scope: "row" }, typeof header === "number" ? String(header) : header),
    cells.map((cell) => el("td", {}, content(cell))),
  );
}
