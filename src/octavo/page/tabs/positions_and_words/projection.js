// A map of the tokens: their rows of wte projected onto a plane, with search and neighbors, for each kept checkpoint.

import { fetchView, requireWord } from "octavo/api";
import { el, field, setSentence, textInput, tNodes } from "octavo/dom";
import { boundingBox, scatter } from "octavo/figures/scatter";
import { formatNumber, formatPercent, t } from "octavo/i18n";
import { StepPlayer } from "octavo/tabs/positions_and_words/step_player";
import { chip } from "octavo/tokens";

const NEIGHBORS = 12;
const MAX_FULL_VOCABULARY = 2000; // a larger vocabulary has only its most frequent tokens on the map

export class Projection {
  constructor(app) {
    this.app = app;
    this.modelId = null;
    this.points = []; // {token, x, y} of the current step
    this.query = null; // the word whose neighbors are listed: a text, or a token id
    this.neighbors = null; // the answer to `neighbors` for the query
    this.searchInput = textInput({ id: "find", type: "search", size: 14, maxlength: 100 });
    this.player = new StepPlayer("projection-step", () => this.#showStep());
    this.sentence = el("p");
    this.figure = scatter([], { height: 520 });
    this.alignNote = el("p", { class: "quiet", textKey: "words.align" });
    this.neighborList = el("div");
    this.caveat = el("p", { class: "caveat" });
    const onsubmit = (event) => {
      event.preventDefault();
      if (this.searchInput.value) this.#runTask(() => this.#search(this.searchInput.value));
    };
    const searchField = field(this.searchInput, "words.find");
    this.card = el(
      "section",
      { class: "card", "aria-labelledby": "projection-title" },
      el("h2", { id: "projection-title", textKey: "words.projection.title" }),
      this.sentence,
      el("form", { class: "row", onsubmit }, searchField, el("button", { textKey: "words.find.do" })),
      this.neighborList,
      this.player.element,
      this.figure,
      this.alignNote,
      this.caveat,
    );
  }

  // Begins at the checkpoint that is chosen in the page's header, if it was kept, else at the last.
  async load() {
    const { model, step } = this.app;
    if (model.id !== this.modelId && typeof this.query === "number") this.#clearNeighbors(); // another model, other ids
    this.modelId = model.id;
    setSentence(this.sentence, "words.projection.does", { C: model.model.n_embd });
    this.player.setSteps(model.steps.length ? model.steps : [null], step);
    this.alignNote.hidden = model.steps.length < 2;
    await this.#fetchPoints();
    if (this.query !== null) await this.#fetchNeighbors();
  }

  stop() {
    this.player.stop();
  }

  #runTask(task) {
    return this.app.runTask(this.card, task);
  }

  // ---- Steps

  async #showStep() {
    await this.#runTask(() => this.#fetchPoints());
    await this.#updateNeighbors();
  }

  async #updateNeighbors() {
    if (this.query !== null) await this.#runTask(() => this.#fetchNeighbors());
  }

  #fetchStep(step) {
    const { query } = this;
    const mayLackQuery = query !== null && this.app.model.model.vocab_size > MAX_FULL_VOCABULARY;
    return fetchView("projection", withStep(step, { words: mayLackQuery ? [query] : [] }));
  }

  // The map of an earlier step is rotated to match that of the last one, so that only those tokens move that training
  // has moved.
  async #fetchPoints() {
    const { player, app } = this;
    const { index, step, lastStep } = player;
    player.draw();
    const last = await this.#fetchStep(lastStep);
    const answer = step === lastStep ? last : await this.#fetchStep(step);
    if (index !== player.index) return; // another step was chosen meanwhile
    const lastPoints = new Map(last.tokens.map((token, i) => [token.id, last.points[i]]));
    const aligned = alignPoints(
      answer.points,
      answer.tokens.map((token) => lastPoints.get(token.id)),
    );
    this.points = answer.tokens.map((token, i) => ({ token, x: aligned[i][0], y: aligned[i][1] }));
    const share = formatPercent(answer.explained[0] + answer.explained[1], 0);
    setSentence(this.caveat, "words.projection.caveat", { C: app.model.model.n_embd, share });
    this.#draw({
      extent: boundingBox([...last.points, ...aligned]),
      caption: () => tNodes("words.projection.caption", { n: answer.tokens.length, V: answer.vocab_size }),
    });
  }

  // ---- Neighbors

  async #search(text) {
    await requireWord(this.app.model, text);
    this.query = text;
    await this.#fetchNeighbors();
    await this.#fetchPoints();
    const { tokens } = this.neighbors;
    if (tokens.length === 1) this.figure.moveTo(tokens[0].id);
  }

  // A token is requested by its id: its bytes may be a part of a character, which no text can name.
  #pick(token) {
    this.query = token.id;
    this.searchInput.value = "";
    return this.#updateNeighbors();
  }

  async #fetchNeighbors() {
    const options = withStep(this.player.step ?? null, { word: this.query, top: NEIGHBORS });
    this.neighbors = await fetchView("neighbors", options, { replaces: "neighbors" });
    this.#drawNeighbors();
    this.#draw();
  }

  #clearNeighbors() {
    this.query = this.neighbors = null;
    this.neighborList.replaceChildren();
  }

  // ---- Drawing

  #draw(options = {}) {
    const { figure, points, neighbors } = this;
    const nearIds = new Set(neighbors?.neighbors.map(({ token }) => token.id));
    const wordIds = new Set(neighbors?.tokens.map((token) => token.id));
    const kind = (id) => (wordIds.has(id) ? "selected" : nearIds.has(id) ? "near" : "");
    figure.show(
      points.map(({ token, x, y }) => ({ key: token.id, label: token.label, x, y, kind: kind(token.id) })),
      {
        extent: figure.extent,
        label: t("words.projection.title"),
        readout: ({ key, label }) => [
          el("span", { class: "chip" }, el("bdi", {}, label)),
          " ",
          ...tNodes("words.point", { id: key }),
        ],
        onPick: (id) => this.#pick(points.find((point) => point.token.id === id).token),
        ...options,
      },
    );
  }

  #drawNeighbors() {
    const { steps, step } = this.player;
    const { tokens, neighbors } = this.neighbors;
    const wordChips = el(
      "span",
      {},
      tokens.map((token) => chip(token)),
    );
    const item = ({ token, cosine }) => {
      const onclick = () => this.#pick(token);
      const content = [chip(token), " ", formatNumber(cosine, 2)];
      const button = el("button", { type: "button", class: "small", onclick }, content);
      return el("li", {}, button);
    };
    this.neighborList.replaceChildren(
      el(
        "p",
        { class: "quiet" },
        ...tNodes("words.near", { word: wordChips }),
        " ",
        step !== null && steps.length > 1 ? `(${t("header.step.at", { step })})` : "",
      ),
      el("ol", { class: "neighbors" }, neighbors.map(item)),
    );
  }
}

// The step null means that the model has no kept checkpoints: it is left out of the request.
const withStep = (step, options) => (step === null ? options : { ...options, step });

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
