// What the three tabs that live share: tables that are filled when they are opened, bars that go both ways, tokens whose
// numbers stand beneath them.

import { chip, el, number } from "octavo/dom";

// A token by its name alone, as it stands in a sentence or before a bar.
export const tokenChip = (label) => chip({ label, bytes: "" }, { title: null });

// A line's end is a token too: it gets a sign, so that it can be seen and pointed at.
export const signBreak = (span, { text }) => span.classList.toggle("break", /^[\n\r]/.test(text));

// The characters of a text that its tokens lack, since the tokenizer doesn't know them.
export function leftOut(text, groups) {
  const known = new Set(groups.map((group) => group.text).join(""));
  return [...new Set(text)].filter((each) => !known.has(each)).join(" ");
}

// A number with its sign, left to right also where the text isn't.
export const signed = (x, digits = 2) =>
  el("bdi", { dir: "ltr" }, `${x > 0 ? "+" : x < 0 ? "−" : "±"}${number(Math.abs(x), digits)}`);

// "Show as table": `columns` are keys of sentences, `rows()` gives cells, the first of each its head. `.fill()` after a
// change; while it is closed that costs nothing.
export function asTable(label, columns, rows) {
  const body = el("tbody");
  const details = el(
    "details",
    { class: "table", ontoggle: () => details.fill() },
    el("summary", { say: "draw.table" }),
    scrolled(
      label,
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            columns.map((key) => el("th", { scope: "col", say: key })),
          ),
        ),
        body,
      ),
    ),
  );
  details.fill = () => {
    if (details.open)
      body.replaceChildren(
        ...rows().map(([first, ...rest]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, first),
            rest.map((cell) => el("td", {}, cell)),
          ),
        ),
      );
  };
  return details;
}

// What may be wider than the page: it scrolls by itself, by keyboard too.
export const scrolled = (label, ...children) =>
  el("div", { class: "scroll", tabindex: "0", role: "region", sayLabel: label }, children);

// A bar from zero, which lies where `values` from the least to the most leave it: to the right what is above, in every
// language.
export function push(value, values) {
  const low = Math.min(0, ...values),
    wide = Math.max(0, ...values) - low || 1;
  const at = (each) => `${(100 * (each - low)) / wide}%`;
  return el(
    "span",
    { class: "push", dir: "ltr", "aria-hidden": "true", style: { "--zero": at(0) } },
    el("span", {
      class: value < 0 ? "minus" : "plus",
      style: { left: at(Math.min(0, value)), width: at(low + Math.abs(value)) },
    }),
  );
}

// A control beneath its label.
export const stacked = (control, key) =>
  el("div", { class: "stacked" }, el("label", { for: control.id, say: key }), control);

// What a <select> offers, [value, text] each; what was chosen stays if it is still there.
export function offer(select, options, chosen = select.value) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => String(value) === String(chosen))) select.value = chosen;
}
