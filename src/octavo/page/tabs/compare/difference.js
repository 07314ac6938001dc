// What lies between two readings of one text: token by token, in what comes next, in where a head looks, in how long the
// stream grows. The first is always dashed or hatched and of one colour, the second plain and of another.

import { lineChart, matrix } from "octavo/pictures/bars";
import { asTable, offer, signBreak, signed, tokenChip } from "octavo/controls";
import { divergence } from "octavo/sampling";
import { code, el, field, number, percent, said, say, t, tokenSpans } from "octavo/dom";

export const SIDES = ["a", "b"];

const BITS = [0.05, 0.5, 1, 2, 4]; // where a longer bar begins
const LIKELY = 8; // tokens of either
const LINES = { a: { colour: "--line-2", dash: [7, 4] }, b: { colour: "--line-1", dash: [] } };
const COLUMNS = ["compare.a", "compare.b", "compare.diff"];

export class Difference {
  // `onHead()` when another head is chosen.
  constructor(onHead) {
    this.running = el("div", { class: "page" });
    this.numbers = el("p", { class: "numbers", role: "status" });
    this.lines = lineChart({ x: [], series: [] }, { caption: () => t("compare.lines"), height: 220 });
    this.kl = el("p", { class: "total" });
    this.left = el("p", { class: "quiet" });
    this.next = new Pairs("compare.next", "col.token", percent, (diff) => signed(100 * diff, 1));
    this.layer = el("select", { id: "compare-layer", onchange: onHead });
    this.which = el("select", { id: "compare-head", onchange: onHead });
    this.pictures = Object.fromEntries([...SIDES, "diff"].map((side) => [side, picture(side)]));
    const decimals = (value) => number(value, 2);
    this.stream = new Pairs("compare.stream", "col.stage", decimals, (diff) => signed(diff, 2));
    const heads = el("div", { class: "row" }, field(this.layer, "walk.layer"), field(this.which, "walk.head"));
    this.element = el(
      "div",
      {},
      part("compare.tokens", this.running, this.numbers, moreKey(), this.lines),
      part("compare.next", this.left, this.kl, key(), this.next.element),
      part(
        "compare.attention",
        heads,
        el("div", { class: "three" }, Object.values(this.pictures)),
        el("p", { class: "caveat", say: "attention.caveat" }),
      ),
      part("compare.stream", key(), this.stream.element),
    );
  }

  // The head that is chosen, among those that both have.
  head({ a, b }) {
    const upTo = (name) => Array.from({ length: Math.min(a.shape[name], b.shape[name]) }, (_, i) => [i, i]);
    offer(this.layer, upTo("n_layer"));
    offer(this.which, upTo("n_head"));
    return { layer: Number(this.layer.value), head: Number(this.which.value) };
  }

  // The largest of all differences.
  largest({ a, b }) {
    const most = (x, y) => x.reduce((most, value, i) => Math.max(most, Math.abs((value ?? 0) - (y[i] ?? 0))), 0);
    return Math.max(
      most(a.score.surprisal, b.score.surprisal),
      most(a.next.logits, b.next.logits),
      most(a.residual.stream, b.residual.stream),
      most(a.attention.weights.flat(), b.attention.weights.flat()),
    );
  }

  show(found) {
    this.found = found;
    this.#drawTokens();
    this.#drawNext();
    this.#drawAttention();
    this.#drawStream();
  }

  #bits(side, at) {
    return (this.found[side].score.surprisal[at] ?? 0) / Math.LN2;
  }

  #between(at) {
    return this.#bits("b", at) - this.#bits("a", at);
  }

  #drawTokens() {
    const { score, reading } = this.found.a;
    const level = (diff) => BITS.filter((edge) => Math.abs(diff) >= edge).length;
    this.groups = reading.groups.filter(({ first, count }) => first + count <= score.tokens.length);
    this.spans = tokenSpans(score.tokens, this.groups, {
      labelKey: "compare.text",
      each: (span, group) => {
        signBreak(span, group);
        const diff = members(group).reduce((sum, at) => sum + this.#between(at), 0);
        if (level(diff)) span.classList.add(diff > 0 ? "first-more" : "second-more", `by-${level(diff)}`);
      },
      onPick: (first, group) => this.#tell(group),
    });
    this.running.replaceChildren(this.spans);
    say(this.numbers, "score.hint");
    const x = [...score.tokens.keys()].slice(1);
    const sides = SIDES.map((side) => ({
      label: t(`compare.${side}`),
      values: x.map((at) => this.#bits(side, at)),
      ...LINES[side],
    }));
    const between = { label: t("compare.diff"), values: x.map((at) => this.#between(at)) };
    this.lines.show(
      { x, series: [...sides, { ...between, width: 1.5, dash: [2, 3], colour: "--line-3" }] },
      { xName: t("col.position"), yName: t("col.bits"), digits: 2, whole: true },
    );
  }

  #tell(group) {
    const { tokens } = this.found.a.score;
    this.spans.spans.forEach((span, i) => span.classList.toggle("chosen", this.groups[i] === group));
    const sentence = (at) => {
      const token = tokenChip(tokens[at].label);
      if (!at) return said("score.first", { token });
      const [a, b] = SIDES.map((side) => number(this.#bits(side, at), 2));
      return said("compare.one", { token, a, b, diff: signed(this.#between(at)) });
    };
    this.numbers.replaceChildren(...members(group).map((at) => el("span", {}, sentence(at))));
  }

  #drawNext() {
    const { a, b } = this.found;
    this.left.hidden = !a.next.left_out;
    say(this.left, "attention.left", { n: a.next.left_out });
    say(this.kl, "compare.kl", { ab: number(divergence(a.p, b.p), 4), ba: number(divergence(b.p, a.p), 4) });
    const best = ({ p }) =>
      Array.from(p.keys())
        .sort((x, y) => p[y] - p[x])
        .slice(0, LIKELY);
    const ids = [...new Set([...best(a), ...best(b)])].sort((x, y) => a.p[y] + b.p[y] - a.p[x] - b.p[x]);
    const label = (id) => a.next.vocabulary[id] ?? b.next.vocabulary[id] ?? `#${id}`;
    this.next.show(ids.map((id) => [() => tokenChip(label(id)), a.p[id], b.p[id]]));
  }

  #drawAttention() {
    const { a, b } = this.found;
    const name = (i) => a.attention.tokens[i].label;
    const ends = (r, c) => [el("bdi", {}, name(r)), " → ", el("bdi", {}, name(c)), " "];
    const options = {
      rows: name,
      columns: name,
      tell: (r, c, value) => (value === undefined ? "" : [...ends(r, c), code(number(value, 4))]),
    };
    const [first, second] = [a, b].map((each) => each.attention.weights);
    const weights = { a: first, b: second, diff: second.map((row, r) => row.map((value, c) => value - first[r][c])) };
    for (const [side, figure] of Object.entries(this.pictures))
      figure.show(weights[side], { ...options, label: t(`compare.${side}`) });
  }

  #drawStream() {
    const [a, b] = SIDES.map((side) => this.found[side].residual.stream);
    const stage = (i) => () => (i ? t("layers.after", { layer: i - 1 }) : t("layers.start"));
    this.stream.show(a.slice(0, b.length).map((length, i) => [stage(i), length, b[i]]));
  }
}

// Rows of [name(), first, second]: two bars under each other, both numbers and what lies between; and the same as a table.
class Pairs {
  constructor(label, column, show, showDiff) {
    Object.assign(this, { showValue: show, showDiff, rows: [] });
    this.list = el("ol", { class: "pairs" });
    this.table = asTable(label, [column, ...COLUMNS], () =>
      this.rows.map(([name, a, b]) => [name(), show(a), show(b), showDiff(b - a)]),
    );
    this.element = el("div", {}, this.list, this.table);
  }

  show(rows) {
    this.rows = rows;
    const most = Math.max(...rows.flatMap(([, a, b]) => [a, b])) || 1;
    const track = (side, value) => {
      const bar = el("span", { style: { "inline-size": `${(100 * value) / most}%` } });
      return el("span", { class: `track ${side}`, "aria-hidden": "true" }, bar);
    };
    const item = ([name, a, b]) =>
      el(
        "li",
        { dataset: { a, b } },
        el("span", { class: "name" }, name()),
        el("span", {}, track("a", a), track("b", b)),
        el("span", { class: "share" }, el("span", {}, this.showValue(a)), el("span", {}, this.showValue(b))),
        this.showDiff(b - a),
      );
    this.list.replaceChildren(...rows.map(item));
    this.table.fill();
  }
}

const members = ({ first, count }) => Array.from({ length: count }, (_, i) => first + i);

const part = (name, ...children) =>
  el("section", { class: "card" }, el("h2", { say: name }), el("p", { say: `${name}.lead` }), children);

function picture(side) {
  const kind = side === "diff" ? { scale: "signed" } : { scale: "share", max: 1 };
  return matrix([], { ...kind, hidden: (r, c) => c > r, maxCell: 26, caption: () => t(`compare.${side}`) });
}

const key = () =>
  el(
    "p",
    { class: "line quiet" },
    SIDES.map((side) =>
      el("span", {}, el("i", { class: `key ${side}`, "aria-hidden": "true" }), el("span", { say: `compare.${side}` })),
    ),
  );

const moreKey = () =>
  el(
    "ul",
    { class: "steps" },
    ["first", "second"].map((which, i) =>
      el(
        "li",
        {},
        el("span", { class: `swatch ${which}-more by-4`, "aria-hidden": "true" }),
        el("span", { say: `compare.${SIDES[i]}.more` }),
      ),
    ),
  );
