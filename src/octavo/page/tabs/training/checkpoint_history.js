// One sentence at every kept checkpoint of a run: a head's attention, a word's neighbors and the norm of the residual
// stream.
//
// Nothing is fetched until the user presses "Watch". Then the checkpoints are evaluated one after the other, each
// once, the newest first; checkpoints that training keeps later follow.

import { fetchModels, fetchView, isAbortError, requireTokenizable, requireWord } from "octavo/api";
import { el, field, setOptions, setSentence, textInput } from "octavo/dom";
import { attentionReadout } from "octavo/figures/attention_readout";
import { lineChart } from "octavo/figures/line_chart";
import { matrix } from "octavo/figures/matrix";
import { formatCount, t } from "octavo/i18n";

const REFRESH_TIME = 10_000; // milliseconds
const NEIGHBORS = 5;
const STATISTICS = ["previous", "first", "itself"];
const STREAM_SERIES = 6; // more can't be distinguished

export class CheckpointHistory {
  constructor(app) {
    this.app = app;
    this.models = []; // that belong to a run
    this.answers = new Map(); // step -> {attention, contributions}
    this.steps = []; // the steps of `answers`, sorted
    this.controller = null; // the AbortController of the requests, from "Watch" until "Stop watching"
    this.#createForm();
    this.#createFigures();
    this.element = el(
      "section",
      { class: "card history" },
      el("h2", { textKey: "history.title" }),
      el("p", { textKey: "history.lead" }),
      this.form,
      this.status,
      this.result,
      el(
        "p",
        { class: "caveat" },
        el("span", { textKey: "common.attention_caveat" }),
        " ",
        el("span", { textKey: "history.caveat" }),
      ),
    );
  }

  #createForm() {
    const restart = () => this.controller && this.watch();
    const onRunChange = () => {
      this.#offerHeads();
      restart();
    };
    this.run = el("select", { id: "history-run", onchange: onRunChange });
    this.text = textInput({ id: "history-text", maxlength: 400, onchange: restart });
    this.word = textInput({ id: "history-word", maxlength: 60, onchange: restart });
    this.layer = el("select", { id: "history-layer", onchange: restart });
    this.head = el("select", { id: "history-head", onchange: restart });
    const onclick = () => (this.controller ? this.stop() : this.watch());
    this.button = el("button", { type: "button", class: "main", textKey: "history.watch", onclick });
    this.status = el("p", { class: "quiet", role: "status", textKey: "history.cost" });
    const onsubmit = (event) => {
      event.preventDefault();
      this.watch();
    };
    this.form = el(
      "form",
      { class: "row", onsubmit },
      field(this.run, "history.run"),
      field(this.text, "history.text"),
      field(this.word, "common.word"),
      field(this.layer, "common.layer"),
      field(this.head, "common.head"),
      this.button,
    );
  }

  #createFigures() {
    const oninput = () => this.#drawStep();
    this.slider = el("input", { type: "range", id: "history-step", min: 0, max: 0, value: 0, oninput });
    this.stepName = el("output", { for: "history-step" });
    const chart = (caption, options = {}) =>
      lineChart({ x: [], series: [] }, { caption, logX: true, integerX: true, height: 220, ...options });
    this.attention = matrix([], { scale: "sequential", max: 1, isHidden: (r, c) => c > r, maxCell: 30 });
    this.statistics = chart(() => t("history.statistics"), { yRange: [0, 1] });
    this.stream = chart(() => t("history.stream"));
    this.neighbors = chart(() => t("history.neighbors", { word: this.word.value }));
    this.neighbors.hidden = true; // until there are neighbors: an empty logarithmic axis fails
    this.result = el(
      "div",
      { hidden: true },
      el(
        "div",
        { class: "scrub" },
        el("label", { for: "history-step", textKey: "history.step" }),
        this.slider,
        this.stepName,
      ),
      el("div", { class: "two-columns" }, this.attention, el("div", {}, this.statistics, this.stream)),
      this.neighbors,
    );
  }

  // After a change of model, text or language.
  update() {
    this.#setModels(this.app.models);
    const names = this.models.map(({ id }) => [id, id]);
    setOptions(this.run, names, this.run.value || this.app.model?.id);
    this.text.value ||= this.app.text.slice(0, 60);
    const firstWord = this.app.text.match(/\p{L}[\p{L}\p{M}]*/u)?.[0] ?? ""; // no sign, such as a parenthesis
    const hasCharacterTokens = /char|byte/.test(this.app.model?.tokenizer);
    this.word.value ||= hasCharacterTokens ? (Array.from(firstWord)[0] ?? "") : firstWord;
    this.form.hidden = !this.models.length;
    if (!this.models.length) setSentence(this.status, "history.none");
    this.#offerHeads();
    if (this.answers.size) this.#draw();
  }

  async watch() {
    this.stop();
    const controller = (this.controller = new AbortController());
    setSentence(this.button, "history.stop");
    this.answers = new Map();
    this.step = null;
    try {
      await this.#evaluateNewSteps(controller.signal);
      this.app.showError(this.element, null);
    } catch (error) {
      if (isAbortError(error)) return;
      this.stop();
      this.app.showError(this.element, error);
    }
  }

  stop() {
    this.controller?.abort();
    this.controller = null;
    clearTimeout(this.timer);
    setSentence(this.button, "history.watch");
    setSentence(this.status, this.models.length ? "history.cost" : "history.none");
  }

  #setModels(models) {
    this.models = models.filter(({ run, steps }) => run && steps.length);
  }

  #model() {
    return this.models.find(({ id }) => id === this.run.value);
  }

  #offerHeads() {
    const model = this.#model();
    if (!model) return;
    const numbers = (n) => Array.from({ length: n }, (_, i) => [i, i]);
    setOptions(this.layer, numbers(model.model.n_layer));
    setOptions(this.head, numbers(model.model.n_head));
  }

  // ---- Data

  async #evaluateNewSteps(signal) {
    const model = this.#model();
    const word = this.word.value;
    const text = { text: this.text.value, unknown: "skip" };
    const head = { layer: Number(this.layer.value), head: Number(this.head.value) };
    await requireTokenizable(text.text, model);
    const newSteps = model.steps.filter((step) => !this.answers.has(step)).reverse();
    for (const [i, step] of newSteps.entries()) {
      setSentence(this.status, "history.evaluating", { step, at: i + 1, count: newSteps.length });
      await this.#evaluateStep({ model: model.id, step, ...text }, head, signal);
      if (this.answers.size) this.#draw();
    }
    if (newSteps.length && word) {
      await requireWord(model, word);
      const options = { model: model.id, step: model.steps.at(-1), word, top: NEIGHBORS };
      this.neighborHistory = await fetchView("neighbors", options, { signal });
      this.#drawNeighbors();
    }
    setSentence(this.status, "history.watching", { count: this.answers.size });
    this.timer = setTimeout(() => this.#refresh(signal), REFRESH_TIME);
  }

  async #evaluateStep(options, head, signal) {
    try {
      const attention = await fetchView("attention", { ...options, ...head }, { signal });
      const position = attention.tokens.length - 1;
      const contributions = await fetchView("contributions", { ...options, position }, { signal });
      signal.throwIfAborted();
      this.answers.set(options.step, { attention, contributions });
    } catch (error) {
      if (error.status !== 404) throw error; // training has deleted that checkpoint
    }
  }

  // Looks for checkpoints that training has kept meanwhile.
  async #refresh(signal) {
    try {
      this.#setModels((await fetchModels()).models);
      if (!signal.aborted) await this.#evaluateNewSteps(signal);
    } catch (error) {
      if (!isAbortError(error)) this.app.showError(this.element, error);
    }
  }

  // ---- Drawing

  // A slider at the last step stays at the last step.
  #draw() {
    const isAtEnd = !this.step || this.step === this.steps.at(-1);
    this.steps = [...this.answers.keys()].sort((a, b) => a - b);
    const last = this.steps.length - 1;
    this.slider.max = last;
    this.slider.value = isAtEnd ? last : this.steps.indexOf(this.step);
    this.result.hidden = false;
    this.#drawStatistics();
    this.#drawStream();
    this.#drawStep();
    if (this.neighborHistory) this.#drawNeighbors();
  }

  #drawStatistics() {
    const heads = this.steps.map((step) => {
      const { heads, layer, head } = this.answers.get(step).attention;
      return heads.find((statistics) => statistics.layer === layer && statistics.head === head);
    });
    const series = STATISTICS.map((name) => ({ label: t(`history.${name}`), values: heads.map((head) => head[name]) }));
    this.statistics.show({ x: this.steps, series }, { xName: t("train.step") });
  }

  #drawStream() {
    const streams = this.steps.map((step) => this.answers.get(step).contributions.stream);
    const last = streams[0].length - 1;
    const spread = Array.from({ length: STREAM_SERIES }, (_, i) => Math.round((i * last) / (STREAM_SERIES - 1)));
    const series = [...new Set(spread)].map((stage) => ({
      label: stage ? t("layers.after", { layer: stage - 1 }) : t("layers.start"),
      values: streams.map((stream) => stream[stage]),
    }));
    this.stream.show({ x: this.steps, series }, { xName: t("train.step") });
  }

  #drawStep() {
    this.step = this.steps[this.slider.value];
    this.stepName.textContent = formatCount(this.step);
    this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
    const { tokens, weights, layer, head } = this.answers.get(this.step).attention;
    this.attention.show(weights, {
      rows: (i) => tokens[i].label,
      columns: (i) => tokens[i].label,
      caption: () => t("history.attention", { layer, head, step: this.step }),
      readout: (r, c, value) => attentionReadout(tokens, r, c, value),
    });
  }

  #drawNeighbors() {
    const { neighbors, history } = this.neighborHistory;
    this.neighbors.hidden = !history.length;
    const series = neighbors.map(({ token }, i) => ({
      label: token.label,
      values: history.map((point) => point.neighbors[i]),
    }));
    this.neighbors.show({ x: history.map((point) => point.step), series }, { xName: t("train.step") });
  }
}
