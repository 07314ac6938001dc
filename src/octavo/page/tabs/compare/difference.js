// The differences between two models on one text: the surprisal of each token, the probabilities of the next token, a
// head's attention, and the norm of the residual stream. The first model is dashed or hatched, the second is plain;
// each has its own color.

import { el, field, foldable, setOptions, setSentence, signedNumberElement, tNodes } from "octavo/dom";
import { attentionReadout } from "octavo/figures/attention_readout";
import { lineChart } from "octavo/figures/line_chart";
import { matrix } from "octavo/figures/matrix";
import { pictureTools } from "octavo/figures/picture_tools";
import { dataTable } from "octavo/figures/table";
import { formatNumber, formatPercent, t } from "octavo/i18n";
import { klDivergence } from "octavo/sampling";
import { labelChip, markLineBreak, positionsOf, tokenSpans } from "octavo/tokens";

export const SIDES = ["a", "b"]; // the first model and the second

const BIT_THRESHOLDS = [0.05, 0.5, 1, 2, 4]; // a difference's level, from 0 to 5: the number of these that it reaches
const MAX_NEXT_TOKENS = 8; // of each model
const LINES = { a: { color: "--series-2", dash: [7, 4] }, b: { color: "--series-1", dash: [] } };

export class Difference {
  // `onHeadChange()` is called when the user chooses another head.
  constructor(onHeadChange) {
    this.textHolder = el("div", { class: "scrolling-text" });
    this.readout = el("p", { class: "token-readout", role: "status" });
    this.surprisals = lineChart({ x: [], series: [] }, { caption: () => t("compare.lines"), height: 220 });
    this.kl = el("p", { class: "total" });
    this.leftOut = el("p", { class: "quiet" });
    this.nextTokens = new PairedBars({
      title: "compare.next",
      column: "col.token",
      format: formatPercent,
      formatDifference: (value) => signedNumberElement(100 * value, 1),
      max: 1,
    });
    this.layer = el("select", { id: "compare-layer", onchange: onHeadChange });
    this.head = el("select", { id: "compare-head", onchange: onHeadChange });
    this.patterns = Object.fromEntries([...SIDES, "diff"].map((side) => [side, attentionMatrix(side)]));
    this.stream = new PairedBars({
      title: "compare.stream",
      column: "col.stage",
      format: (value) => formatNumber(value, 2),
      formatDifference: (value) => signedNumberElement(value, 2),
    });
    const headFields = el("div", { class: "row" }, field(this.layer, "common.layer"), field(this.head, "common.head"));
    this.element = el(
      "div",
      {},
      section("compare.tokens", this.textHolder, this.readout, tokenLegend(), this.surprisals),
      section("compare.next", this.leftOut, this.kl, sideLegend(), this.nextTokens.element),
      section(
        "compare.attention",
        headFields,
        el("div", { class: "three-columns" }, Object.values(this.patterns)),
        el("p", { class: "caveat", textKey: "common.attention_caveat" }),
      ),
      section("compare.stream", sideLegend(), this.stream.element),
    );
  }

  // Offers the layers and heads that both models have. Returns the chosen head, {layer, head}.
  updateHeadSelects({ a, b }) {
    const common = (name) => Array.from({ length: Math.min(a.config[name], b.config[name]) }, (_, i) => [i, i]);
    setOptions(this.layer, common("n_layer"));
    setOptions(this.head, common("n_head"));
    return { layer: Number(this.layer.value), head: Number(this.head.value) };
  }

  // `answers`: {a, b}, see tabs/compare.js.
  show(answers) {
    this.answers = answers;
    this.#drawTokens();
    this.#drawSurprisals();
    this.#drawNextTokens();
    this.#drawAttention();
    this.#drawStream();
  }

  #bits(side, i) {
    return (this.answers[side].surprisal.surprisal[i] ?? 0) / Math.LN2;
  }

  #bitDifference(i) {
    return this.#bits("b", i) - this.#bits("a", i);
  }

  #drawTokens() {
    const { surprisal, groups } = this.answers.a;
    const levelOf = (difference) => BIT_THRESHOLDS.filter((threshold) => Math.abs(difference) >= threshold).length;
    this.groups = groups.filter(({ first, count }) => first + count <= surprisal.tokens.length);
    const decorate = (span, group) => {
      markLineBreak(span, group);
      const difference = positionsOf(group).reduce((sum, i) => sum + this.#bitDifference(i), 0);
      const level = levelOf(difference);
      if (level) span.classList.add(difference > 0 ? "first-better" : "second-better", `better-${level}`);
    };
    const onSpanEvent = (group) => this.#showReadout(group);
    this.tokenText = tokenSpans(surprisal.tokens, this.groups, { labelKey: "compare.text", decorate, onSpanEvent });
    this.textHolder.replaceChildren(this.tokenText);
    setSentence(this.readout, "tokens.hint");
  }

  #showReadout(group) {
    const { tokens } = this.answers.a.surprisal;
    this.tokenText.spans.forEach((span, i) => span.classList.toggle("chosen", this.groups[i] === group));
    const sentence = (i) => {
      const token = labelChip(tokens[i].label);
      if (!i) return tNodes("tokens.first", { token });
      const [a, b] = SIDES.map((side) => formatNumber(this.#bits(side, i), 2));
      return tNodes("compare.one", { token, a, b, diff: signedNumberElement(this.#bitDifference(i)) });
    };
    this.readout.replaceChildren(...positionsOf(group).map((i) => el("span", {}, sentence(i))));
  }

  #drawSurprisals() {
    const x = [...this.answers.a.surprisal.tokens.keys()].slice(1);
    const line = (label, value, style) => ({ label: t(`compare.${label}`), values: x.map(value), ...style });
    const series = [
      ...SIDES.map((side) => line(side, (i) => this.#bits(side, i), LINES[side])),
      line("diff", (i) => this.#bitDifference(i), { width: 1.5, dash: [2, 3], color: "--series-3" }),
    ];
    this.surprisals.show({ x, series }, { xName: t("col.position"), yName: t("col.bits"), digits: 2, integerX: true });
  }

  #drawNextTokens() {
    const { a, b } = this.answers;
    const [p, q] = [a.probabilities, b.probabilities];
    const { left_out, vocabulary } = a.nextToken;
    this.leftOut.hidden = !left_out;
    setSentence(this.leftOut, "common.left_out", { n: left_out });
    const [ab, ba] = [klDivergence(p, q), klDivergence(q, p)].map((nats) => formatNumber(nats, 4));
    setSentence(this.kl, "compare.kl", { ab, ba });
    const mostLikely = (probabilities) =>
      Array.from(probabilities.keys())
        .sort((x, y) => probabilities[y] - probabilities[x])
        .slice(0, MAX_NEXT_TOKENS);
    const ids = [...new Set([...mostLikely(p), ...mostLikely(q)])].sort((x, y) => p[y] + q[y] - p[x] - q[x]);
    const label = (id) => vocabulary[id] ?? b.nextToken.vocabulary[id] ?? `#${id}`;
    this.nextTokens.show(ids.map((id) => [() => labelChip(label(id)), p[id], q[id]]));
  }

  #drawAttention() {
    const { a, b } = this.answers;
    const { tokens } = a.attention;
    const [first, second] = [a, b].map((side) => side.attention.weights);
    const weights = { a: first, b: second, diff: second.map((row, r) => row.map((value, c) => value - first[r][c])) };
    for (const [side, figure] of Object.entries(this.patterns))
      figure.show(weights[side], {
        rows: (i) => tokens[i].label,
        columns: (i) => tokens[i].label,
        readout: (r, c, value) => attentionReadout(tokens, r, c, value),
        label: t(`compare.${side}`),
      });
  }

  #drawStream() {
    const [a, b] = SIDES.map((side) => this.answers[side].contributions.stream);
    const stage = (i) => () => (i ? t("layers.after", { layer: i - 1 }) : t("layers.start"));
    this.stream.show(a.slice(0, b.length).map((norm, i) => [stage(i), norm, b[i]]));
  }
}

// The largest absolute difference between the two models' numbers.
export function largestDifference({ a, b }) {
  const largest = (x, y) => x.reduce((max, value, i) => Math.max(max, Math.abs((value ?? 0) - (y[i] ?? 0))), 0);
  return Math.max(
    largest(a.surprisal.surprisal, b.surprisal.surprisal),
    largest(a.nextToken.logits, b.nextToken.logits),
    largest(a.contributions.stream, b.contributions.stream),
    largest(a.attention.weights.flat(), b.attention.weights.flat()),
  );
}

// Rows of [name(), first, second], each with two bars, both numbers and their difference; and the same as a table.
// `max` is the value of a full bar, by default the largest.
class PairedBars {
  constructor({ title, column, format, formatDifference, max = null }) {
    Object.assign(this, { column, format, formatDifference, max, rows: [] });
    this.list = el("ol", { class: max === 1 ? "pairs percent" : "pairs" });
    const table = dataTable(() => this.#tableContent(), { label: () => t(title) });
    this.table = pictureTools(table, () => t(title), () => [this.list]);
    this.element = el("div", {}, this.list, this.table);
  }

  show(rows) {
    this.rows = rows;
    const max = this.max ?? (Math.max(...rows.flatMap(([, a, b]) => [a, b])) || 1);
    this.list.replaceChildren(...rows.map((row) => this.#item(row, max)));
    this.table.fill();
  }

  #item([name, a, b], max) {
    const track = (side, value) => {
      const bar = el("span", { style: { "inline-size": `${(100 * value) / max}%` } });
      return el("span", { class: `track ${side}`, "aria-hidden": "true" }, bar);
    };
    return el(
      "li",
      { dataset: { a, b } },
      el("span", { class: "name" }, name()),
      el("span", {}, track("a", a), track("b", b)),
      el("span", { class: "share" }, el("span", {}, this.format(a)), el("span", {}, this.format(b))),
      this.formatDifference(b - a),
    );
  }

  #tableContent() {
    return {
      columns: [this.column, "compare.a", "compare.b", "compare.diff"].map((key) => t(key)),
      rows: this.rows.map(([name, a, b]) => [name(), this.format(a), this.format(b), this.formatDifference(b - a)]),
    };
  }
}

const section = (key, ...children) =>
  foldable(el("section", { class: "card" }, el("h2", { textKey: key }), el("p", { textKey: `${key}.lead` }), children));

function attentionMatrix(side) {
  const scale = side === "diff" ? { scale: "signed" } : { scale: "sequential", max: 1 };
  return matrix([], { ...scale, isHidden: (r, c) => c > r, maxCell: 26, caption: () => t(`compare.${side}`) });
}

// What the two kinds of bars mean.
const sideLegend = () =>
  el(
    "p",
    { class: "tight-row quiet" },
    SIDES.map((side) =>
      el(
        "span",
        {},
        el("i", { class: `bar-sample ${side}`, "aria-hidden": "true" }),
        el("span", { textKey: `compare.${side}` }),
      ),
    ),
  );

// What the two kinds of marked tokens mean.
function tokenLegend() {
  const item = (side) => {
    const swatch = { class: `swatch ${side === "a" ? "first" : "second"}-better better-4`, "aria-hidden": "true" };
    return el("li", {}, el("span", swatch), el("span", { textKey: `compare.${side}.more` }));
  };
  return el("ul", { class: "level-legend" }, SIDES.map(item));
}
