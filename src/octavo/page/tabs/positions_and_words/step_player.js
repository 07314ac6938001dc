// A slider over the steps of a run's checkpoints, with a button that plays them one after the other.

import { el, setSentence } from "octavo/dom";
import { t } from "octavo/i18n";

const STEP_TIME = 750; // milliseconds for each checkpoint while it plays

export class StepPlayer {
  // `onStep()` is called after each change of `.index`, and awaited before the next step is played.
  constructor(id, onStep) {
    this.onStep = onStep;
    this.steps = [null]; // of the kept checkpoints; [null] for a model without any
    this.index = 0;
    this.playback = null; // while the steps play: an object that identifies this playback
    const oninput = () => {
      this.stop();
      this.#goTo(Number(this.slider.value));
    };
    this.slider = el("input", { id, type: "range", min: 0, step: 1, oninput });
    this.stepName = el("output", { class: "mono", for: id });
    const onclick = () => (this.playback ? this.stop() : this.#play());
    this.button = el("button", { type: "button", class: "small", textKey: "words.play", onclick });
    this.element = el(
      "div",
      { class: "scrub" },
      el("label", { for: id, class: "quiet", textKey: "words.training" }),
      this.button,
      this.slider,
      this.stepName,
    );
  }

  get step() {
    return this.steps[this.index];
  }

  get lastStep() {
    return this.steps.at(-1);
  }

  // Offers these steps; begins at `step` if it is one of them, else at the last.
  setSteps(steps, step) {
    this.steps = steps;
    this.index = steps.includes(step) ? steps.indexOf(step) : steps.length - 1;
    this.element.hidden = steps.length < 2;
    this.slider.max = steps.length - 1;
  }

  // Shows the current step on the slider and beside it.
  draw() {
    this.slider.value = this.index;
    if (this.step !== null) this.stepName.textContent = t("header.step.at", { step: this.step });
    this.slider.setAttribute("aria-valuetext", this.stepName.textContent);
  }

  stop() {
    this.playback = null;
    setSentence(this.button, "words.play");
  }

  async #goTo(index) {
    this.index = index;
    await this.onStep();
  }

  async #play() {
    setSentence(this.button, "common.stop");
    const started = (this.playback = {});
    if (this.index === this.steps.length - 1) this.index = -1; // start again
    while (this.playback === started && this.index < this.steps.length - 1) {
      await this.#goTo(this.index + 1);
      await new Promise((resolve) => setTimeout(resolve, STEP_TIME));
    }
    if (this.playback === started) this.stop();
  }
}
