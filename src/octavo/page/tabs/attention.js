// Attention: one head's pattern over the text, as arcs and as a matrix, and all heads by one of their statistics.
//
// Row t is how token t spreads its attention over the tokens up to itself. Rows sum to 1, and the sums are beside them.

import { fetchView } from "octavo/api";
import { el, field, foldable, setSentence, tNodes } from "octavo/dom";
import { arcs, strongest } from "octavo/figures/arcs";
import { matrix } from "octavo/figures/matrix";
import { HeadSelector } from "octavo/head_selector";
import { formatNumber, formatSignificant, t } from "octavo/i18n";
import { chip, lastWordIndex } from "octavo/tokens";

const STATISTICS = ["distant", "previous", "first", "itself", "distance", "entropy"];
const WEIGHT_STATISTICS = ["distant", "previous", "first", "itself"]; // mean attention weights, between 0 and 1
const FULL_SCALE_TOKENS = 64; // up to this length the strongest color is a weight of 1; see patternScale()
const MIN_SCALE = 0.02;

export const mount = (panel, app) => new Attention(panel, app);

class Attention {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    this.answer = null; // {tokens, weights, heads, layer, head, left_out, groups, sums}
    this.chosenRow = null; // the token whose attention is shown; at first that of the last word
    this.chosenText = null; // the text that this token belongs to
    this.selector = new HeadSelector("attention", app, () => this.update());
    this.statistic = el(
      "select",
      { id: "attention-statistic", onchange: () => this.#drawHeads() },
      STATISTICS.map((value) => el("option", { value, textKey: `attention.statistic.${value}` })),
    );
    this.headsMatrix = matrix([]);
    this.title = el("h2");
    this.habit = el("p");
    this.openingRule = el("p", { class: "quiet", textKey: "attention.opened" });
    this.leftOut = el("p", { class: "quiet" });
    this.arcsHolder = el("div");
    this.arcs = null; // the figure, from the first answer on
    this.pattern = matrix([]);
    const sideCard = el(
      "div",
      { class: "card" },
      el("h2", { textKey: "attention.which" }),
      el("div", { class: "row" }, this.selector.fields, field(this.statistic, "attention.statistic")),
      this.headsMatrix,
    );
    const caveat = el("p", { class: "caveat", textKey: "common.attention_caveat" });
    const side = el("div", { class: "side" }, sideCard, caveat);
    const headCards = el(
      "div",
      {},
      el("div", { class: "card" }, this.title, this.habit, this.openingRule, this.leftOut, this.arcsHolder),
      foldable(el("div", { class: "card" }, el("h2", { textKey: "attention.all" }), this.pattern)),
    );
    panel.append(el("div", { class: "sidebar-layout" }, side, headCards));
  }

  update() {
    return this.app.runTask(this.panel, () => this.#fetchAttention());
  }

  async #fetchAttention() {
    const { app, selector } = this;
    const text = { text: app.text, unknown: "skip" };
    const request = (head) => fetchView("attention", { ...text, ...head }, { replaces: "attention" });
    const fetchChosen = () => {
      selector.update(app.model.model, "attention");
      return request({ layer: selector.layer, head: selector.head });
    };
    const [attention, { groups }] = await Promise.all([
      // Without a head, the server chooses the one with the largest `distant`.
      app.head === null ? request(app.layer === null ? {} : { layer: app.layer }) : fetchChosen(),
      fetchView("tokens", text, { replaces: "attention tokens" }),
    ]);
    const { layer, head } = attention;
    selector.update(app.model.model, "attention", { layer, head });
    const T = attention.tokens.length;
    this.answer = {
      ...attention,
      groups: groups.filter((group) => group.first + group.count <= T),
      sums: attention.weights.map((row) => row.reduce((a, b) => a + b, 0)),
    };
    const isNewText = this.chosenText !== text.text;
    this.chosenRow = Math.min(app.position ?? this.#firstRow(app.head === null), T - 1);
    this.chosenText = text.text;
    setSentence(this.title, "attention.title", { layer, head });
    const { habit } = attention.heads.find((other) => other.layer === layer && other.head === head);
    setSentence(this.habit, `habit.${habit}`);
    this.openingRule.hidden = app.head !== null || app.layer !== null;
    this.leftOut.hidden = !this.answer.left_out;
    setSentence(this.leftOut, "common.left_out", { n: this.answer.left_out });
    this.#drawHeads();
    this.#drawPattern(isNewText);
    this.#drawArcs();
  }

  // The token that is chosen first: that of the last word, or that with the largest weight on a distant token.
  #firstRow(isServersChoice) {
    const { tokens, weights } = this.answer;
    if (!isServersChoice) return lastWordIndex(tokens);
    const distant = weights.map((row, t) => Math.max(0, ...row.slice(1, Math.max(1, t - 1))));
    const most = distant.indexOf(Math.max(...distant));
    return distant[most] ? most : lastWordIndex(tokens);
  }

  // ---- All heads

  #drawHeads() {
    const { answer, selector } = this;
    if (!answer) return;
    const { n_layer, n_head } = this.app.model.model;
    const name = this.statistic.value;
    const values = Array.from({ length: n_layer }, () => Array(n_head).fill(0));
    for (const statistics of answer.heads) values[statistics.layer][statistics.head] = statistics[name];
    this.headsMatrix.show(values, {
      scale: "sequential",
      max: WEIGHT_STATISTICS.includes(name) ? 1 : undefined,
      maxCell: 44,
      numbers: true,
      cursor: [answer.layer, answer.head],
      rows: (layer) => `h.${layer}`,
      caption: () => tNodes("attention.heads"),
      label: t("attention.which"),
      readout: (layer, head, value) =>
        t("attention.heads.cell", {
          layer,
          head,
          value: formatNumber(value, 3),
          statistic: t(`attention.statistic.${name}`),
          habit: t(`habit.${answer.heads.find((other) => other.layer === layer && other.head === head).habit}`),
        }),
      onPick: (layer, head) => {
        selector.choose(layer, head);
        this.update();
      },
    });
  }

  // ---- The chosen head

  #drawPattern(isNewText) {
    const { answer, chosenRow, pattern } = this;
    const max = patternScale(answer.weights);
    const tokenName = (i) => `${i} ${answer.tokens[i].label}`;
    pattern.show(answer.weights, {
      scale: "sequential",
      max,
      isCapped: max < 1,
      totals: answer.sums,
      rows: tokenName,
      columns: tokenName,
      isHidden: (row, column) => column > row,
      maxCell: 40,
      cursor: [chosenRow, isNewText ? this.#mostAttended(chosenRow) : Math.min(chosenRow, pattern.cursor[1])],
      caption: () => tNodes("attention.matrix"),
      label: t("attention.title", { layer: answer.layer, head: answer.head }),
      readout: (row, column, value) => this.#patternReadout(row, column, value),
      onCursorMove: (row) => this.#chooseRow(row),
    });
  }

  #patternReadout(row, column, value) {
    const ends = { from: this.#tokenNode(row), to: this.#tokenNode(column) };
    const share = el("b", { class: "exact" }, formatSignificant(value));
    const sum = el("b", { class: "sum" }, formatNumber(this.answer.sums[row], 3));
    return [
      column > row
        ? el("span", {}, tNodes("attention.future", ends))
        : el("span", { class: "pair" }, tNodes("attention.cell", { ...ends, share })),
      el("span", { class: "pair quiet" }, tNodes("attention.sum", { t: row, sum })),
    ];
  }

  #drawArcs() {
    const { tokens, groups, weights } = this.answer;
    const options = {
      chosen: this.chosenRow,
      caption: () => tNodes("attention.arcs"),
      onTokenEvent: (row) => {
        this.#chooseRow(row);
        this.pattern.moveTo(row, this.#mostAttended(row));
      },
      readout: (row) => [
        el("span", { class: "pair" }, tNodes("attention.arcs.at", { token: this.#tokenNode(row) })),
        ...strongest(weights[row], 6).map((column) =>
          el(
            "span",
            { class: "pair" },
            this.#tokenNode(column),
            " ",
            el("b", {}, formatNumber(weights[row][column], 3)),
          ),
        ),
      ],
    };
    if (this.arcs) this.arcs.show(tokens, groups, weights, options);
    else this.arcsHolder.append((this.arcs = arcs(tokens, groups, weights, options)));
  }

  #chooseRow(row) {
    if (row !== this.chosenRow) this.app.choose({ position: row });
    this.chosenRow = row;
    this.arcs?.choose(row);
  }

  #mostAttended(row) {
    return strongest(this.answer.weights[row], 1)[0] ?? 0;
  }

  // A token that is a part of a character is named with the whole character.
  #tokenNode(i) {
    const { groups, tokens } = this.answer;
    const group = groups.find(({ first, count }) => i >= first && i < first + count);
    const character = group?.count > 1 && el("bdi", {}, group.text);
    return el("span", {}, character, chip(tokens[i]), el("sub", {}, String(i)));
  }
}

// The attention weight of the strongest color. A long text has mostly small weights, so there it is the 99th percentile
// of the T²/2 visible cells.
function patternScale(weights) {
  const T = weights.length;
  if (T <= FULL_SCALE_TOKENS) return 1;
  const sorted = weights.flat().sort((a, b) => a - b);
  return Math.max(MIN_SCALE, sorted.at(-Math.ceil((T * T) / 200)));
}
