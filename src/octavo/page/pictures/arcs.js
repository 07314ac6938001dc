// Attention over running text: an arc from each token to the tokens that it looks at.

import { el, svg } from "octavo/dom";
import { number, t } from "octavo/i18n";
import { shadeSpan } from "octavo/pictures/colors";
import { createFigure, redraw, setReadout } from "octavo/pictures/figure";
import { tokenSpans } from "octavo/tokens";

const MIN_SHARE = 0.01; // of attention; smaller shares get no arc
const MAX_ARCS = 40; // of the chosen token
const MAX_ALL_ARCS = 800;
const MAX_HEIGHT = 64; // pixels

// `weights[t][s]` is the share of attention that token t gives to token s. With a token chosen (`at`), its own arcs are
// drawn; without, the strongest arc of each token. Options besides a figure's: at, onPick(t, how), readout(t).
export function arcs(tokens, groups, weights, options = {}) {
  const figure = createFigure("arcs", drawArcs, arcsTable);
  figure.show = (tokens, groups, weights, more = {}) => {
    Object.assign(figure, { tokens, groups, weights });
    figure.lines = svg("svg", { class: "over", "aria-hidden": "true" });
    figure.text = tokenSpans(tokens, groups, {
      onPick: (first, group, how) => figure.options.onPick?.(first + group.count - 1, how),
      class: "arched",
    });
    figure.body.replaceChildren(el("div", { class: "over-text" }, figure.text, figure.lines));
    figure.setOptions(more);
  };
  figure.choose = (t) => {
    figure.options.at = t;
    redraw(figure);
  };
  figure.show(tokens, groups, weights, options);
  return figure;
}

// The positions with the largest shares of a row, the largest first.
export function strongest(row, maxCount) {
  return [...row.keys()]
    .filter((s) => row[s] > 0)
    .sort((a, b) => row[b] - row[a])
    .slice(0, maxCount);
}

function drawArcs(figure) {
  const { text, lines, groups, weights, options } = figure;
  const at = options.at ?? null;
  lines.replaceChildren(
    ...selectArcs(weights, at)
      .map((arc) => drawArc(figure, arc))
      .filter(Boolean),
  );
  const max = at === null ? 1 : Math.max(...weights[at]);
  text.spans.forEach((span, i) => {
    const { first, count } = groups[i];
    let share = 0;
    if (at !== null) for (let s = first; s < first + count; s++) share += weights[at][s] ?? 0;
    shadeSpan(span, share / max);
    span.classList.toggle("chosen", at !== null && at >= first && at < first + count);
  });
  setReadout(figure, at === null ? t("draw.arcs.none") : (options.readout?.(at) ?? ""));
}

// The arcs that are drawn: {from, to, opacity}.
function selectArcs(weights, at) {
  if (at !== null)
    return strongest(weights[at], MAX_ARCS)
      .filter((to) => weights[at][to] >= MIN_SHARE)
      .map((to) => ({ from: at, to, opacity: 0.85 }));
  return weights
    .flatMap((row, from) => strongest(row, 1).map((to) => ({ from, to, opacity: 0.4 })))
    .filter(({ from, to }) => from !== to)
    .slice(0, MAX_ALL_ARCS);
}

function drawArc({ text, lines, weights }, { from, to, opacity }) {
  const frame = lines.parentElement.getBoundingClientRect();
  const topOf = (position) => {
    const boxes = text.spanAt(position)?.getClientRects();
    const box = boxes?.[boxes.length - 1];
    return box && { x: box.left + box.width / 2 - frame.left, y: box.top - frame.top + 4 };
  };
  const [start, end, share] = [topOf(from), topOf(to), weights[from][to]];
  if (!start || !end) return null;
  const stroke = {
    fill: "none",
    stroke: "var(--accent)",
    "stroke-width": (0.6 + 5 * share).toFixed(2),
    "stroke-linecap": "round",
    opacity: (opacity * (0.25 + 0.75 * Math.sqrt(share))).toFixed(3),
  };
  if (from === to) return svg("circle", { ...stroke, cx: end.x, cy: end.y - 6, r: 5 });
  const isSameLine = Math.abs(start.y - end.y) < 8;
  const height = isSameLine ? Math.min(MAX_HEIGHT, 10 + 0.28 * Math.abs(start.x - end.x)) : 16;
  const [startTop, endTop] = [start.y - 1.33 * height, end.y - 1.33 * height];
  const path = `M${start.x} ${start.y} C${start.x} ${startTop} ${end.x} ${endTop} ${end.x} ${end.y}`;
  return svg("path", { ...stroke, d: path });
}

// <bdi> isolates each label: a number beside a right-to-left label would change places with it.
function arcsTable({ tokens, weights }) {
  const target = (t) => (s, i) => [
    `${i ? " · " : ""}${s} `,
    el("bdi", {}, tokens[s].label),
    ` ${number(weights[t][s], 3)}`,
  ];
  return {
    columns: [t("draw.token"), t("draw.looks")],
    rows: tokens.map((token, t) => [
      el("span", {}, `${t} `, el("bdi", {}, token.label)),
      el("span", {}, strongest(weights[t], 5).flatMap(target(t))),
    ]),
  };
}
