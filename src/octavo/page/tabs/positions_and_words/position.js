// A word at two positions, token by token: the token's row of wte, the positions' rows of wpe, and the sums. And the
// similarity of all rows of wpe.

import { fetchView, MAX_WORD_TOKENS, offline, pageError, replacedError, savedOptions, tokenizeWord } from "octavo/api";
import { code, el, field, say, textInput, tNodes } from "octavo/dom";
import { exactNumber, number, t } from "octavo/i18n";
import { matrix } from "octavo/pictures/matrix";
import { chip } from "octavo/tokens";

const MAX_OFFERED = 12; // words of the text, as buttons

export function createPosition(app) {
  const saved = savedOptions("position")?.[0];
  let word = saved?.word ?? "cat";
  let positions = saved?.at ?? [1, 10];
  let hasUserWord = false; // the user has typed or chosen a word
  let answer = null;
  let tokenIndex = 0; // the token of the word that is shown
  let lastRequest = 0; // the number of the last call of `load`; earlier calls that still wait are dropped

  // ---- Elements

  const wordInput = textInput({ id: "word", size: 12, value: word, maxlength: 100, readonly: offline });
  const positionInputs = positions.map((value, i) =>
    el("input", { id: `word-at-${i}`, type: "number", min: 0, value, readonly: offline }),
  );
  const clampNote = el("p", { class: "quiet", role: "status", hidden: true });
  const wordButtons = el("div", { class: "row" });
  const splitNote = el("p", { class: "quiet" });
  const tokenButtons = el("div", { class: "buttons" });
  const sumSentence = el("p");
  const sums = matrix([]);
  const distanceSentence = el("p");
  const result = el(
    "div",
    {},
    splitNote,
    tokenButtons,
    sumSentence,
    el("div", { class: "sum" }, sums),
    distanceSentence,
  );
  const form = el(
    "form",
    {
      class: "row",
      novalidate: true, // the page clamps positions itself, and says so
      onsubmit: (event) => {
        event.preventDefault();
        submit();
      },
      onchange: () => submit(),
      oninput: () => {
        clampNote.hidden = true;
        result.classList.add("stale"); // until the answer for the new word is there
      },
    },
    field(wordInput, "common.word"),
    field(positionInputs[0], "words.at"),
    field(positionInputs[1], "words.and"),
    !offline && el("button", { say: "words.show" }),
  );
  const card = el(
    "section",
    { class: "card", "aria-labelledby": "position-title" },
    el("h2", { id: "position-title", say: "words.position.title" }),
    el("p", { say: "words.position.does" }),
    form,
    clampNote,
    wordButtons,
    result,
  );
  const similarity = matrix([]);
  const similaritySentence = el("p");
  const positionsCard = el(
    "section",
    { class: "card", "aria-labelledby": "wpe-title" },
    el("h2", { id: "wpe-title", say: "words.wpe.title" }),
    similaritySentence,
    similarity,
  );

  // ---- Data

  async function submit() {
    if (offline) return;
    word = wordInput.value;
    positions = positionInputs.map((input) => input.valueAsNumber || 0);
    tokenIndex = 0;
    hasUserWord = true;
    await app.runTask(card, load);
  }

  async function load() {
    const request = ++lastRequest;
    offerWords();
    if (!offline) {
      const tokens = await chooseWord();
      if (request !== lastRequest) throw replacedError();
      if (!tokens || tokens.length > maxTokens()) throw pageError("error.word");
      clampPositions(app.model.model.block_size - tokens.length);
    }
    answer = await fetchView("position", { word, at: positions }, { replaces: "position" });
    tokenIndex = Math.min(tokenIndex, answer.tokens.length - 1);
    result.classList.toggle("stale", !offline && wordInput.value !== word);
    drawWord();
    drawPositions();
  }

  const maxTokens = () => Math.min(MAX_WORD_TOKENS, app.model.model.block_size);

  // The word's tokens. If the model can't read the word that the page began with, a word of the text replaces it.
  async function chooseWord() {
    const tokens = await tokenizeWord(app.model, word);
    if (tokens || hasUserWord) return tokens;
    word = wordInput.value = textWords()[0] ?? [...app.text.trim()].slice(0, 4).join("");
    return tokenizeWord(app.model, word);
  }

  function clampPositions(last) {
    const wanted = positions;
    positions = wanted.map((position) => Math.max(0, Math.min(position, last)));
    if (positions.some((position, i) => position !== wanted[i])) clampNote.hidden = false; // until the user types again
    say(clampNote, "words.clamped", { last });
    positionInputs.forEach((input, i) => {
      input.max = app.model.model.block_size - 1;
      if (positions[i] !== wanted[i]) input.value = positions[i]; // the user may still be typing in any other input
    });
  }

  // The words of the text that are short enough for any tokenizer: a token is at least a byte, or a character.
  function textWords() {
    const isByCharacter = app.model.tokenizer === "char";
    const tokensAtMost = (text) => (isByCharacter ? [...text].length : new TextEncoder().encode(text).length);
    return [...new Set(app.text.match(/[\p{L}\p{M}]+/gu) ?? [])]
      .filter((text) => tokensAtMost(text) <= maxTokens())
      .slice(0, MAX_OFFERED);
  }

  function offerWords() {
    const words = textWords();
    const button = (text) => {
      const onclick = () => {
        wordInput.value = text;
        clampNote.hidden = true;
        submit();
      };
      return el("button", { type: "button", class: "small chip", onclick }, text);
    };
    wordButtons.hidden = offline || !words.length;
    wordButtons.replaceChildren(el("span", { class: "quiet", say: "words.from" }), ...words.map(button));
  }

  // ---- Drawing

  function drawWord() {
    const { tokens, note } = answer;
    const hasSeveral = tokens.length > 1;
    splitNote.hidden = !note;
    if (note) say(splitNote, hasSeveral ? "words.pieces" : "words.space", { n: tokens.length });
    tokenButtons.hidden = !hasSeveral;
    tokenButtons.replaceChildren(...(hasSeveral ? tokens.map(tokenButton) : []));
    const rowsOfToken = tokens[tokenIndex]; // a token of the word with its rows of wte, wpe and their sums
    const { token, wte, wpe, x, distance, cosine } = rowsOfToken;
    const [first, second] = rowsOfToken.at;
    say(sumSentence, "words.sum", { token: chip(token), id: token.id, C: wte.length });
    say(distanceSentence, "words.distance", { distance: number(distance, 3), cosine: number(cosine, 3) });
    const names = (position) => [`wte[${token.id}]`, `+ wpe[${position}]`, `= x[${position}]`];
    sums.show([wte, wpe[0], x[0], wte, wpe[1], x[1]], {
      rows: (r) => [...names(first), ...names(second)][r],
      gaps: [3],
      cellHeight: 26,
      maxCell: 26,
      label: t("words.position.title"),
      cursor: sums.values.length ? undefined : [2, 0], // the first time; later it stays where the user has moved it
      readout: (r, c) => code(sumFormula(rowsOfToken, r < 3 ? 0 : 1, c), { class: "origin" }),
    });
  }

  function tokenButton({ token }, i) {
    const onclick = () => {
      tokenIndex = i;
      drawWord();
    };
    const properties = { type: "button", class: "small chip", "aria-pressed": String(i === tokenIndex), onclick };
    return el("button", properties, token.label);
  }

  function drawPositions() {
    const { positions: compared } = answer;
    const start = app.model.wpe_start === "waves" ? "words.wpe.waves" : "words.wpe.random";
    say(similaritySentence, "words.wpe.does", { start: el("span", { say: start }) });
    const name = (i) => String(compared[i]);
    similarity.show(answer.similarity, {
      rows: name,
      columns: name,
      max: 1,
      maxCell: Math.min(20, 560 / compared.length),
      label: t("words.wpe.title"),
      cursor: similarity.values.length ? undefined : [Math.min(10, compared.length - 1), 1], // the first time
      readout: (r, c, value) =>
        tNodes("words.wpe.cell", { a: compared[r], b: compared[c], cosine: el("b", {}, exactNumber(value)) }),
    });
  }

  return { card, positionsCard, load };
}

function sumFormula({ token, at, wte, wpe, x }, i, c) {
  const inBrackets = (value) => (value < 0 ? `(${exactNumber(value)})` : exactNumber(value));
  const names = `x[${at[i]}, ${c}] = wte[${token.id}, ${c}] + wpe[${at[i]}, ${c}]`;
  return `${names} = ${exactNumber(wte[c])} + ${inBrackets(wpe[i][c])} = ${exactNumber(x[i][c])}`;
}
