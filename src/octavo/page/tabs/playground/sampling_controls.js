// The sliders for temperature, top-k and top-p.

import { el, foldable } from "octavo/dom";
import { formatCount, formatNumber, t } from "octavo/i18n";

const TOP_K = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000];

// `onChange()` is called after each move of a slider. `.settings` are those of `TokenDistribution.applySettings`.
export class SamplingControls {
  constructor(onChange) {
    this.onChange = onChange;
    this.topKValues = [...TOP_K, 0]; // 0: all tokens
    const slider = (name, range) => new Slider(name, range, () => this.#update());
    this.temperature = slider("temperature", { min: 0, max: 2, step: 0.05, value: 0.8 });
    this.topK = slider("topk", { min: 1, max: this.topKValues.length, step: 1, value: this.topKValues.length });
    this.topP = slider("topp", { min: 0.05, max: 1, step: 0.01, value: 1 });
    this.candidates = el("p", { class: "candidates" }); // the number of tokens that remain; filled by NextTokenBars
    const sliders = el(
      "div",
      { class: "sliders", role: "group", "aria-labelledby": "sampling-title" },
      this.temperature.element,
      this.topK.element,
      this.topP.element,
      this.candidates,
      el("button", { type: "button", class: "small", textKey: "sampling.own", onclick: () => this.reset() }),
    );
    const title = el("h3", { id: "sampling-title", textKey: "sampling.title" });
    this.element = foldable(el("section", { class: "sampling" }, title, sliders));
  }

  get settings() {
    const topK = this.topKValues[this.topK.value - 1];
    return { temperature: this.temperature.value, topK, topP: this.topP.value };
  }

  // The settings as fields of a request to the API.
  get requestOptions() {
    const { temperature, topK, topP } = this.settings;
    return { temperature, top_k: topK, top_p: topP };
  }

  // The slider of top-k goes up to the size of the vocabulary.
  setVocabularySize(size) {
    const { topK } = this.settings;
    this.topKValues = [...TOP_K.filter((k) => k < size), 0];
    this.topK.input.max = this.topKValues.length;
    this.topK.input.value = this.topKValues.indexOf(topK) + 1 || this.topKValues.length;
    this.showValues();
  }

  // Returns to the model's own probabilities: temperature 1 and all tokens.
  reset() {
    this.temperature.input.value = this.topP.input.value = 1;
    this.topK.input.value = this.topKValues.length;
    this.#update();
  }

  showValues() {
    const { temperature, topK, topP } = this.settings;
    this.temperature.show(formatNumber(temperature, 2));
    this.topK.show(topK ? formatCount(topK) : t("sampling.all"));
    this.topP.show(formatNumber(topP, 2));
  }

  #update() {
    this.showValues();
    this.onChange();
  }
}

class Slider {
  constructor(name, range, oninput) {
    const id = `sampling-${name}`;
    this.input = el("input", { type: "range", id, name, "aria-describedby": `${id}-help`, ...range, oninput });
    this.input.value = range.value; // again: `range` may set it before min and max, to which the browser clamps it
    this.output = el("output", { for: id });
    this.element = el(
      "div",
      { class: "slider" },
      el("label", { for: id, textKey: `sampling.${name}` }),
      this.output,
      this.input,
      el("small", { id: `${id}-help`, textKey: `sampling.${name}.help` }),
    );
  }

  get value() {
    return Number(this.input.value);
  }

  show(text) {
    this.output.textContent = text;
    this.input.setAttribute("aria-valuetext", text);
  }
}
