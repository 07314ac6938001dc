// A word at two positions, token by token: the token's row of wte, the positions' rows of wpe, and the sums. And the
// similarity of all rows of wpe.

import {
  exportedOptions,
  fetchView,
  MAX_WORD_TOKENS,
  offline,
  pageError,
  replacedError,
  tokenizeWord,
} from "octavo/api";
import { code, el, field, setSentence, textInput, tNodes } from "octavo/dom";
import { matrix } from "octavo/figures/matrix";
import { formatNumber, formatSignificant, t } from "octavo/i18n";
import { chip } from "octavo/tokens";

const MAX_OFFERED = 12; // words of the text, as buttons
const MAX_CANDIDATES = 4; // tokenized to find a first word

export class WordAtPositions {
  constructor(app) {
    const exported = exportedOptions("position")?.[0];
    this.app = app;
    this.word = exported?.word ?? "";
    this.positions = exported?.at ?? [1, 10];
    this.hasUserWord = false; // the user has typed or chosen a word
    this.answer = null;
    this.tokenIndex = 0; // the token of the word that is shown
    this.lastRequest = 0; // the number of the last call of `load`; earlier calls that still wait are dropped
    this.#createWordCard();
    this.#createSimilarityCard();
  }

  async load() {
    const { app } = this;
    const request = ++this.lastRequest;
    this.#offerWords();
    if (!offline) {
      const [chosen, tokens] = await this.#chooseWord();
      if (request !== this.lastRequest) throw replacedError();
      if (chosen !== this.word) {
        if (this.wordInput.value === this.word) this.wordInput.value = chosen; // otherwise the user is typing
        this.word = chosen;
        this.tokenIndex = 0;
      }
      if (!tokens || tokens.length > this.#maxTokens()) throw pageError("error.word");
      this.#clampPositions(app.model.model.block_size - tokens.length);
    }
    const { word, positions } = this;
    this.answer = await fetchView("position", { word, at: positions }, { replaces: "position" });
    this.tokenIndex = Math.min(this.tokenIndex, this.answer.tokens.length - 1);
    this.result.classList.toggle("stale", !offline && this.wordInput.value !== this.word);
    this.#drawWord();
    this.#drawPositions();
  }

  // ---- Elements

  #createWordCard() {
    this.wordInput = textInput({ id: "word", size: 12, value: this.word, maxlength: 100, readonly: offline });
    this.positionInputs = this.positions.map((value, i) =>
      el("input", { id: `word-at-${i}`, type: "number", min: 0, value, readonly: offline }),
    );
    this.clampNote = el("p", { class: "quiet", role: "status", hidden: true });
    this.wordButtons = el("div", { class: "row" });
    this.tokenizationNote = el("p", { class: "quiet" });
    this.tokenButtons = el("div", { class: "buttons" });
    this.sumSentence = el("p");
    this.sums = matrix([]);
    this.distanceSentence = el("p");
    this.result = el(
      "div",
      {},
      this.tokenizationNote,
      this.tokenButtons,
      this.sumSentence,
      el("div", { class: "sum" }, this.sums),
      this.distanceSentence,
    );
    this.card = el(
      "section",
      { class: "card", "aria-labelledby": "position-title" },
      el("h2", { id: "position-title", textKey: "words.position.title" }),
      el("p", { textKey: "words.position.does" }),
      this.#createForm(),
      this.clampNote,
      this.wordButtons,
      this.result,
    );
  }

  #createForm() {
    const onsubmit = (event) => {
      event.preventDefault();
      this.#submit();
    };
    const onchange = () => this.#submit();
    const oninput = () => {
      this.clampNote.hidden = true;
      this.result.classList.add("stale"); // until the answer for the new word is there
    };
    return el(
      "form",
      { class: "row", novalidate: true, onsubmit, onchange, oninput }, // #clampPositions() corrects positions instead
      field(this.wordInput, "common.word"),
      field(this.positionInputs[0], "words.at"),
      field(this.positionInputs[1], "words.and"),
      !offline && el("button", { textKey: "words.show" }),
    );
  }

  #createSimilarityCard() {
    this.similarity = matrix([]);
    this.similaritySentence = el("p");
    this.similarityCard = el(
      "section",
      { class: "card", "aria-labelledby": "wpe-title" },
      el("h2", { id: "wpe-title", textKey: "words.wpe.title" }),
      this.similaritySentence,
      this.similarity,
    );
  }

  // ---- The word and the positions

  async #submit() {
    if (offline) return;
    this.word = this.wordInput.value;
    this.positions = this.positionInputs.map((input) => input.valueAsNumber || 0);
    this.tokenIndex = 0;
    this.hasUserWord = true;
    await this.app.runTask(this.card, () => this.load());
  }

  // The word to show and its tokens. Until the user chooses one, it is the first word of the text with three letters or
  // more that is a single token, else the first word.
  async #chooseWord() {
    const { model, text } = this.app;
    if (this.hasUserWord) return [this.word, await tokenizeWord(model, this.word)];
    const words = this.#textWords();
    const candidates = words.filter((word) => [...word].length > 2).slice(0, MAX_CANDIDATES);
    const tokens = await Promise.all(candidates.map((word) => tokenizeWord(model, word)));
    const single = tokens.findIndex((each) => each?.length === 1);
    if (single >= 0) return [candidates[single], tokens[single]];
    const first = words[0] ?? [...text.trim()].slice(0, 4).join("");
    return [first, await tokenizeWord(model, first)];
  }

  #clampPositions(last) {
    const wanted = this.positions;
    const clamped = wanted.map((position) => Math.max(0, Math.min(position, last)));
    const clampedFlags = clamped.map((position, i) => position !== wanted[i]);
    this.positions = clamped;
    if (clampedFlags.some(Boolean)) this.clampNote.hidden = false; // until the user types again
    setSentence(this.clampNote, "words.clamped", { last });
    this.positionInputs.forEach((input, i) => {
      input.max = this.app.model.model.block_size - 1;
      if (clampedFlags[i]) input.value = clamped[i]; // an unclamped input stays: the user may be typing in it
    });
  }

  #offerWords() {
    const words = this.#textWords();
    const button = (text) => {
      const onclick = () => {
        this.wordInput.value = text;
        this.clampNote.hidden = true;
        this.#submit();
      };
      return el("button", { type: "button", class: "small chip", onclick }, text);
    };
    this.wordButtons.hidden = offline || !words.length;
    this.wordButtons.replaceChildren(el("span", { class: "quiet", textKey: "words.from" }), ...words.map(button));
  }

  // The words of the text whose number of bytes (or characters), an upper bound of their number of tokens, is within
  // the limit.
  #textWords() {
    const { model, text } = this.app;
    const hasCharacterTokens = model.tokenizer === "char";
    const tokensAtMost = (word) => (hasCharacterTokens ? [...word].length : new TextEncoder().encode(word).length);
    return [...new Set(text.match(/[\p{L}\p{M}]+/gu) ?? [])]
      .filter((word) => tokensAtMost(word) <= this.#maxTokens())
      .slice(0, MAX_OFFERED);
  }

  #maxTokens() {
    return Math.min(MAX_WORD_TOKENS, this.app.model.model.block_size);
  }

  // ---- Drawing

  #drawWord() {
    const { answer, sums } = this;
    const { tokens, note } = answer;
    const hasSeveral = tokens.length > 1;
    this.tokenizationNote.hidden = !note;
    const noteKey = hasSeveral ? "words.several_tokens" : "words.space";
    if (note) setSentence(this.tokenizationNote, noteKey, { n: tokens.length });
    this.tokenButtons.hidden = !hasSeveral;
    this.tokenButtons.replaceChildren(...(hasSeveral ? tokens.map((entry, i) => this.#tokenButton(entry, i)) : []));
    const rowsOfToken = tokens[this.tokenIndex]; // a token of the word with its rows of wte, wpe and their sums
    const { token, wte, wpe, x, distance, cosine } = rowsOfToken;
    const [first, second] = rowsOfToken.at;
    setSentence(this.sumSentence, "words.sum", { token: chip(token), id: token.id, C: wte.length });
    setSentence(this.distanceSentence, "words.distance", {
      distance: formatNumber(distance, 3),
      cosine: formatNumber(cosine, 3),
    });
    const names = (position) => [`wte[${token.id}]`, `+ wpe[${position}]`, `= x[${position}]`];
    sums.show([wte, wpe[0], x[0], wte, wpe[1], x[1]], {
      rows: (r) => [...names(first), ...names(second)][r],
      gaps: [3],
      cellHeight: 26,
      maxCell: 26,
      label: t("words.position.title"),
      cursor: sums.values.length ? undefined : [2, 0], // the first time; later it stays where the user has moved it
      readout: (r, c) => code(sumFormula(rowsOfToken, r < 3 ? 0 : 1, c), { class: "derivation" }),
    });
  }

  #tokenButton({ token }, i) {
    const onclick = () => {
      this.tokenIndex = i;
      this.#drawWord();
    };
    const isShown = i === this.tokenIndex;
    const properties = { type: "button", class: "small chip", "aria-pressed": String(isShown), onclick };
    return el("button", properties, token.label);
  }

  #drawPositions() {
    const { similarity } = this;
    const { positions, similarity: values } = this.answer;
    const init = this.app.model.wpe_init === "sinusoidal" ? "words.wpe.sinusoidal" : "words.wpe.random";
    setSentence(this.similaritySentence, "words.wpe.does", { init: el("span", { textKey: init }) });
    const name = (i) => String(positions[i]);
    similarity.show(values, {
      rows: name,
      columns: name,
      max: 1,
      maxCell: Math.min(20, 560 / positions.length),
      label: t("words.wpe.title"),
      cursor: similarity.values.length ? undefined : [Math.min(10, positions.length - 1), 1], // the first time
      readout: (r, c, value) =>
        tNodes("words.wpe.cell", { a: positions[r], b: positions[c], cosine: el("b", {}, formatSignificant(value)) }),
    });
  }
}

function sumFormula({ token, at, wte, wpe, x }, i, c) {
  const inParentheses = (value) => (value < 0 ? `(${formatSignificant(value)})` : formatSignificant(value));
  const names = `x[${at[i]}, ${c}] = wte[${token.id}, ${c}] + wpe[${at[i]}, ${c}]`;
  return `${names} = ${formatSignificant(wte[c])} + ${inParentheses(wpe[i][c])} = ${formatSignificant(x[i][c])}`;
}
