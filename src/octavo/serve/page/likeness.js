// Two words along training: the cosine of their rows of wte, beside random pairs that are as frequent.

import { ApiError, lens } from "octavo/api";
import { lineChart } from "octavo/draw";
import { PIECES, readable } from "octavo/position";
import { el, field, number, say, t } from "octavo/text";

export function likeness(app) {
  let pair = null,
    own = false; // own: the reader chose the pair
  const one = el("input", {
    id: "alike-one",
    size: 10,
    dir: "auto",
    maxlength: 100,
    spellcheck: "false",
    autocomplete: "off",
  });
  const two = el("input", {
    id: "alike-two",
    size: 10,
    dir: "auto",
    maxlength: 100,
    spellcheck: "false",
    autocomplete: "off",
  });
  const now = el("p");
  const band = el("p", { class: "quiet" });
  const picture = el("div");
  const form = el(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        ask();
      },
      onchange: () => ask(),
    },
    field(one, "words.word"),
    field(two, "words.likeness.with"),
  );
  const node = el(
    "section",
    { class: "card", "aria-labelledby": "words-alike" },
    el("h2", { id: "words-alike", say: "words.likeness.title" }),
    el("p", { say: "words.likeness.does" }),
    form,
    now,
    picture,
    band,
    el("p", { class: "caveat", say: "words.likeness.caveat" }),
  );
  let chart = null;

  function ask() {
    if (!one.value || !two.value) return undefined;
    [pair, own] = [[one.value, two.value], true];
    return app.trying(node, load);
  }

  async function load() {
    if (!own) pair = await fitting();
    const [first, second] = await Promise.all(pair.map((word) => readable(app, word)));
    if (!first || first.length > PIECES || second?.length !== 1) throw new ApiError("", "", "word");
    const seen = await lens("neighbors", { word: pair[0], against: pair[1], top: 1 }, { instead: "likeness" });
    [one.value, two.value] = pair;
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
      const pieces = await Promise.all(two.map((word) => readable(app, word)));
      if (pieces.every((each) => each?.length === 1)) return two;
    }
    const { tokens } = await lens("map");
    return tokens
      .map((token) => token.label.replace(/^␣/u, ""))
      .filter((label) => /^\p{L}+$/u.test(label))
      .slice(0, 2);
  }

  return { node, load };
}
