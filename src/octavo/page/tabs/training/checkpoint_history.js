// One sentence along training: a head's attention, a word's neighbours and the stream's length, at every kept step.
//
// Nothing is asked until one wants to watch. Then the steps are read one after the other, each once, the newest first;
// steps that training keeps meanwhile are read as they come.

import { isAborted, lens, models, mustRead, refusal } from "octavo/api";
import { lineChart, matrix } from "octavo/pictures/bars";
import { offer } from "octavo/controls";
import { PIECES, readable } from "octavo/tabs/positions_and_words/position";
import { code, count, el, field, number, say, t } from "octavo/dom";

const LOOK_AGAIN = 10_000; // milliseconds
const NEIGHBORS = 5;
const HABITS = ["previous", "first", "itself"];

export class Probe {
  constructor(app) {
    this.app = app;
    this.served = []; // models that belong to a run
    this.seen = new Map(); // step -> {attention, residual}
    this.watching = null; // what stops it
    const again = () => this.watching && this.watch();
    this.run = el("select", {
      id: "probe-run",
      onchange: () => {
        this.#bounds();
        again();
      },
    });
    this.text = el("input", {
      id: "probe-text",
      type: "text",
      dir: "auto",
      maxlength: 400,
      spellcheck: "false",
      onchange: again,
    });
    this.word = el("input", {
      id: "probe-word",
      type: "text",
      dir: "auto",
      maxlength: 60,
      spellcheck: "false",
      onchange: again,
    });
    this.layer = el("select", { id: "probe-layer", onchange: again });
    this.head = el("select", { id: "probe-head", onchange: again });
    this.button = el("button", {
      type: "button",
      class: "main",
      say: "probe.watch",
      onclick: () => (this.watching ? this.rest() : this.watch()),
    });
    this.status = el("p", { class: "quiet", role: "status", say: "probe.cost" });
    this.slider = el("input", {
      type: "range",
      id: "probe-step",
      min: 0,
      max: 0,
      value: 0,
      oninput: () => this.#drawStep(),
    });
    this.at = el("output", { for: "probe-step" });
    const chart = (caption, options) =>
      lineChart({ x: [], series: [] }, { caption: () => t(caption), logX: true, whole: true, height: 220, ...options });
    this.picture = matrix([], { scale: "share", max: 1, hidden: (r, c) => c > r, maxCell: 30 });
    this.habits = chart("probe.habits", { yRange: [0, 1] });
    this.stream = chart("probe.stream");
    this.near = chart("probe.near");
    this.near.set({ caption: () => t("probe.near", { word: this.word.value }) });
    this.near.hidden = true; // until there are neighbors: nothing has no logarithm
    this.result = el(
      "div",
      { hidden: true },
      el("div", { class: "scrub" }, el("label", { for: "probe-step", say: "probe.step" }), this.slider, this.at),
      el("div", { class: "two" }, this.picture, el("div", {}, this.habits, this.stream)),
      this.near,
    );
    this.form = el(
      "form",
      {
        class: "row",
        onsubmit: (event) => {
          event.preventDefault();
          this.watch();
        },
      },
      field(this.run, "probe.run"),
      field(this.text, "probe.text"),
      field(this.word, "words.word"),
      field(this.layer, "walk.layer"),
      field(this.head, "walk.head"),
      this.button,
    );
    this.element = el(
      "section",
      { class: "card probe" },
      el("h2", { say: "probe.title" }),
      el("p", { say: "probe.lead" }),
      this.form,
      this.status,
      this.result,
      el("p", { class: "caveat" }, el("span", { say: "attention.caveat" }), " ", el("span", { say: "probe.caveat" })),
    );
  }

  // Another model, text or language.
  update() {
    this.served = this.app.models.filter((each) => each.run && each.steps.length);
    offer(
      this.run,
      this.served.map((each) => [each.id, each.id]),
      this.run.value || this.app.model?.id,
    );
    this.text.value ||= this.app.text.slice(0, 60);
    const word = this.app.text.trim().split(/\s+/)[0];
    this.word.value ||= /char|byte/.test(this.app.model?.tokenizer) ? (Array.from(word)[0] ?? "") : word;
    this.form.hidden = !this.served.length;
    if (!this.served.length) say(this.status, "probe.none");
    this.#bounds();
    if (this.seen.size) this.#draw();
  }

  rest() {
    this.watching?.abort();
    this.watching = null;
    clearTimeout(this.timer);
    say(this.button, "probe.watch");
    say(this.status, this.served.length ? "probe.cost" : "probe.none");
  }

  async watch() {
    this.rest();
    const control = (this.watching = new AbortController());
    say(this.button, "probe.rest");
    this.seen = new Map();
    this.step = null;
    try {
      await this.#read(control.signal);
      this.app.problem(this.element, null);
    } catch (error) {
      if (isAborted(error)) return;
      this.rest();
      this.app.problem(this.element, error);
    }
  }

  #bounds() {
    const chosen = this.#model();
    if (!chosen) return;
    const upTo = (n) => Array.from({ length: n }, (_, i) => [i, i]);
    offer(this.layer, upTo(chosen.model.n_layer));
    offer(this.head, upTo(chosen.model.n_head));
  }

  #model = () => this.served.find((each) => each.id === this.run.value);

  async #read(signal) {
    const { id: model, steps } = this.#model();
    const [text, word, layer, head] = [
      this.text.value,
      this.word.value,
      Number(this.layer.value),
      Number(this.head.value),
    ];
    await mustRead(text, this.#model());
    const fresh = steps.filter((step) => !this.seen.has(step)).reverse();
    for (const [at, step] of fresh.entries()) {
      say(this.status, "probe.reading", { step, at: at + 1, count: fresh.length });
      try {
        const attention = await lens("attention", { model, step, text, layer, head, unknown: "skip" }, { signal });
        const residual = await lens(
          "contributions",
          { model, step, text, unknown: "skip", position: attention.tokens.length - 1 },
          { signal },
        );
        signal.throwIfAborted();
        this.seen.set(step, { attention, residual });
      } catch (error) {
        if (error.status !== 404) throw error; // training has let go of that step
      }
      if (this.seen.size) this.#draw();
    }
    if (fresh.length && word) {
      const pieces = await readable(this.#model(), word);
      if (!pieces || pieces.length > PIECES) throw refusal("error.word");
      this.neighbors = await lens("neighbors", { model, step: steps.at(-1), word, top: NEIGHBORS }, { signal });
      this.#drawNear();
    }
    say(this.status, "probe.watching", { count: this.seen.size });
    this.timer = setTimeout(() => this.#again(signal), LOOK_AGAIN);
  }

  // Whether training has kept another step meanwhile.
  async #again(signal) {
    try {
      this.served = (await models()).models.filter((each) => each.run && each.steps.length);
      if (!signal.aborted) await this.#read(signal);
    } catch (error) {
      if (!isAborted(error)) this.app.problem(this.element, error);
    }
  }

  #draw() {
    const steps = [...this.seen.keys()].sort((a, b) => a - b);
    const last = !this.step || this.step === this.steps?.at(-1);
    this.steps = steps;
    this.slider.max = steps.length - 1;
    this.slider.value = last ? steps.length - 1 : steps.indexOf(this.step);
    this.result.hidden = false;
    const every = steps.map((step) => this.seen.get(step));
    const mine = ({ attention }) =>
      attention.heads.find((each) => each.layer === attention.layer && each.head === attention.head);
    const xName = t("train.step");
    this.habits.show(
      {
        x: steps,
        series: HABITS.map((name) => ({ label: t(`probe.${name}`), values: every.map((each) => mine(each)[name]) })),
      },
      { xName },
    );
    const stages = every[0].residual.stream.length;
    const shown = [...new Set([0, 1, 2, 3, 4, 5].map((i) => Math.round((i * (stages - 1)) / 5)))]; // no more lines than can be told apart
    this.stream.show(
      {
        x: steps,
        series: shown.map((stage) => ({
          label: stage ? t("layers.after", { layer: stage - 1 }) : t("layers.start"),
          values: every.map((each) => each.residual.stream[stage]),
        })),
      },
      { xName },
    );
    this.#drawStep();
    if (this.neighbors) this.#drawNear();
  }

  #drawStep() {
    this.step = this.steps[this.slider.value];
    this.at.textContent = count(this.step);
    this.slider.setAttribute("aria-valuetext", this.at.textContent);
    const { tokens, weights, layer, head } = this.seen.get(this.step).attention;
    const name = (i) => tokens[i].label;
    this.picture.show(weights, {
      rows: name,
      columns: name,
      caption: () => t("probe.attention", { layer, head, step: this.step }),
      tell: (r, c, value) =>
        value === undefined ? "" : [el("bdi", {}, name(r)), " → ", el("bdi", {}, name(c)), " ", code(number(value, 4))],
    });
  }

  #drawNear() {
    const { neighbors, history } = this.neighbors;
    this.near.hidden = !history.length;
    this.near.show(
      {
        x: history.map((each) => each.step),
        series: neighbors.map(({ token }, i) => ({
          label: token.label,
          values: history.map((each) => each.neighbors[i]),
        })),
      },
      { xName: t("train.step") },
    );
  }
}
