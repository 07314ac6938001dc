// The candidates for the token at a position, as bars of their probabilities.
//
// The logits of the position are fetched once; the sampling controls are applied to them here. The bars are always
// those of the same tokens, only their lengths change.

import { el, setLabel, setSentence } from "octavo/dom";
import { barLength } from "octavo/figures/bars";
import { pictureTools } from "octavo/figures/picture_tools";
import { dataTable } from "octavo/figures/table";
import { formatNumber, formatPercent, t } from "octavo/i18n";
import { TokenDistribution } from "octavo/sampling";
import { labelChip } from "octavo/tokens";

const FEW_BARS = matchMedia("(max-width: 560px)").matches ? 8 : 12;
const MANY_BARS = 40;
const MAX_TABLE_ROWS = 200;
const COLUMNS = ["col.token", "col.id", "col.logit", "col.model_probability", "col.sampling_probability"];

export class NextTokenBars {
  // `onChoose({id, label})` is called when the user chooses a bar.
  constructor(controls, onChoose) {
    Object.assign(this, { controls, onChoose, position: null, distribution: null, showsMany: false });
    this.title = el("h3", { tabindex: "-1" });
    this.actualNote = el("p");
    this.list = el("ol", { class: "token-bars" });
    this.total = el("p", { class: "quiet" });
    this.more = el("button", { type: "button", class: "small", onclick: () => this.#toggleMany() });
    const content = () => ({ columns: COLUMNS.map((key) => t(key)), rows: this.#tableRows() });
    const label = () => t("next_token.table");
    this.table = pictureTools(dataTable(content, { label }), label, () => [this.title, this.list]);
    this.element = el(
      "section",
      { class: "next-token", hidden: true },
      this.title,
      this.actualNote,
      this.list,
      el("div", { class: "tight-row" }, this.total, this.more),
      this.table,
    );
  }

  // Shows a position of the text: {index, isEnd, actual, nextToken}, see tabs/playground.js.
  show(position) {
    const hadFocus = this.list.contains(document.activeElement);
    if (position.nextToken !== this.position?.nextToken)
      this.distribution = position.nextToken && new TokenDistribution(position.nextToken.logits);
    this.position = position;
    this.element.hidden = false;
    if (position.isEnd) setSentence(this.title, "next_token.end");
    else setSentence(this.title, "next_token.at", { place: position.index });
    for (const element of [this.list, this.total, this.more, this.table, this.controls.candidates])
      element.hidden = !this.distribution;
    if (!this.distribution) return void setSentence(this.actualNote, "next_token.first");
    if (position.actual) {
      const { rank, probability } = this.distribution.lookUp(position.actual.id);
      const token = labelChip(position.actual.label);
      setSentence(this.actualNote, "next_token.actual", { token, share: formatPercent(probability), rank });
    } else setSentence(this.actualNote, "next_token.hint");
    this.#buildBars();
    this.draw();
    if (hadFocus) this.title.focus({ preventScroll: true }); // the bar that was chosen no longer exists
  }

  // Builds a bar for each of the most likely tokens, the actual one, and all others together.
  #buildBars() {
    const { distribution, position } = this;
    const count = Math.min(this.showsMany ? MANY_BARS : FEW_BARS, distribution.size);
    const actualIndex = position.actual ? distribution.order.indexOf(position.actual.id) : -1;
    const indices = [...Array(count).keys(), ...(actualIndex >= count ? [actualIndex] : [])];
    this.bars = indices.map((index) => this.#buildBar(index, index === actualIndex));
    const name = el("span");
    this.others = { name, ...barParts(name) };
    this.others.element = el("li", { class: "others" }, el("div", {}, this.others.parts));
    this.list.replaceChildren(...this.bars.map((bar) => bar.element), this.others.element);
    this.more.hidden = distribution.size <= FEW_BARS;
    setSentence(this.more, this.showsMany ? "next_token.less" : "next_token.more");
  }

  // `index`: in the order of descending probability, from 0.
  #buildBar(index, isActual) {
    const id = this.distribution.order[index];
    const label = this.#label(id);
    const bar = barParts(labelChip(label));
    const onclick = () => this.onChoose({ id, label });
    const button = el("button", { type: "button", "aria-current": isActual ? "true" : null, onclick }, bar.parts);
    if (isActual) button.append(el("small", { textKey: "next_token.here" }));
    const element = el("li", { dataset: { id }, class: isActual ? "actual" : null }, button);
    return { index, label, button, element, ...bar };
  }

  // Sets the lengths of the bars by the sampling controls.
  draw() {
    if (!this.distribution) return;
    const { probabilities, covered } = this.distribution.applySettings(this.controls.settings);
    this.probabilities = probabilities;
    const counts = { candidates: probabilities.length, all: this.distribution.size, share: formatPercent(covered) };
    setSentence(this.controls.candidates, "sampling.candidates", counts);
    let total = 0;
    let otherCount = probabilities.length;
    for (const bar of this.bars) {
      const probability = probabilities[bar.index] ?? 0;
      const canBeSampled = bar.index < probabilities.length;
      bar.element.hidden = !canBeSampled;
      if (canBeSampled) otherCount--;
      total += probability;
      setBar(bar, probability);
      setLabel(bar.button, "next_token.choose", { token: bar.label, share: bar.share.textContent });
    }
    this.others.element.hidden = !otherCount;
    setBar(this.others, otherCount ? Math.max(0, 1 - total) : 0);
    setSentence(this.others.name, "next_token.others", { count: otherCount });
    setSentence(this.total, "next_token.shown", { share: formatPercent(otherCount ? total : 1) });
    this.table.fill();
  }

  // The most likely tokens, {id, label}.
  get mostLikely() {
    return Array.from(this.distribution.order.subarray(0, 6), (id) => ({ id, label: this.#label(id) }));
  }

  #tableRows() {
    const { distribution, probabilities } = this;
    return Array.from(distribution.order.subarray(0, MAX_TABLE_ROWS), (id, index) => [
      el("bdi", {}, this.#label(id)),
      String(id),
      formatNumber(distribution.logits[id], 3),
      formatPercent(distribution.probabilities[index], 2),
      formatPercent(probabilities[index] ?? 0, 2),
    ]);
  }

  #label(id) {
    const { nextToken, actual } = this.position;
    return nextToken.vocabulary[id] ?? (id === actual?.id ? actual.label : `#${id}`);
  }

  #toggleMany() {
    this.showsMany = !this.showsMany;
    this.#buildBars();
    this.draw();
  }
}

function barParts(name) {
  const bar = el("span");
  const share = el("span", { class: "share", dir: "ltr" });
  const track = el("span", { class: "track", "aria-hidden": "true" }, bar);
  return { bar, share, parts: [el("span", { class: "name" }, name), track, share] };
}

function setBar({ bar, share, element }, probability) {
  element.dataset.probability = probability;
  bar.style.setProperty("inline-size", barLength(probability));
  const isTiny = probability > 0 && probability < 0.0005;
  share.textContent = isTiny ? `<${formatPercent(0.0005, 2)}` : formatPercent(probability);
}
