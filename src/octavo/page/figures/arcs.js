// Attention over running text: an arc from each token to the tokens that it attends to.

import { el, svg } from "octavo/dom";
import { shadeSpan } from "octavo/figures/colors";
import { createFigure, redraw, setReadout } from "octavo/figures/figure";
import { formatNumber, t } from "octavo/i18n";
import { tokenSpans } from "octavo/tokens";

const MIN_WEIGHT = 0.01; // the chosen token has no arc for a smaller attention weight
const MAX_ARCS = 40; // of the chosen token
const MAX_OVERVIEW_ARCS = 800; // of all tokens, while none is chosen
const MAX_HEIGHT = 64; // pixels

// `weights[from][to]` is the attention weight of token `to` for token `from`; a row ends at the diagonal. If a token is
// chosen, its arcs are drawn, otherwise the strongest arc of each token. Options besides a figure's:
//   chosen                  the index of the chosen token, or null
//   onTokenEvent(i, type)   see `tokenSpans`
//   readout(i)              the readout of the chosen token, text or nodes
export function arcs(tokens, groups, weights, options = {}) {
  const figure = createFigure("arcs", drawArcs, arcsTable);
  figure.show = (tokens, groups, weights, newOptions = {}) => {
    Object.assign(figure, { tokens, groups, weights });
    figure.lines = svg("svg", { class: "overlay", "aria-hidden": "true" });
    figure.text = tokenSpans(tokens, groups, {
      onSpanEvent: ({ first, count }, type) => figure.options.onTokenEvent?.(first + count - 1, type),
      class: "arched",
    });
    figure.body.replaceChildren(el("div", { class: "text-with-overlay" }, figure.text, figure.lines));
    figure.setOptions(newOptions);
  };
  figure.choose = (i) => {
    figure.options.chosen = i;
    redraw(figure);
  };
  figure.show(tokens, groups, weights, options);
  return figure;
}

// The positions with the largest weights of a row, the largest first.
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
    let weight = 0;
    if (chosen !== null) for (let to = first; to < first + count; to++) weight += weights[chosen][to] ?? 0;
    shadeSpan(span, weight / max);
    span.classList.toggle("chosen", chosen !== null && chosen >= first && chosen < first + count);
  });
  setReadout(figure, chosen === null ? t("figure.arcs.none") : (options.readout?.(chosen) ?? ""));
}

// The arcs that are drawn: {from, to, opacity}.
function selectArcs(weights, chosen) {
  if (chosen !== null)
    return strongest(weights[chosen], MAX_ARCS)
      .filter((to) => weights[chosen][to] >= MIN_WEIGHT)
      .map((to) => ({ from: chosen, to, opacity: 0.85 }));
  return weights
    .flatMap((row, from) => strongest(row, 1).map((to) => ({ from, to, opacity: 0.4 })))
    .filter(({ from, to }) => from !== to)
    .slice(0, MAX_OVERVIEW_ARCS);
}

function drawArc({ text, lines, weights }, { from, to, opacity }) {
  const frame = lines.parentElement.getBoundingClientRect();
  const middleOfTop = (position) => {
    const boxes = text.spanAt(position)?.getClientRects(); // one box for each line that the token is on
    const box = boxes?.[boxes.length - 1];
    return box && { x: box.left + box.width / 2 - frame.left, y: box.top - frame.top + 4 };
  };
  const [start, end, weight] = [middleOfTop(from), middleOfTop(to), weights[from][to]];
  if (!start || !end) return null;
  const stroke = {
    fill: "none",
    stroke: "var(--accent)",
    "stroke-width": (0.6 + 5 * weight).toFixed(2),
    "stroke-linecap": "round",
    opacity: (opacity * (0.25 + 0.75 * Math.sqrt(weight))).toFixed(3),
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
    strongest(row, 5).flatMap((i, rank) => [rank ? " · " : "", ...name(i), ` ${formatNumber(row[i], 3)}`]);
  return {
    columns: [t("figure.token"), t("figure.attends_to")],
    rows: weights.map((row, i) => [el("span", {}, name(i)), el("span", {}, targets(row))]),
  };
}
