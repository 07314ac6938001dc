// The samples that runs generated during training, at the step of a slider, or the last step before it.

import { el } from "octavo/dom";
import { formatCount, language, t } from "octavo/i18n";

export class Samples {
  constructor() {
    this.steps = [];
    this.slider = el("input", {
      type: "range",
      id: "sample-step",
      min: 0,
      max: 0,
      step: 1,
      value: 0,
      oninput: () => this.#draw(),
    });
    this.stepName = el("output", { for: "sample-step" });
    this.list = el("div", { class: "samples" });
    this.sliderRow = el(
      "div",
      { class: "scrub" },
      el("label", { for: "sample-step", textKey: "common.step" }),
      this.slider,
      this.stepName,
    );
    this.lead = el("p", { textKey: "train.samples.lead" });
    this.emptyNote = el("p", { class: "quiet", textKey: "train.samples.none" });
    this.element = el(
      "section",
      { class: "card" },
      el("h2", { textKey: "train.samples" }),
      this.lead,
      this.sliderRow,
      this.emptyNote,
      this.list,
    );
  }

  // runs: [{info, samples}]. A slider at its end stays at the end; any other stays at its step.
  show(runs) {
    const isAtEnd = Number(this.slider.value) >= this.steps.length - 1;
    const step = this.steps[this.slider.value];
    this.runs = runs;
    this.steps = [...new Set(runs.flatMap((run) => run.samples.map((sample) => sample.step)))].sort((a, b) => a - b);
    const last = this.steps.length - 1;
    this.slider.max = Math.max(0, last);
    this.slider.value = isAtEnd || step === undefined ? last : this.steps.findLastIndex((earlier) => earlier <= step);
    this.sliderRow.hidden = this.lead.hidden = this.steps.length < 2;
    this.emptyNote.hidden = this.steps.length > 0;
    this.#draw();
  }

  #draw() {
    const step = this.steps[this.slider.value];
    this.stepName.textContent = step === undefined ? "" : formatCount(step);
    this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
    const samples = this.runs
      .map(({ info, samples }) => ({ run: info.name, ...samples.findLast((sample) => sample.step <= step) }))
      .filter((sample) => "text" in sample);
    const content = JSON.stringify([language.code, samples]);
    if (content === this.content) return; // unchanged elements keep the user's scroll position and selection
    this.content = content;
    this.list.replaceChildren(...samples.map(sampleElement));
  }
}

function sampleElement({ run, step, text }) {
  const title = t("train.sample.at", { run, step: formatCount(step) });
  const properties = { class: "sample", dir: "auto", tabindex: "0", role: "region", "aria-label": title };
  return el("div", {}, el("h3", {}, title), el("pre", properties, String(text)));
}
