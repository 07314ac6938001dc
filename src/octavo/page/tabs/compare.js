// Compare: two checkpoints read one text. What each made of it is asked for here; `octavo/difference` shows what lies
// between. Of a checkpoint with itself, all of that is zero, and the page says so.

import { lens, mustRead } from "octavo/api";
import { Difference, SIDES } from "octavo/tabs/compare/difference";
import { offer, scrolled, signed, stacked } from "octavo/controls";
import { probabilities } from "octavo/sampling";
import { el, field, number, percent, say, t } from "octavo/dom";

const MEASURES = [
  ["compare.loss", "loss", 4],
  ["compare.perplexity", "perplexity", 3],
  ["compare.bpb", "bits_per_byte", 4],
];

export function mount(panel, app) {
  const sides = { a: chooser("a"), b: chooser("b") };
  let found = null; // {a, b: each {options, score, next, reading, residual, attention, p, shape}, alike}
  let asked = 0; // times; only the last answer counts

  const text = el("textarea", { id: "compare-text", rows: 2, dir: "auto", spellcheck: "false", maxlength: 20000 });
  const form = el(
    "form",
    { class: "card", onsubmit: submitted },
    el("div", { class: "two" }, sides.a.element, sides.b.element),
    stacked(text, "compare.text"),
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
  const head = columns.map((key) => el("th", { scope: "col", say: key }));
  const difference = new Difference(() => app.trying(panel, attend));
  const result = el(
    "div",
    { hidden: true },
    el(
      "section",
      { class: "card" },
      el("h2", { say: "compare.summary" }),
      verdict,
      note,
      scrolled("compare.summary", el("table", { class: "plain" }, el("thead", {}, el("tr", {}, head)), measures)),
    ),
    difference.element,
  );
  panel.append(el("p", { class: "lead", say: "compare.lead" }), form, result);

  // ---- What is chosen

  function chooser(side) {
    const model = el("select", { id: `compare-${side}-model`, onchange: () => steps(side) });
    const step = el("select", { id: `compare-${side}-step` });
    const row = el("div", { class: "row" }, field(model, "head.model"), field(step, "train.sample.step"));
    return { model, step, element: el("fieldset", {}, el("legend", { say: `compare.${side}` }), row) };
  }

  const described = (side) => app.models.find((each) => each.id === sides[side].model.value);

  function steps(side) {
    const { steps: kept = [], step: served = null } = described(side) ?? {};
    const others = kept.filter((step) => step !== served).map((step) => [step, t("head.step.at", { step })]);
    const first = served === null ? t("head.step.this") : t("head.step.served", { step: served });
    offer(sides[side].step, [["", first], ...others]);
  }

  // The model and step of a side, as the lens wants to hear them.
  function chosen(side) {
    const { model, step } = sides[side];
    return { model: model.value, step: step.value === "" ? null : Number(step.value) };
  }

  function swap() {
    const [a, b] = SIDES.map(chosen);
    for (const [side, { model, step }] of Object.entries({ a: b, b: a })) {
      sides[side].model.value = model;
      steps(side);
      sides[side].step.value = step ?? "";
    }
    if (found) app.trying(panel, compare);
  }

  // ---- Asking

  function submitted(event) {
    event.preventDefault();
    if (text.value) app.trying(panel, compare);
    else text.focus();
  }

  async function compare() {
    const mine = ++asked;
    say(verdict, "compare.reading");
    const [a, b] = await Promise.all(SIDES.map(read)).catch((error) => {
      if (mine === asked) [found, result.hidden] = [null, true]; // what stands there is of another text
      throw error;
    });
    if (mine !== asked) return;
    const cut = ({ score }) => JSON.stringify(score.tokens);
    found = { a, b, alike: cut(a) === cut(b) && a.p.length === b.p.length };
    result.hidden = false;
    if (found.alike) await attend();
    draw();
  }

  async function read(side) {
    const { model: shape, step: served } = described(side);
    const options = { ...chosen(side), text: text.value, unknown: "skip" };
    await mustRead(options.text, described(side));
    const views = ["surprisal", "next_token", "tokens"].map((view) => lens(view, options));
    const [score, next, reading] = await Promise.all(views);
    const residual = await lens("contributions", { ...options, position: next.tokens.length - 1 });
    const which = [options.model, options.step ?? served].join(" ");
    return { options, which, shape, score, next, reading, residual, p: probabilities(next.logits) };
  }

  // The head that is chosen, in both.
  async function attend() {
    const head = difference.head(found);
    const [a, b] = await Promise.all(SIDES.map((side) => lens("attention", { ...found[side].options, ...head })));
    Object.assign(found.a, { attention: a });
    Object.assign(found.b, { attention: b });
    draw();
  }

  // ---- Drawing

  function draw() {
    if (!found) return;
    const { a, b, alike } = found;
    measures.replaceChildren(
      ...MEASURES.map(([key, name, digits]) => {
        const values = [a.score[name], b.score[name]].map((value) => el("td", {}, number(value, digits)));
        const between = el("td", {}, signed(b.score[name] - a.score[name], digits));
        return el("tr", {}, el("th", { scope: "row", say: key }), values, between);
      }),
    );
    const [low, high] = [a.score.bits_per_byte, b.score.bits_per_byte].sort((x, y) => x - y);
    const better = low === high ? "none" : a.score.bits_per_byte === low ? "a" : "b";
    say(verdict, `compare.verdict.${better}`, { share: percent(1 - low / high) });
    const most = alike ? difference.largest(found) : null;
    note.hidden = alike && most > 0;
    say(note, !alike ? "compare.unlike" : a.which === b.which ? "compare.same" : "compare.equal");
    note.dataset.largest = most;
    difference.element.hidden = !alike;
    if (alike) difference.show(found);
  }

  return {
    async update() {
      const first = !sides.a.model.options.length;
      const models = app.models.map((each) => [each.id, each.id]);
      for (const side of SIDES) {
        offer(sides[side].model, models, sides[side].model.value || app.model?.id);
        steps(side);
      }
      if (first && app.model) {
        // An early step beside what became of it; of a model without steps, the next model.
        const kept = app.model.steps;
        if (kept.length > 1) sides.a.step.value = kept[Math.floor(kept.length / 2)];
        else if (models.length > 1) sides.b.model.value = models.find(([id]) => id !== app.model.id)[0];
        steps("b");
      }
      text.value ||= app.text;
      draw();
    },
  };
}
