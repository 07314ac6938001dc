// The surprisal of each token of a text: a bar under the token, taller for more, in bits or by rank.
//
// The bar is a box shadow, so no letter moves: padding, margins or borders in running text would break the joining of
// Arabic and Indic letters.

import { fetchView, requireTokenizable } from "octavo/api";
import { el, setSentence, stackedField, tNodes } from "octavo/dom";
import { pictureTools } from "octavo/figures/picture_tools";
import { dataTable } from "octavo/figures/table";
import { formatCount, formatNumber, formatPercent, t } from "octavo/i18n";
import { labelChip, markLineBreak, positionsOf, tokenSpans, unknownCharacters } from "octavo/tokens";

const MAX_TOKENS = 3000; // on screen
const BIT_THRESHOLDS = [1, 2, 4, 7, 11]; // a token's level, from 0 to 5: the number of these that it reaches
const RANK_THRESHOLDS = [1, 3, 10, 100, 1000]; // by rank: the number of these that the rank exceeds
const COLUMNS = ["col.position", "col.token", "col.bits", "col.probability", "col.rank", "col.prediction"];

export class Surprisal {
  constructor(app) {
    this.app = app;
    this.text = el("textarea", { id: "surprisal-text", rows: 3, dir: "auto", spellcheck: "false", maxlength: 50000 });
    this.average = el("p", { class: "sum" });
    this.notes = el("p", { class: "quiet" });
    this.textHolder = el("div", { class: "scrolling-text" });
    this.readout = el("p", { class: "token-readout", role: "status" });
    this.legend = el("ul", { class: "level-legend" });
    this.unitChooser = unitChooser(() => this.draw());
    const content = () => ({ columns: COLUMNS.map((key) => t(key)), rows: this.#tableRows() });
    const label = () => t("surprisal.table");
    this.table = pictureTools(dataTable(content, { label }), label, () => [this.average, this.textHolder, this.legend]);
    this.result = el(
      "div",
      { hidden: true },
      this.average,
      this.unitChooser,
      this.textHolder,
      this.readout,
      el("p", { class: "quiet", textKey: "surprisal.legend" }),
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
      el("h2", { textKey: "surprisal.title" }),
      el("p", { textKey: "surprisal.lead" }),
      el(
        "form",
        { onsubmit },
        stackedField(this.text, "surprisal.text"),
        el("p", {}, el("button", { type: "submit", textKey: "surprisal.measure" })),
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
    await requireTokenizable(text, this.app.model).catch((error) => {
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
    const showsBits = this.unitChooser.querySelector("input:checked").value === "bits";
    this.#drawText(showsBits);
    const { loss, perplexity, bits_per_byte } = this.answer;
    setSentence(this.average, "surprisal.sum", {
      bits: formatNumber(loss / Math.LN2, 2),
      loss: formatNumber(loss, 4),
      perplexity: formatNumber(perplexity, 2),
      bpb: formatNumber(bits_per_byte, 3),
    });
    this.#drawNotes();
    setSentence(this.readout, "tokens.hint");
    this.table.fill();
  }

  #drawText(showsBits) {
    const { answer, groups } = this;
    const thresholds = showsBits ? BIT_THRESHOLDS : RANK_THRESHOLDS;
    const rankLevel = (rank) => RANK_THRESHOLDS.filter((threshold) => rank > threshold).length;
    const levelOf = (i) => (showsBits ? surprisalLevel(answer.surprisal[i]) : rankLevel(answer.rank[i]));
    const counts = Array(thresholds.length + 1).fill(0);
    const decorate = (span, group) => {
      markLineBreak(span, group);
      const levels = positionsOf(group).filter(Boolean).map(levelOf); // the first token has no surprisal
      for (const level of levels) counts[level]++;
      // A character of several tokens shows its most surprising one.
      if (levels.length) span.classList.add("surprisal-bar", `level-${Math.max(...levels)}`);
    };
    const onSpanEvent = (group) => this.#showReadout(group);
    this.tokenText = tokenSpans(answer.tokens, groups, { labelKey: "surprisal.text", decorate, onSpanEvent });
    this.textHolder.replaceChildren(this.tokenText);
    const item = (tokenCount, level) =>
      el(
        "li",
        {},
        el("span", { class: `surprisal-bar level-${level}`, "aria-hidden": "true" }, "  "),
        el("span", {}, showsBits ? bitRange(level) : rankRange(level)),
        el("small", {}, `× ${formatCount(tokenCount)}`),
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
    const { tokens, surprisal, rank, predictions } = this.answer;
    const sentence = (i) => {
      const token = labelChip(tokens[i].label);
      if (!i) return tNodes("tokens.first", { token });
      return tNodes("surprisal.one", {
        token,
        bits: formatNumber(bitsAt(this.answer, i), 2),
        share: formatPercent(Math.exp(-surprisal[i])),
        rank: rank[i],
        prediction: labelChip(predictions[i]),
      });
    };
    this.readout.replaceChildren(...positionsOf(group).map((i) => el("span", {}, sentence(i), " ")));
  }

  #tableRows() {
    const { tokens, surprisal, rank, predictions } = this.answer;
    const row = (token, i) => [
      String(i),
      el("bdi", {}, token.label),
      formatNumber(bitsAt(this.answer, i), 2),
      formatPercent(Math.exp(-surprisal[i]), 2),
      String(rank[i]),
      el("bdi", {}, predictions[i]),
    ];
    return tokens.slice(1, MAX_TOKENS).map((token, i) => row(token, i + 1));
  }
}

// The level of a token's bar, from 0 to 5, by its surprisal in nats.
export const surprisalLevel = (nats) =>
  BIT_THRESHOLDS.filter((threshold) => (nats ?? 0) / Math.LN2 >= threshold).length;

const bitsAt = ({ surprisal }, i) => (surprisal[i] ?? 0) / Math.LN2;

// "bits" or "rank".
function unitChooser(onchange) {
  const choice = (value, i) => {
    const input = el("input", { type: "radio", name: "surprisal-by", value, checked: !i, onchange });
    return el("label", { class: "check" }, input, el("span", { textKey: `surprisal.${value}` }));
  };
  const legend = el("legend", { textKey: "surprisal.by" });
  return el("fieldset", { class: "tight-row plain" }, legend, ["bits", "rank"].map(choice));
}

function bitRange(level) {
  if (!level) return t("surprisal.below", { bits: BIT_THRESHOLDS[0] });
  if (level === BIT_THRESHOLDS.length) return t("surprisal.above", { bits: BIT_THRESHOLDS.at(-1) });
  return t("surprisal.from", { low: BIT_THRESHOLDS[level - 1], high: BIT_THRESHOLDS[level] });
}

function rankRange(level) {
  if (!level) return t("surprisal.best");
  if (level === RANK_THRESHOLDS.length) return t("surprisal.beyond", { rank: RANK_THRESHOLDS.at(-1) });
  return t("surprisal.ranks", { low: RANK_THRESHOLDS[level - 1] + 1, high: RANK_THRESHOLDS[level] });
}
