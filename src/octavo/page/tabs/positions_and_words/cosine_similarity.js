// Two words during training: the cosine of their rows of wte, compared with random pairs of tokens that are about
// as frequent.

import { fetchView, replacedError, tokenizeWord } from "octavo/api";
import { el, field, setSentence, textInput } from "octavo/dom";
import { lineChart } from "octavo/figures/line_chart";
import { formatNumber, t } from "octavo/i18n";

const EXAMPLES = [
  ["king", "queen"],
  ["a", "e"],
];

export class CosineSimilarity {
  constructor(app) {
    this.app = app;
    this.hasUserPair = false; // the user has typed a word
    this.lastRequest = 0; // the number of the last call of `load`; earlier calls that still wait are dropped
    this.first = textInput({ id: "similarity-first", size: 10, maxlength: 100 });
    this.second = textInput({ id: "similarity-second", size: 10, maxlength: 100 });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.cosine = el("p");
    this.chart = null; // from the first answer with a history on
    this.chartHolder = el("div");
    this.bandNote = el("p", { class: "quiet" });
    this.result = el("div", {}, this.cosine, this.chartHolder, this.bandNote);
    this.card = el(
      "section",
      { class: "card", "aria-labelledby": "similarity-title" },
      el("h2", { id: "similarity-title", textKey: "words.similarity.title" }),
      el("p", { textKey: "words.similarity.does" }),
      this.#createForm(),
      el("div", {}, this.problem),
      this.result,
      el("p", { class: "caveat", textKey: "words.similarity.caveat" }),
    );
  }

  // The result always belongs to the pair that was submitted, not to what has been typed since.
  async load() {
    const { first, second } = this;
    const request = ++this.lastRequest;
    const stopIfReplaced = () => {
      if (request !== this.lastRequest) throw replacedError();
    };
    if (!this.hasUserPair) {
      const example = await this.#chooseExample();
      stopIfReplaced();
      if (this.hasUserPair) throw replacedError();
      [first.value, second.value] = example;
    }
    const pair = [first.value, second.value];
    const sentence = await this.#findProblem(pair);
    stopIfReplaced();
    const options = { word: pair[0], against: pair[1], top: 1 };
    const answer = sentence ? null : await fetchView("neighbors", options, { replaces: "similarity" });
    stopIfReplaced();
    this.problem.hidden = !sentence;
    this.result.hidden = Boolean(sentence);
    if (sentence) return void setSentence(this.problem, ...sentence);
    this.result.classList.toggle("stale", first.value !== pair[0] || second.value !== pair[1]);
    this.#draw(pair, answer);
  }

  #createForm() {
    const submit = () => this.app.runTask(this.card, () => this.load());
    const onsubmit = (event) => {
      event.preventDefault();
      submit();
    };
    const oninput = () => {
      this.hasUserPair = true;
      this.result.classList.add("stale"); // until the answer for the new pair is there
    };
    return el(
      "form",
      { class: "row", onsubmit, onchange: submit, oninput },
      field(this.first, "common.word"),
      field(this.second, "words.similarity.with"),
      el("button", { textKey: "words.show" }),
    );
  }

  // Why a pair has no cosine, as the [key, values] of a sentence, or null. If the first word is several tokens, the
  // server uses the mean of their rows; here that is rejected, because its curve would look like that of a row.
  async #findProblem(pair) {
    if (!pair.every(Boolean)) return ["words.similarity.empty"];
    for (const word of pair) {
      const tokens = await tokenizeWord(this.app.model, word);
      if (tokens?.length === 1) continue;
      const [other] = await this.#chooseExample();
      return tokens
        ? ["words.similarity.several_tokens", { word, n: tokens.length, other }]
        : ["words.similarity.unknown", { word, other }];
    }
    return null;
  }

  // Two words that are one token each: an example, else the two most frequent tokens that are words.
  async #chooseExample() {
    for (const pair of EXAMPLES) {
      const tokens = await Promise.all(pair.map((word) => tokenizeWord(this.app.model, word)));
      if (tokens.every((list) => list?.length === 1)) return pair;
    }
    const { tokens } = await fetchView("projection");
    return tokens
      .map((token) => token.label.replace(/^␣/u, ""))
      .filter((label) => /^\p{L}+$/u.test(label))
      .slice(0, 2);
  }

  #draw([a, b], { against, control: controlDescription, history }) {
    setSentence(this.cosine, "words.similarity.now", { a, b, cosine: formatNumber(against.cosine, 3) });
    // `controlDescription` is a sentence with the number of random pairs; a point's `control` is their mean cosine.
    const pairCount = controlDescription?.match(/\d+/)?.[0] ?? "";
    const hasBand = history.some((point) => point.control !== null);
    if (!history.length) setSentence(this.bandNote, "words.similarity.none");
    else if (hasBand) setSentence(this.bandNote, "words.similarity.band", { count: pairCount });
    else setSentence(this.bandNote, "words.similarity.noband");
    this.chartHolder.hidden = !history.length;
    if (!history.length) return;
    const column = (name) => history.map((point) => point[name]);
    const line = { label: t("words.similarity.cosine", { a, b }), values: column("against") };
    const controlLine = {
      label: t("words.similarity.control"),
      color: "--series-6",
      values: column("control"),
      band: [column("control_low"), column("control_high")],
    };
    const steps = column("step");
    const data = { x: steps, series: hasBand ? [line, controlLine] : [line] };
    const options = {
      xName: t("words.similarity.steps"),
      logX: steps.at(-1) > 30 * steps[0],
      height: 260,
      label: t("words.similarity.title"),
    };
    if (this.chart) this.chart.show(data, options);
    else this.chartHolder.append((this.chart = lineChart(data, options)));
  }
}
