// Two words during training: the cosine of their rows of wte, compared with random pairs of equally frequent words.

import { fetchView, replacedError, tokenizeWord } from "octavo/api";
import { el, field, say, textInput } from "octavo/dom";
import { number, t } from "octavo/i18n";
import { lineChart } from "octavo/pictures/line_chart";

const EXAMPLES = [
  ["king", "queen"],
  ["a", "e"],
];

export function createSimilarity(app) {
  let hasUserPair = false;
  let lastRequest = 0; // the number of the last call of `load`; earlier calls that still wait are dropped
  let chart = null;

  const first = textInput({ id: "similarity-first", size: 10, maxlength: 100 });
  const second = textInput({ id: "similarity-second", size: 10, maxlength: 100 });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const cosine = el("p");
  const chartHolder = el("div");
  const bandNote = el("p", { class: "quiet" });
  const result = el("div", {}, cosine, chartHolder, bandNote);
  const form = el(
    "form",
    {
      class: "row",
      onsubmit: (event) => {
        event.preventDefault();
        submit();
      },
      onchange: () => submit(),
      oninput: () => {
        hasUserPair = true;
        result.classList.add("stale"); // until the answer for the new pair is there
      },
    },
    field(first, "common.word"),
    field(second, "words.similarity.with"),
    el("button", { say: "words.show" }),
  );
  const card = el(
    "section",
    { class: "card", "aria-labelledby": "similarity-title" },
    el("h2", { id: "similarity-title", say: "words.similarity.title" }),
    el("p", { say: "words.similarity.does" }),
    form,
    el("div", {}, problem),
    result,
    el("p", { class: "caveat", say: "words.similarity.caveat" }),
  );

  const submit = () => app.runTask(card, load);

  // The result always belongs to the pair that was submitted, not to what has been typed since.
  async function load() {
    const request = ++lastRequest;
    const stopIfReplaced = () => {
      if (request !== lastRequest) throw replacedError();
    };
    if (!hasUserPair) {
      const example = await chooseExample();
      stopIfReplaced();
      if (hasUserPair) throw replacedError();
      [first.value, second.value] = example;
    }
    const pair = [first.value, second.value];
    const sentence = await findProblem(pair);
    stopIfReplaced();
    const options = { word: pair[0], against: pair[1], top: 1 };
    const answer = sentence ? null : await fetchView("neighbors", options, { replaces: "similarity" });
    stopIfReplaced();
    problem.hidden = !sentence;
    result.hidden = Boolean(sentence);
    if (sentence) return void say(problem, ...sentence);
    result.classList.toggle("stale", first.value !== pair[0] || second.value !== pair[1]);
    draw(pair, answer);
  }

  // Why a pair has no cosine, as the [key, values] of a sentence, or null. If the first word is several tokens, the
  // server uses the mean of their rows; here that is refused, because its curve would look like that of a row.
  async function findProblem(pair) {
    if (!pair.every(Boolean)) return ["words.similarity.empty"];
    for (const word of pair) {
      const tokens = await tokenizeWord(app.model, word);
      if (tokens?.length === 1) continue;
      const [other] = await chooseExample();
      return tokens
        ? ["words.similarity.pieces", { word, n: tokens.length, other }]
        : ["words.similarity.unknown", { word, other }];
    }
    return null;
  }

  // Two words that are one token each: an example, else the two most frequent tokens that are words.
  async function chooseExample() {
    for (const pair of EXAMPLES) {
      const tokens = await Promise.all(pair.map((word) => tokenizeWord(app.model, word)));
      if (tokens.every((list) => list?.length === 1)) return pair;
    }
    const { tokens } = await fetchView("projection");
    return tokens
      .map((token) => token.label.replace(/^␣/u, ""))
      .filter((label) => /^\p{L}+$/u.test(label))
      .slice(0, 2);
  }

  function draw([a, b], { against, control, history }) {
    say(cosine, "words.similarity.now", { a, b, cosine: number(against.cosine, 3) });
    const hasBand = history.some((point) => point.control !== null);
    if (!history.length) say(bandNote, "words.similarity.none");
    else if (hasBand) say(bandNote, "words.similarity.band", { control: control.match(/\d+/)?.[0] ?? "" });
    else say(bandNote, "words.similarity.noband");
    chartHolder.hidden = !history.length;
    if (!history.length) return;
    const column = (name) => history.map((point) => point[name]);
    const line = { label: t("words.similarity.cosine", { a, b }), values: column("against") };
    const controlLine = {
      label: t("words.similarity.control"),
      color: "--line-6",
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
    if (chart) chart.show(data, options);
    else chartHolder.append((chart = lineChart(data, options)));
  }

  return { card, load };
}
