// Horizontal bars: a list of named probabilities, and single bars that go both ways from zero.

import { el } from "octavo/dom";
import { createFigure } from "octavo/figures/figure";
import { formatPercent, t } from "octavo/i18n";

// items: [{label, value, title}]: probabilities, on a scale from 0 to 100%, whose quarters style.css marks in every
// track. Options besides a figure's: columns, the names of the table's two columns.
export function bars(items, options = {}) {
  const figure = createFigure("bars", drawBars, ({ items, options }) => ({
    columns: options.columns ?? [t("figure.name"), t("figure.value")],
    rows: items.map((item) => [item.label, item.value]),
  }));
  figure.readout.hidden = true;
  figure.show = (newItems, newOptions = {}) => {
    figure.items = newItems;
    figure.setOptions(newOptions);
  };
  figure.show(items, options);
  return figure;
}

function drawBars({ items, body }) {
  const bar = ({ label, value, title = null }) => {
    const fill = el("span", { class: "fill", style: { "inline-size": barLength(value) } });
    return el(
      "div",
      { class: "bar", title },
      el("span", { class: "name" }, el("bdi", {}, label)),
      el("span", { class: "track", "aria-hidden": "true" }, fill),
      el("span", { class: "value" }, formatPercent(value)),
    );
  };
  body.replaceChildren(
    el(
      "ol",
      { class: "barlist" },
      items.map((item) => el("li", {}, bar(item))),
    ),
  );
}

// The length of the bar of a probability.
export const barLength = (probability) => `${100 * Math.min(1, probability)}%`;

// A bar from zero to a value, on an axis that holds all `values`: positive ones go right in every language.
export function signedBar(value, values) {
  const low = Math.min(0, ...values);
  const range = Math.max(0, ...values) - low || 1;
  const offset = (number) => `${(100 * (number - low)) / range}%`;
  const length = offset(low + Math.abs(value)); // the width of |value| in percent
  return el(
    "span",
    { class: "signed-bar", dir: "ltr", "aria-hidden": "true", style: { "--zero": offset(0) } },
    el("span", {
      class: value < 0 ? "minus" : "plus",
      style: { left: offset(Math.min(0, value)), width: length },
    }),
  );
}
