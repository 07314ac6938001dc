// Horizontal bars: a list of named probabilities, and single bars that go both ways from zero.

import { el } from "octavo/dom";
import { createFigure } from "octavo/figures/figure";
import { formatPercent, t } from "octavo/i18n";

// items: [{label, value, title}]; the value is printed beside its bar as a percentage. Options besides a figure's:
//   max       the value of a full bar
//   columns   the names of the table's two columns
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

function drawBars({ items, options, body }) {
  const max = options.max ?? Math.max(1e-12, ...items.map((item) => Math.abs(item.value)));
  const bar = ({ label, value, title = null }) => {
    const length = `${Math.min(100, (100 * Math.abs(value)) / max)}%`;
    const fill = el("span", { class: `fill ${value < 0 ? "minus" : ""}`, style: { "inline-size": length } });
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
