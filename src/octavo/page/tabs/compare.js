// Compare: two models, or two checkpoints of one, on the same text. This file fetches the answers of both and shows
// their losses; tabs/compare/difference.js shows the differences. A checkpoint compared with itself differs by exactly
// zero.

import { fetchView, requireTokenizable } from "octavo/api";
import { el, field, scrollRegion, setOptions, setSentence, signedNumberElement, stackedField } from "octavo/dom";
import { formatNumber, formatPercent, t } from "octavo/i18n";
import { TokenDistribution } from "octavo/sampling";
import { Difference, largestDifference, SIDES } from "octavo/tabs/compare/difference";

const METRICS = [
  ["compare.loss", "loss", 4],
  ["compare.perplexity", "perplexity", 3],
  ["compare.bpb", "bits_per_byte", 4],
];

export const mount = (panel, app) => new Compare(panel, app);

class Compare {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    // {a, b, isComparable}; a and b: {options, checkpoint, config, surprisal, nextToken, groups, contributions,
    // probabilities, attention}; isComparable: both models have the same tokens. `attention` is there only then.
    this.answers = null;
    this.lastRequest = 0; // the number of the last call of #compare; earlier calls that still wait are dropped
    this.sides = { a: this.#createChooser("a"), b: this.#createChooser("b") };
    this.text = el("textarea", { id: "compare-text", rows: 2, dir: "auto", spellcheck: "false", maxlength: 20000 });
    this.verdict = el("p", { class: "verdict", role: "status" });
    this.note = el("p", { class: "zero" });
    this.metrics = el("tbody");
    this.difference = new Difference(() => this.#runTask(() => this.#changeHead()));
    this.result = el("div", { hidden: true }, this.#createSummary(), this.difference.element);
    panel.append(el("p", { class: "lead", textKey: "compare.lead" }), this.#createForm(), this.result);
  }

  // After a change of models, text or language.
  update() {
    const { app, sides, text } = this;
    const isFirst = !sides.a.model.options.length;
    const models = app.models.map(({ id }) => [id, id]);
    for (const side of SIDES) {
      setOptions(sides[side].model, models, sides[side].model.value || app.model?.id);
      this.#offerSteps(side);
    }
    if (isFirst && app.model) this.#chooseFirstPair(models);
    text.value ||= app.text;
    if (this.answers || !text.value) return this.#draw();
    return this.#runTask(() => this.#compare());
  }

  #runTask(task) {
    return this.app.runTask(this.panel, task);
  }

  // ---- Elements

  #createChooser(side) {
    const model = el("select", { id: `compare-${side}-model`, onchange: () => this.#offerSteps(side) });
    const step = el("select", { id: `compare-${side}-step` });
    const row = el("div", { class: "row" }, field(model, "header.model"), field(step, "common.step"));
    return { model, step, element: el("fieldset", {}, el("legend", { textKey: `compare.${side}` }), row) };
  }

  #createForm() {
    const { sides, text } = this;
    const onsubmit = (event) => {
      event.preventDefault();
      if (text.value) this.#runTask(() => this.#compare());
      else text.focus();
    };
    return el(
      "form",
      { class: "card", onsubmit },
      el("div", { class: "two-columns" }, sides.a.element, sides.b.element),
      stackedField(text, "compare.text"),
      el(
        "div",
        { class: "buttons" },
        el("button", { class: "main", type: "submit", textKey: "compare.go" }),
        el("button", { type: "button", textKey: "compare.swap", onclick: () => this.#swap() }),
      ),
    );
  }

  #createSummary() {
    const columns = ["compare.metric", "compare.a", "compare.b", "compare.diff"];
    const header = columns.map((key) => el("th", { scope: "col", textKey: key }));
    const table = el("table", { class: "plain" }, el("thead", {}, el("tr", {}, header)), this.metrics);
    return el(
      "section",
      { class: "card" },
      el("h2", { textKey: "compare.summary" }),
      this.verdict,
      this.note,
      scrollRegion("compare.summary", table),
    );
  }

  // ---- The two checkpoints

  #modelOf(side) {
    return this.app.models.find(({ id }) => id === this.sides[side].model.value);
  }

  // The empty value is the checkpoint that the server serves.
  #offerSteps(side) {
    const { steps = [], step: served = null } = this.#modelOf(side) ?? {};
    const others = steps.filter((step) => step !== served).map((step) => [step, t("header.step.at", { step })]);
    const first = served === null ? t("header.step.this") : t("header.step.served", { step: served });
    setOptions(this.sides[side].step, [["", first], ...others]);
  }

  // Chooses what is compared first: the checkpoint in the middle of the steps with the served one. A model with at most
  // one step is compared with another model.
  #chooseFirstPair(models) {
    const { steps, id } = this.app.model;
    const { a, b } = this.sides;
    if (steps.length > 1) a.step.value = steps[Math.floor(steps.length / 2)];
    else if (models.length > 1) b.model.value = models.find(([other]) => other !== id)[0];
    this.#offerSteps("b");
  }

  // The model and step of a side, as options of `fetchView`.
  #selection(side) {
    const { model, step } = this.sides[side];
    return { model: model.value, step: step.value === "" ? null : Number(step.value) };
  }

  #swap() {
    const [a, b] = SIDES.map((side) => this.#selection(side));
    for (const [side, { model, step }] of Object.entries({ a: b, b: a })) {
      this.sides[side].model.value = model;
      this.#offerSteps(side);
      this.sides[side].step.value = step ?? "";
    }
    if (this.answers) this.#runTask(() => this.#compare());
  }

  // ---- Data

  async #compare() {
    const request = ++this.lastRequest;
    setSentence(this.verdict, "compare.evaluating");
    const answers = await this.#fetchAnswers().catch((error) => {
      if (request === this.lastRequest) {
        this.answers = null;
        this.result.hidden = true; // it belongs to another text
      }
      throw error;
    });
    if (request !== this.lastRequest) return;
    this.answers = answers;
    this.result.hidden = false;
    this.#draw();
  }

  async #fetchAnswers() {
    const [a, b] = await Promise.all(SIDES.map((side) => this.#fetchSide(side)));
    const tokens = ({ surprisal }) => JSON.stringify(surprisal.tokens);
    const isComparable = tokens(a) === tokens(b) && a.probabilities.length === b.probabilities.length;
    const answers = { a, b, isComparable };
    if (isComparable) await this.#fetchAttention(answers);
    return answers;
  }

  async #fetchSide(side) {
    const model = this.#modelOf(side);
    const options = { ...this.#selection(side), text: this.text.value, unknown: "skip" };
    await requireTokenizable(options.text, model);
    const views = ["surprisal", "next_token", "tokens"].map((view) => fetchView(view, options));
    const [surprisal, nextToken, { groups }] = await Promise.all(views);
    const position = nextToken.tokens.length - 1;
    const contributions = await fetchView("contributions", { ...options, position });
    const checkpoint = [options.model, options.step ?? model.step].join(" ");
    const probabilities = new TokenDistribution(nextToken.logits).byId();
    return {
      options,
      checkpoint,
      config: model.model,
      groups,
      surprisal,
      nextToken,
      contributions,
      probabilities,
    };
  }

  // Fetches the attention of the chosen head in both models.
  async #fetchAttention({ a, b }) {
    const head = this.difference.updateHeadSelects({ a, b });
    const request = ({ options }) => fetchView("attention", { ...options, ...head });
    [a.attention, b.attention] = await Promise.all([a, b].map(request));
  }

  async #changeHead() {
    await this.#fetchAttention(this.answers);
    this.#draw();
  }

  // ---- Drawing

  #draw() {
    const { answers, verdict, note, difference } = this;
    if (!answers) return;
    const { a, b, isComparable } = answers;
    this.metrics.replaceChildren(...METRICS.map(([key, name, digits]) => metricRow(key, name, digits, a, b)));
    const [first, second] = [a.surprisal.bits_per_byte, b.surprisal.bits_per_byte];
    const better = first === second ? "none" : first < second ? "a" : "b";
    const share = formatPercent(1 - Math.min(first, second) / Math.max(first, second));
    setSentence(verdict, `compare.verdict.${better}`, { share });
    const isEqual = isComparable && largestDifference(answers) === 0;
    const isSame = a.checkpoint === b.checkpoint;
    note.hidden = isComparable && !isEqual;
    setSentence(note, !isComparable ? "compare.unlike" : isSame ? "compare.same" : "compare.equal");
    difference.element.hidden = !isComparable;
    if (isComparable) difference.show(answers);
  }
}

function metricRow(key, name, digits, a, b) {
  const [first, second] = [a.surprisal[name], b.surprisal[name]];
  const difference = signedNumberElement(second - first, digits);
  const cells = [formatNumber(first, digits), formatNumber(second, digits), difference];
  const cellNodes = cells.map((cell) => el("td", {}, cell));
  return el("tr", {}, el("th", { scope: "row", textKey: key }), cellNodes);
}
