// Two words along training: the cosine of their rows of wte, beside random pairs that are as frequent.

import { lens, overtaken } from "octavo/api";
import { lineChart } from "octavo/pictures/bars";
import { readable } from "octavo/tabs/positions_and_words/position";
import { el, field, number, say, t } from "octavo/dom";

export function likeness(app) {
  let own = false, // the reader chose the pair
    turns = 0,
    chart = null;
  const word = (id) =>
    el("input", { id, size: 10, dir: "auto", maxlength: 100, spellcheck: "false", autocomplete: "off" });
  const one = word("alike-one"),
    two = word("alike-two");
  const refused = el("p", { class: "problem", role: "alert", hidden: true });
  const now = el("p");
  const band = el("p", { class: "quiet" });
  const picture = el("div");
  const result = el("div", {}, now, picture, band);
  const form = el(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        ask();
      },
      onchange: () => ask(),
      oninput: () => {
        own = true;
        result.classList.add("old"); // it is another pair's, until this one is asked for
      },
    },
    field(one, "words.word"),
    field(two, "words.likeness.with"),
    el("button", { say: "words.show" }),
  );
  const node = el(
    "section",
    { class: "card", "aria-labelledby": "words-alike" },
    el("h2", { id: "words-alike", say: "words.likeness.title" }),
    el("p", { say: "words.likeness.does" }),
    form,
    el("div", {}, refused),
    result,
    el("p", { class: "caveat", say: "words.likeness.caveat" }),
  );

  const ask = () => app.trying(node, load);

  // What is shown is always said of the pair that was asked for, and of several questions only the last one counts.
  async function load() {
    const turn = ++turns;
    if (!own) {
      const found = await fitting();
      if (turn !== turns || own) throw overtaken();
      [one.value, two.value] = found;
    }
    const pair = [one.value, two.value];
    const why = await refusal(pair);
    if (turn !== turns) throw overtaken();
    const options = { word: pair[0], against: pair[1], top: 1 };
    const seen = why ? null : await lens("neighbors", options, { instead: "likeness" });
    if (turn !== turns) throw overtaken();
    refused.hidden = !why;
    result.hidden = Boolean(why);
    if (why) return void say(refused, ...why);
    result.classList.toggle("old", one.value !== pair[0] || two.value !== pair[1]);
    draw(pair, seen);
  }

  // Why a pair has no cosine: [key, values] of a sentence, or null. The server takes a first word of several tokens, as
  // the mean of their rows; a curve of that would look like one of a row.
  async function refusal(pair) {
    if (!pair.every(Boolean)) return ["words.likeness.empty"];
    for (const word of pair) {
      const tokens = await readable(app.model, word);
      if (tokens?.length === 1) continue;
      const [other] = await fitting();
      return tokens
        ? ["words.likeness.pieces", { word, n: tokens.length, other }]
        : ["words.likeness.unknown", { word, other }];
    }
    return null;
  }

  function draw(pair, seen) {
    say(now, "words.likeness.now", { a: pair[0], b: pair[1], cosine: number(seen.against.cosine, 3) });
    const along = seen.history,
      banded = along.some((each) => each.control !== null);
    if (!along.length) say(band, "words.likeness.none");
    else if (banded) say(band, "words.likeness.band", { control: seen.control.match(/\d+/)?.[0] ?? "" });
    else say(band, "words.likeness.noband");
    picture.hidden = !along.length;
    if (!along.length) return;
    const series = [
      { label: t("words.likeness.cosine", { a: pair[0], b: pair[1] }), values: along.map((each) => each.against) },
    ];
    if (banded)
      series.push({
        label: t("words.likeness.control"),
        colour: "--line-6",
        values: along.map((each) => each.control),
        band: [along.map((each) => each.control_low), along.map((each) => each.control_high)],
      });
    const data = { x: along.map((each) => each.step), series };
    const options = {
      xName: t("words.likeness.steps"),
      logX: along.at(-1).step > 30 * along[0].step,
      height: 260,
      label: t("words.likeness.title"),
    };
    if (chart) chart.show(data, options);
    else picture.append((chart = lineChart(data, options)));
  }

  // Two words that are a token each: the learner's example, else two letters, else the two most frequent that are words.
  async function fitting() {
    for (const two of [
      ["king", "queen"],
      ["a", "e"],
    ]) {
      const pieces = await Promise.all(two.map((word) => readable(app.model, word)));
      if (pieces.every((each) => each?.length === 1)) return two;
    }
    const { tokens } = await lens("projection");
    return tokens
      .map((token) => token.label.replace(/^␣/u, ""))
      .filter((label) => /^\p{L}+$/u.test(label))
      .slice(0, 2);
  }

  return { node, load };
}
