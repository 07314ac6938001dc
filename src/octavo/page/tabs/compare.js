// Compare: two models, or two checkpoints of one, read the same text. This file fetches the answers of both and shows
// their losses; tabs/compare/difference.js shows the differences. A checkpoint compared with itself differs by exactly
// zero.

import { fetchView, requireReadable } from "octavo/api";
import { el, field, say, scrollRegion, setOptions, signedNumber, stackedField } from "octavo/dom";
import { number, percent, t } from "octavo/i18n";
import { TokenDistribution } from "octavo/sampling";
import { Difference, largestDifference, SIDES } from "octavo/tabs/compare/difference";

const MEASURES = [
  ["compare.loss", "loss", 4],
  ["compare.perplexity", "perplexity", 3],
  ["compare.bpb", "bits_per_byte", 4],
];

export function mount(panel, app) {
  // {a, b, isComparable}; a and b: {options, checkpoint, shape, surprisal, nextToken, groups, contributions, attention,
  // probabilities}; isComparable: both models have the same tokens.
  let answers = null;
  let lastRequest = 0; // the number of the last call of `compare`; earlier calls that still wait are dropped

  // ---- Elements

  const sides = { a: createChooser("a"), b: createChooser("b") };
  const text = el("textarea", { id: "compare-text", rows: 2, dir: "auto", spellcheck: "false", maxlength: 20000 });
  const form = el(
    "form",
    { class: "card", onsubmit: submit },
    el("div", { class: "two-columns" }, sides.a.element, sides.b.element),
    stackedField(text, "compare.text"),
    el(
      "div",
      { class: "buttons" },
      el("button", { class: "main", type: "submit", say: "compare.go" }),
      el("button", { type: "button", say: "compare.swap", onclick: swap }),
    ),
  );
  const verdict = el("p", { class: "verdict", role: "status" });
  const note = el("p", { class: "zero" });
  const measures = el("tbody");
  const columns = ["compare.measure", "compare.a", "compare.b", "compare.diff"];
  const header = columns.map((key) => el("th", { scope: "col", say: key }));
  const measureTable = el("table", { class: "plain" }, el("thead", {}, el("tr", {}, header)), measures);
  const difference = new Difference(() => app.runTask(panel, fetchAttention));
  const summary = el(
    "section",
    { class: "card" },
    el("h2", { say: "compare.summary" }),
    verdict,
    note,
    scrollRegion("compare.summary", measureTable),
  );
  const result = el("div", { hidden: true }, summary, difference.element);
  panel.append(el("p", { class: "lead", say: "compare.lead" }), form, result);

  // ---- The two checkpoints

  function createChooser(side) {
    const model = el("select", { id: `compare-${side}-model`, onchange: () => offerSteps(side) });
    const step = el("select", { id: `compare-${side}-step` });
    const row = el("div", { class: "row" }, field(model, "head.model"), field(step, "common.step"));
    return { model, step, element: el("fieldset", {}, el("legend", { say: `compare.${side}` }), row) };
  }

  const modelOf = (side) => app.models.find(({ id }) => id === sides[side].model.value);

  // The empty value is the checkpoint that the server serves.
  function offerSteps(side) {
    const { steps = [], step: served = null } = modelOf(side) ?? {};
    const others = steps.filter((step) => step !== served).map((step) => [step, t("head.step.at", { step })]);
    const first = served === null ? t("head.step.this") : t("head.step.served", { step: served });
    setOptions(sides[side].step, [["", first], ...others]);
  }

  // The model and step of a side, as options of `fetchView`.
  function selection(side) {
    const { model, step } = sides[side];
    return { model: model.value, step: step.value === "" ? null : Number(step.value) };
  }

  function swap() {
    const [a, b] = SIDES.map(selection);
    for (const [side, { model, step }] of Object.entries({ a: b, b: a })) {
      sides[side].model.value = model;
      offerSteps(side);
      sides[side].step.value = step ?? "";
    }
    if (answers) app.runTask(panel, compare);
  }

  // ---- Data

  function submit(event) {
    event.preventDefault();
    if (text.value) app.runTask(panel, compare);
    else text.focus();
  }

  async function compare() {
    const request = ++lastRequest;
    say(verdict, "compare.reading");
    const [a, b] = await Promise.all(SIDES.map(fetchSide)).catch((error) => {
      if (request === lastRequest) {
        answers = null;
        result.hidden = true; // it belongs to another text
      }
      throw error;
    });
    if (request !== lastRequest) return;
    const tokens = ({ surprisal }) => JSON.stringify(surprisal.tokens);
    const isComparable = tokens(a) === tokens(b) && a.probabilities.length === b.probabilities.length;
    answers = { a, b, isComparable };
    result.hidden = false;
    if (isComparable) await fetchAttention();
    draw();
  }

  async function fetchSide(side) {
    const model = modelOf(side);
    const options = { ...selection(side), text: text.value, unknown: "skip" };
    await requireReadable(options.text, model);
    const views = ["surprisal", "next_token", "tokens"].map((view) => fetchView(view, options));
    const [surprisal, nextToken, { groups }] = await Promise.all(views);
    const position = nextToken.tokens.length - 1;
    const contributions = await fetchView("contributions", { ...options, position });
    const checkpoint = [options.model, options.step ?? model.step].join(" ");
    const probabilities = new TokenDistribution(nextToken.logits).byId();
    return {
      options,
      checkpoint,
      shape: model.model,
      groups,
      surprisal,
      nextToken,
      contributions,
      probabilities,
    };
  }

  // Fetches the attention of the chosen head in both models.
  async function fetchAttention() {
    const head = difference.selectedHead(answers);
    const request = (side) => fetchView("attention", { ...answers[side].options, ...head });
    const [a, b] = await Promise.all(SIDES.map(request));
    answers.a.attention = a;
    answers.b.attention = b;
    draw();
  }

  // ---- Drawing

  function draw() {
    if (!answers) return;
    const { a, b, isComparable } = answers;
    measures.replaceChildren(...MEASURES.map(([key, name, digits]) => measureRow(key, name, digits, a, b)));
    const [first, second] = [a.surprisal.bits_per_byte, b.surprisal.bits_per_byte];
    const better = first === second ? "none" : first < second ? "a" : "b";
    const share = percent(1 - Math.min(first, second) / Math.max(first, second));
    say(verdict, `compare.verdict.${better}`, { share });
    const largest = isComparable ? largestDifference(answers) : null;
    const isSame = a.checkpoint === b.checkpoint;
    note.hidden = isComparable && largest > 0;
    say(note, !isComparable ? "compare.unlike" : isSame ? "compare.same" : "compare.equal");
    note.dataset.largest = largest;
    difference.element.hidden = !isComparable;
    if (isComparable) difference.show(answers);
  }

  function measureRow(key, name, digits, a, b) {
    const [first, second] = [a.surprisal[name], b.surprisal[name]];
    const cells = [number(first, digits), number(second, digits), signedNumber(second - first, digits)];
    const cellNodes = cells.map((cell) => el("td", {}, cell));
    return el("tr", {}, el("th", { scope: "row", say: key }), cellNodes);
  }

  return {
    async update() {
      const isFirst = !sides.a.model.options.length;
      const models = app.models.map(({ id }) => [id, id]);
      for (const side of SIDES) {
        setOptions(sides[side].model, models, sides[side].model.value || app.model?.id);
        offerSteps(side);
      }
      if (isFirst && app.model) chooseFirstPair(models);
      text.value ||= app.text;
      draw();
    },
  };

  // An early checkpoint beside the served one; for a model without checkpoints, the next model.
  function chooseFirstPair(models) {
    const { steps, id } = app.model;
    if (steps.length > 1) sides.a.step.value = steps[Math.floor(steps.length / 2)];
    else if (models.length > 1) sides.b.model.value = models.find(([other]) => other !== id)[0];
    offerSteps("b");
  }
}
