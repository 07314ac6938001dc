// Attention over running text: an arc from each token to the tokens that it attends to.

import { el, svg } from "octavo/dom";
import { number, t } from "octavo/i18n";
import { shadeSpan } from "octavo/pictures/colors";
import { createFigure, redraw, setReadout } from "octavo/pictures/figure";
import { tokenSpans } from "octavo/tokens";

const MIN_SHARE = 0.01; // of attention; smaller shares get no arc
const MAX_ARCS = 40; // of the chosen token
const MAX_ALL_ARCS = 800;
const MAX_HEIGHT = 64; // pixels

// `weights[from][to]` is the share of attention that token `from` gives to token `to`. If a token is chosen, its arcs
// are drawn, otherwise the strongest arc of each token. Options besides a figure's:
//   chosen            the index of the chosen token, or null
//   onPick(i, how)    see `tokenSpans`
//   readout(i)        the readout of the chosen token, text or nodes
export function arcs(tokens, groups, weights, options = {}) {
  const figure = createFigure("arcs", drawArcs, arcsTable);
  figure.show = (tokens, groups, weights, newOptions = {}) => {
    Object.assign(figure, { tokens, groups, weights });
    figure.lines = svg("svg", { class: "over", "aria-hidden": "true" });
    figure.text = tokenSpans(tokens, groups, {
      onPick: (first, group, how) => figure.options.onPick?.(first + group.count - 1, how),
      class: "arched",
    });
    figure.body.replaceChildren(el("div", { class: "over-text" }, figure.text, figure.lines));
    figure.setOptions(newOptions);
  };
  figure.choose = (i) => {
    figure.options.chosen = i;
    redraw(figure);
  };
  figure.show(tokens, groups, weights, options);
  return figure;
}

// The positions with the largest shares of a row, the largest first.
export function strongest(row, maxCount) {
  return [...row.keys()]
    .filter((i) => row[i] > 0)
    .sort((a, b) => row[b] - row[a])
    .slice(0, maxCount);
}

function drawArcs(figure) {
  const { text, lines, groups, weights, options } = figure;
  const chosen = options.chosen ?? null;
  lines.replaceChildren(
    ...selectArcs(weights, chosen)
      .map((arc) => drawArc(figure, arc))
      .filter(Boolean),
  );
  const max = chosen === null ? 1 : Math.max(...weights[chosen]);
  text.spans.forEach((span, i) => {
    const { first, count } = groups[i];
    let share = 0;
    if (chosen !== null) for (let to = first; to < first + count; to++) share += weights[chosen][to] ?? 0;
    shadeSpan(span, share / max);
    span.classList.toggle("chosen", chosen !== null && chosen >= first && chosen < first + count);
  });
  setReadout(figure, chosen === null ? t("draw.arcs.none") : (options.readout?.(chosen) ?? ""));
}

// The arcs that are drawn: {from, to, opacity}.
function selectArcs(weights, chosen) {
  if (chosen !== null)
    return strongest(weights[chosen], MAX_ARCS)
      .filter((to) => weights[chosen][to] >= MIN_SHARE)
      .map((to) => ({ from: chosen, to, opacity: 0.85 }));
  return weights
    .flatMap((row, from) => strongest(row, 1).map((to) => ({ from, to, opacity: 0.4 })))
    .filter(({ from, to }) => from !== to)
    .slice(0, MAX_ALL_ARCS);
}

function drawArc({ text, lines, weights }, { from, to, opacity }) {
  const frame = lines.parentElement.getBoundingClientRect();
  const middleOfTop = (position) => {
    const boxes = text.spanAt(position)?.getClientRects(); // one box for each line that the token is on
    const box = boxes?.[boxes.length - 1];
    return box && { x: box.left + box.width / 2 - frame.left, y: box.top - frame.top + 4 };
  };
  const [start, end, share] = [middleOfTop(from), middleOfTop(to), weights[from][to]];
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
  // The control points are a third higher than the arc, because a cubic curve reaches 3/4 of their height.
  const [startTop, endTop] = [start.y - 1.33 * height, end.y - 1.33 * height];
  const path = `M${start.x} ${start.y} C${start.x} ${startTop} ${end.x} ${endTop} ${end.x} ${end.y}`;
  return svg("path", { ...stroke, d: path });
}

function arcsTable({ tokens, weights }) {
  // <bdi> isolates each label: a number beside a right-to-left label would change places with it.
  const name = (i) => [`${i} `, el("bdi", {}, tokens[i].label)];
  const targets = (row) =>
    strongest(row, 5).flatMap((i, rank) => [rank ? " · " : "", ...name(i), ` ${number(row[i], 3)}`]);
  return {
    columns: [t("draw.token"), t("draw.looks")],
    rows: weights.map((row, i) => [el("span", {}, name(i)), el("span", {}, targets(row))]),
  };
}
