// Pictures of numbers: matrix, bars, lineChart, arcs, scatter. Each gives a <figure> that has
//   .show(data, options)   new data, or new options, in the same figure
// and beneath the picture a readout of the value under the pointer or the keyboard's cursor, and all values as a table.
//
// Pictures are drawn anew when theme, language or width change. They read left to right in every language, as the
// formulas beside them do; only their captions follow the page.

import { frame, redraw, tell, wash } from "octavo/pictures/figure";
import { el, number, percent, svg, t, tokenSpans } from "octavo/dom";

export { colour, still, wash } from "octavo/pictures/figure";
export { lineChart } from "octavo/pictures/line_chart";
export { matrix } from "octavo/pictures/matrix";
export { boxOf, scatter } from "octavo/pictures/scatter";

// ---- Bars

// items: [{label, value, text, title, class}]; `text` is what stands at the bar, else the value as a percentage.
//   max: the value of a full bar; columns: names of the table's columns; onPick(item, at): then bars are buttons
export function bars(items, options = {}) {
  const figure = frame("bars", options, drawBars, ({ items, options }) => ({
    columns: options.columns ?? [t("draw.name"), t("draw.value")],
    rows: items.map((item) => [item.label, item.value]),
  }));
  figure.readout.hidden = true;
  figure.show = (newItems, more = {}) => {
    figure.items = newItems;
    figure.set(more);
  };
  figure.show(items, options);
  return figure;
}

function drawBars(figure) {
  const { items, options } = figure;
  const max = options.max ?? Math.max(1e-12, ...items.map((item) => Math.abs(item.value)));
  const list = el(
    "ol",
    { class: "barlist" },
    items.map((item, at) => {
      const fill = el("span", {
        class: `fill ${item.value < 0 ? "minus" : ""}`,
        style: { "inline-size": `${Math.min(100, (100 * Math.abs(item.value)) / max)}%` },
      });
      const inside = [
        el("span", { class: "name" }, el("bdi", {}, item.label)),
        el("span", { class: "track", "aria-hidden": "true" }, fill),
        el("span", { class: "value" }, item.text ?? percent(item.value)),
      ];
      const props = { class: `bar ${item.class ?? ""}`, title: item.title ?? null };
      return el(
        "li",
        {},
        options.onPick
          ? el("button", { ...props, type: "button", onclick: () => options.onPick(item, at) }, inside)
          : el("div", props, inside),
      );
    }),
  );
  figure.body.replaceChildren(list);
}

// ---- Arcs

// A text, and what its tokens look at. `weights[t][s]` is the share that token t gives to token s. With a token chosen
// (`at`), its own arcs; with none, the strongest of each. Options: at, onPick(t, how), tell(t) for the readout.
export function arcs(tokens, groups, weights, options = {}) {
  const figure = frame("arcs", options, drawArcs, ({ tokens, weights }) => ({
    columns: [t("draw.token"), t("draw.looks")],
    // Numbers beside a letter of another direction would change places with each other.
    rows: tokens.map((token, at) => [
      el("span", {}, `${at} `, el("bdi", {}, token.label)),
      el(
        "span",
        {},
        strongest(weights[at], 5).flatMap((s, i) => [
          `${i ? " · " : ""}${s} `,
          el("bdi", {}, tokens[s].label),
          ` ${number(weights[at][s], 3)}`,
        ]),
      ),
    ]),
  }));
  figure.show = (tokens, groups, weights, more = {}) => {
    Object.assign(figure, { tokens, groups, weights });
    figure.lines = svg("svg", { class: "over", "aria-hidden": "true" });
    figure.text = tokenSpans(tokens, groups, {
      onPick: (at, group, how) => figure.options.onPick?.(at + group.count - 1, how),
      class: "arched",
    });
    figure.text.dir = "auto";
    figure.body.replaceChildren(el("div", { class: "over-text" }, figure.text, figure.lines));
    figure.set(more);
  };
  figure.mark = (at) => {
    figure.options.at = at;
    redraw(figure);
  };
  figure.show(tokens, groups, weights, options);
  return figure;
}

function strongest(row, many) {
  return [...row.keys()]
    .filter((s) => row[s] > 0)
    .sort((a, b) => row[b] - row[a])
    .slice(0, many);
}

function drawArcs(figure) {
  const { text, lines, weights, options } = figure;
  const at = options.at ?? null;
  const frameBox = lines.parentElement.getBoundingClientRect();
  const place = (position) => {
    const boxes = text.spanAt(position)?.getClientRects();
    const box = boxes?.[boxes.length - 1];
    return box && { x: box.left + box.width / 2 - frameBox.left, y: box.top - frameBox.top + 4, bottom: box.bottom };
  };
  const links = [];
  if (at !== null) for (const s of strongest(weights[at], 40)) if (weights[at][s] >= 0.01) links.push([at, s, 0.85]);
  if (at === null)
    weights.forEach((row, t) => {
      for (const s of strongest(row, 1)) if (s !== t) links.push([t, s, 0.4]);
    });
  const drawn = links.slice(0, 800).map(([t, s, strength]) => {
    const from = place(t),
      to = place(s),
      share = weights[t][s];
    if (!from || !to) return null;
    const props = {
      fill: "none",
      stroke: "var(--accent)",
      "stroke-width": (0.6 + 5 * share).toFixed(2),
      "stroke-linecap": "round",
      opacity: (strength * (0.25 + 0.75 * Math.sqrt(share))).toFixed(3),
    };
    if (t === s) return svg("circle", { ...props, cx: to.x, cy: to.y - 6, r: 5 });
    const sameLine = Math.abs(from.y - to.y) < 8;
    const lift = sameLine ? Math.min(options.lift ?? 64, 10 + 0.28 * Math.abs(from.x - to.x)) : 16;
    return svg("path", {
      ...props,
      d: `M${from.x} ${from.y} C${from.x} ${from.y - 1.33 * lift} ${to.x} ${to.y - 1.33 * lift} ${to.x} ${to.y}`,
    });
  });
  lines.replaceChildren(...drawn.filter(Boolean));
  const most = at === null ? 1 : Math.max(...weights[at]); // a background is as strong as its share of the largest
  text.spans.forEach((span, i) => {
    const { first, count } = figure.groups[i];
    let share = 0;
    if (at !== null) for (let s = first; s < first + count; s++) share += weights[at][s] ?? 0;
    wash(span, share / most);
    span.classList.toggle("chosen", at !== null && at >= first && at < first + count);
  });
  tell(figure, at === null ? t("draw.arcs.none") : (options.tell?.(at) ?? ""));
}
