// The surprisal of each token of a text: a bar under the token, taller for more, in bits or by rank.
//
// The bar is a background, so no letter moves: padding, margins or borders in running text would break the joining of
// Arabic and Indic letters.

import { fetchView, requireReadable } from "octavo/api";
import { el, say, stackedField, tNodes } from "octavo/dom";
import { count, number, percent, t } from "octavo/i18n";
import { dataTable } from "octavo/pictures/table";
import { labelChip, markLineBreak, positionsOf, tokenSpans, unknownCharacters } from "octavo/tokens";

const MAX_TOKENS = 3000; // on screen
const BIT_EDGES = [1, 2, 4, 7, 11]; // a token's level, from 0 to 5, is the number of edges that it reaches
const RANK_EDGES = [1, 3, 10, 100, 1000]; // ... or that its rank exceeds
const COLUMNS = ["col.position", "col.token", "col.bits", "col.probability", "col.rank", "col.guess"];

export class Surprisal {
  constructor(app) {
    this.app = app;
    this.text = el("textarea", { id: "surprisal-text", rows: 3, dir: "auto", spellcheck: "false", maxlength: 50000 });
    this.average = el("p", { class: "sum" });
    this.notes = el("p", { class: "quiet" });
    this.textHolder = el("div", { class: "scrolling-text" });
    this.readout = el("p", { class: "token-readout", role: "status" });
    this.legend = el("ul", { class: "level-legend" });
    this.measure = measureChooser(() => this.draw());
    const content = () => ({ columns: COLUMNS.map((key) => t(key)), rows: this.#tableRows() });
    this.table = dataTable(content, { label: () => t("surprisal.table") });
    this.result = el(
      "div",
      { hidden: true },
      this.average,
      this.measure,
      this.textHolder,
      this.readout,
      el("p", { class: "quiet", say: "surprisal.legend" }),
      this.legend,
      this.notes,
      this.table,
    );
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.text.value) app.runTask(this.element, () => this.#fetch());
    };
    this.element = el(
      "section",
      { class: "card surprisal" },
      el("h2", { say: "surprisal.title" }),
      el("p", { say: "surprisal.lead" }),
      el(
        "form",
        { onsubmit },
        stackedField(this.text, "surprisal.text"),
        el("p", {}, el("button", { type: "submit", say: "surprisal.measure" })),
      ),
      this.result,
    );
  }

  // After a change of model, step or language: a result is fetched again, but not for another model.
  async update(isOtherModel) {
    if (isOtherModel && !this.text.value) this.text.value = this.app.text;
    if (isOtherModel) this.answer = null;
    this.result.hidden = !this.answer;
    if (this.answer) await this.app.runTask(this.element, () => this.#fetch());
  }

  async #fetch() {
    const text = this.text.value;
    const options = { text, unknown: "skip" };
    await requireReadable(text, this.app.model).catch((error) => {
      this.result.hidden = true; // it belongs to another text
      throw error;
    });
    const [answer, { groups }] = await Promise.all([
      fetchView("surprisal", options, { replaces: "surprisal" }),
      fetchView("tokens", options),
    ]);
    this.answer = answer;
    this.groups = groups.filter((group) => group.first + group.count <= MAX_TOKENS);
    this.unknown = unknownCharacters(text, groups);
    this.result.hidden = false;
    this.draw();
  }

  draw() {
    if (!this.answer) return;
    const isByBits = this.measure.querySelector("input:checked").value === "bits";
    this.#drawText(isByBits);
    const { loss, perplexity, bits_per_byte } = this.answer;
    say(this.average, "surprisal.sum", {
      bits: number(loss / Math.LN2, 2),
      loss: number(loss, 4),
      perplexity: number(perplexity, 2),
      bpb: number(bits_per_byte, 3),
    });
    this.#drawNotes();
    say(this.readout, "tokens.hint");
    this.table.fill();
  }

  #drawText(isByBits) {
    const { answer, groups } = this;
    const edges = isByBits ? BIT_EDGES : RANK_EDGES;
    const levelOf = (i) =>
      edges.filter((edge) => (isByBits ? bitsAt(answer, i) >= edge : answer.rank[i] > edge)).length;
    const counts = Array(edges.length + 1).fill(0);
    const decorate = (span, group) => {
      markLineBreak(span, group);
      const levels = positionsOf(group).filter(Boolean).map(levelOf); // the first token has no surprisal
      for (const level of levels) counts[level]++;
      // A character of several tokens shows its most surprising one.
      if (levels.length) span.classList.add("surprisal-bar", `level-${Math.max(...levels)}`);
    };
    const onPick = (_, group) => this.#showReadout(group);
    this.tokenText = tokenSpans(answer.tokens, groups, { labelKey: "surprisal.text", decorate, onPick });
    this.textHolder.replaceChildren(this.tokenText);
    const item = (tokenCount, level) =>
      el(
        "li",
        {},
        el("span", { class: `surprisal-bar level-${level}`, "aria-hidden": "true" }, "  "),
        el("span", {}, isByBits ? bitRange(level) : rankRange(level)),
        el("small", {}, `× ${count(tokenCount)}`),
      );
    this.legend.replaceChildren(...counts.map(item));
  }

  #drawNotes() {
    const { tokens, block_size } = this.answer;
    const notes = [];
    if (tokens.length > block_size) notes.push(t("surprisal.windows", { block: block_size }));
    if (this.unknown) notes.push(t("text.left_out", { characters: this.unknown }));
    if (tokens.length > MAX_TOKENS) notes.push(t("surprisal.cut", { count: MAX_TOKENS }));
    this.notes.replaceChildren(notes.join(" "));
  }

  #showReadout(group) {
    this.tokenText.spans.forEach((span, i) => span.classList.toggle("chosen", this.groups[i] === group));
    const { tokens, surprisal, rank, guesses } = this.answer;
    const sentence = (i) => {
      const token = labelChip(tokens[i].label);
      if (!i) return tNodes("tokens.first", { token });
      return tNodes("surprisal.one", {
        token,
        bits: number(bitsAt(this.answer, i), 2),
        share: percent(Math.exp(-surprisal[i])),
        rank: rank[i],
        guess: labelChip(guesses[i]),
      });
    };
    this.readout.replaceChildren(...positionsOf(group).map((i) => el("span", {}, sentence(i), " ")));
  }

  #tableRows() {
    const { tokens, surprisal, rank, guesses } = this.answer;
    const row = (token, i) => [
      String(i),
      el("bdi", {}, token.label),
      number(bitsAt(this.answer, i), 2),
      percent(Math.exp(-surprisal[i]), 2),
      String(rank[i]),
      el("bdi", {}, guesses[i]),
    ];
    return tokens.slice(1, MAX_TOKENS).map((token, i) => row(token, i + 1));
  }
}

const bitsAt = ({ surprisal }, i) => (surprisal[i] ?? 0) / Math.LN2;

// "bits" or "rank".
function measureChooser(onchange) {
  const choice = (value, i) => {
    const input = el("input", { type: "radio", name: "surprisal-by", value, checked: !i, onchange });
    return el("label", { class: "check" }, input, el("span", { say: `surprisal.${value}` }));
  };
  const legend = el("legend", { say: "surprisal.by" });
  return el("fieldset", { class: "line plain" }, legend, ["bits", "rank"].map(choice));
}

function bitRange(level) {
  if (!level) return t("surprisal.below", { bits: BIT_EDGES[0] });
  if (level === BIT_EDGES.length) return t("surprisal.above", { bits: BIT_EDGES.at(-1) });
  return t("surprisal.from", { low: BIT_EDGES[level - 1], high: BIT_EDGES[level] });
}

function rankRange(level) {
  if (!level) return t("surprisal.best");
  if (level === RANK_EDGES.length) return t("surprisal.beyond", { rank: RANK_EDGES.at(-1) });
  return t("surprisal.ranks", { low: RANK_EDGES[level - 1] + 1, high: RANK_EDGES[level] });
}
