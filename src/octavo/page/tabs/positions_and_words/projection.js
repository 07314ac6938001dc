// A map of the tokens: their rows of wte projected to a plane, with search and neighbors, for each kept checkpoint.

import { fetchView, requireWord } from "octavo/api";
import { el, field, say, textInput, tNodes } from "octavo/dom";
import { number, percent, t } from "octavo/i18n";
import { boundingBox, scatter } from "octavo/pictures/scatter";
import { chip } from "octavo/tokens";

const NEIGHBORS = 12;
const MAX_FULL_VOCABULARY = 2000; // a larger vocabulary has only its most frequent tokens on the map
const STEP_TIME = 750; // milliseconds for each checkpoint while it plays

export function createProjection(app) {
  let steps = []; // of the kept checkpoints; [null] for a model without any
  let stepIndex = 0;
  let points = []; // {token, x, y} of that step
  let query = null; // the word whose neighbors are listed: a text, or a token id
  let modelId = null;
  let neighbors = null; // the answer to `neighbors` for the query
  let playback = null; // while the steps play: an object that identifies this playback

  // ---- Elements

  const searchInput = textInput({ id: "find", type: "search", size: 14, maxlength: 100 });
  const slider = el("input", {
    id: "projection-step",
    type: "range",
    min: 0,
    step: 1,
    oninput: () => {
      stop();
      showStep(Number(slider.value));
    },
  });
  const stepName = el("output", { class: "mono", for: "projection-step" });
  const onclick = () => (playback ? stop() : play());
  const playButton = el("button", { type: "button", class: "small", say: "words.play", onclick });
  const player = el(
    "div",
    { class: "scrub" },
    el("label", { for: "projection-step", class: "quiet", say: "words.training" }),
    playButton,
    slider,
    stepName,
  );
  const sentence = el("p");
  const picture = scatter([], { height: 520 });
  const alignNote = el("p", { class: "quiet", say: "words.align" });
  const neighborList = el("div");
  const caveat = el("p", { class: "caveat" });
  const onsubmit = (event) => {
    event.preventDefault();
    if (searchInput.value) app.runTask(card, () => search(searchInput.value));
  };
  const card = el(
    "section",
    { class: "card", "aria-labelledby": "projection-title" },
    el("h2", { id: "projection-title", say: "words.projection.title" }),
    sentence,
    el("form", { class: "row", onsubmit }, field(searchInput, "words.find"), el("button", { say: "words.find.do" })),
    neighborList,
    player,
    picture,
    alignNote,
    caveat,
  );

  // ---- Steps

  // Begins at the checkpoint that is chosen in the page's header, if it was kept, else at the last.
  async function load() {
    const { model } = app;
    if (model.id !== modelId && typeof query === "number") clearNeighbors(); // the other model has other ids
    modelId = model.id;
    say(sentence, "words.projection.does", { C: model.model.n_embd });
    steps = model.steps.length ? model.steps : [null];
    player.hidden = alignNote.hidden = steps.length < 2;
    slider.max = steps.length - 1;
    stepIndex = steps.includes(app.step) ? steps.indexOf(app.step) : steps.length - 1;
    await fetchPoints();
    if (query !== null) await fetchNeighbors();
  }

  async function showStep(index) {
    stepIndex = index;
    await app.runTask(card, fetchPoints);
    if (query !== null && !playback) await app.runTask(card, fetchNeighbors);
  }

  async function play() {
    say(playButton, "common.stop");
    const started = (playback = {});
    if (stepIndex === steps.length - 1) stepIndex = -1;
    while (playback === started && stepIndex < steps.length - 1) {
      await showStep(stepIndex + 1);
      await new Promise((resolve) => setTimeout(resolve, STEP_TIME));
    }
    if (playback !== started) return;
    stop();
    if (query !== null) await app.runTask(card, fetchNeighbors);
  }

  function stop() {
    playback = null;
    say(playButton, "words.play");
  }

  // ---- Data

  const withStep = (step, options) => (step === null ? options : { ...options, step });

  function fetchStep(step) {
    const mayLackQuery = query !== null && app.model.model.vocab_size > MAX_FULL_VOCABULARY;
    return fetchView("projection", withStep(step, { words: mayLackQuery ? [query] : [] }));
  }

  // The map of an earlier step is rotated to match that of the last one, so that only those tokens move that training
  // has moved.
  async function fetchPoints() {
    const index = stepIndex;
    slider.value = index;
    if (steps[index] !== null) stepName.textContent = t("head.step.at", { step: steps[index] });
    slider.setAttribute("aria-valuetext", stepName.textContent);
    const last = await fetchStep(steps.at(-1));
    const answer = index === steps.length - 1 ? last : await fetchStep(steps[index]);
    if (index !== stepIndex) return; // another step was chosen meanwhile
    const lastPoints = new Map(last.tokens.map((token, i) => [token.id, last.points[i]]));
    const aligned = alignPoints(
      answer.points,
      answer.tokens.map((token) => lastPoints.get(token.id)),
    );
    points = answer.tokens.map((token, i) => ({ token, x: aligned[i][0], y: aligned[i][1] }));
    const share = percent(answer.explained[0] + answer.explained[1], 0);
    say(caveat, "words.projection.caveat", { C: app.model.model.n_embd, share });
    draw({
      extent: boundingBox([...last.points, ...aligned]),
      caption: () => tNodes("words.projection.caption", { n: answer.tokens.length, V: answer.vocab_size }),
    });
  }

  async function fetchNeighbors() {
    const options = withStep(steps[stepIndex] ?? null, { word: query, top: NEIGHBORS });
    neighbors = await fetchView("neighbors", options, { replaces: "neighbors" });
    drawNeighbors();
    draw();
  }

  function clearNeighbors() {
    query = neighbors = null;
    neighborList.replaceChildren();
  }

  async function search(text) {
    await requireWord(app.model, text);
    query = text;
    await fetchNeighbors();
    await fetchPoints();
    if (neighbors.tokens.length === 1) picture.choose(neighbors.tokens[0].id);
  }

  // A token is requested by its id: its bytes may be a part of a character, which no text can name.
  function pick(token) {
    query = token.id;
    searchInput.value = "";
    return app.runTask(card, fetchNeighbors);
  }

  // ---- Drawing

  function draw(options = {}) {
    const nearIds = new Set(neighbors?.neighbors.map(({ token }) => token.id));
    const wordIds = new Set(neighbors?.tokens.map((token) => token.id));
    const kind = (id) => (wordIds.has(id) ? "chosen" : nearIds.has(id) ? "near" : "");
    picture.show(
      points.map(({ token, x, y }) => ({ key: token.id, label: token.label, x, y, kind: kind(token.id) })),
      {
        extent: picture.extent,
        label: t("words.projection.title"),
        readout: ({ key, label }) => [
          el("span", { class: "chip" }, el("bdi", {}, label)),
          " ",
          ...tNodes("words.point", { id: key }),
        ],
        onPick: (id) => pick(points.find((point) => point.token.id === id).token),
        ...options,
      },
    );
  }

  function drawNeighbors() {
    const step = steps[stepIndex];
    const wordChips = el(
      "span",
      {},
      neighbors.tokens.map((token) => chip(token)),
    );
    const item = ({ token, cosine }) =>
      el(
        "li",
        {},
        el(
          "button",
          { type: "button", class: "small", onclick: () => pick(token) },
          chip(token),
          " ",
          number(cosine, 2),
        ),
      );
    neighborList.replaceChildren(
      el(
        "p",
        { class: "quiet" },
        ...tNodes("words.near", { word: wordChips }),
        " ",
        step !== null && steps.length > 1 ? `(${t("head.step.at", { step })})` : "",
      ),
      el("ol", { class: "neighbors" }, neighbors.neighbors.map(item)),
    );
  }

  return { card, load, stop };
}

// Rotates points [x, y], and mirrors them if that is closer, to match `targets`: orthogonal Procrustes in the plane. A
// target may be undefined.
function alignPoints(points, targets) {
  let [a, b, c, d] = [0, 0, 0, 0]; // the matrix pointsᵀ targets
  points.forEach(([x, y], i) => {
    if (!targets[i]) return;
    const [u, v] = targets[i];
    a += x * u;
    b += x * v;
    c += y * u;
    d += y * v;
  });
  const mirror = Math.hypot(a - d, b + c) > Math.hypot(a + d, b - c) ? -1 : 1; // of y
  const angle = Math.atan2(b - mirror * c, a + mirror * d);
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return points.map(([x, y]) => [x * cos - mirror * y * sin, x * sin + mirror * y * cos]);
}
