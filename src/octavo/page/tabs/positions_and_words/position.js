// A word at two positions, piece by piece: its row of wte, their rows of wpe, and the sums. And how alike positions are.

import { available, knownOf, lens, offline, overtaken, refusal } from "octavo/api";
import { matrix } from "octavo/pictures/bars";
import { chip, code, el, exact, field, number, said, say, t } from "octavo/dom";

const FROM_TEXT = 12; // words of the text that are offered
export const PIECES = 16; // tokens that a word may have, as octavo.lens has it

export function oneWord(app) {
  const there = available("position");
  let word = there?.[0]?.word ?? "cat",
    at = there?.[0]?.at ?? [1, 10],
    chosen = 0,
    seen = null;
  let own = false; // the reader chose the word
  let turns = 0;

  const spelling = el("input", {
    id: "word",
    size: 12,
    dir: "auto",
    value: word,
    maxlength: 100,
    spellcheck: "false",
    autocomplete: "off",
  });
  const places = at.map((value, i) => el("input", { id: `word-at-${i}`, type: "number", min: 0, value }));
  const offered = el("div", { class: "row" });
  const form = el(
    "form",
    {
      class: "row",
      novalidate: true, // a position that there isn't is told by the page
      onsubmit: (event) => {
        event.preventDefault();
        ask();
      },
      oninput: () => {
        clamped.hidden = true;
        result.classList.add("old"); // it is another word's, until this one is asked for
      },
    },
    field(spelling, "words.word"),
    field(places[0], "words.at"),
    field(places[1], "words.and"),
    !offline && el("button", { say: "words.show" }),
  );
  form.addEventListener("change", ask);
  const pieces = el("div", { class: "buttons" });
  const note = el("p", { class: "quiet" });
  const clamped = el("p", { class: "quiet", role: "status", hidden: true });
  const says = el("p");
  const sums = matrix([], {});
  const verdict = el("p");
  const result = el("div", {}, note, pieces, says, el("div", { class: "sum" }, sums), verdict);
  const node = el(
    "section",
    { class: "card", "aria-labelledby": "words-position" },
    el("h2", { id: "words-position", say: "words.position.title" }),
    el("p", { say: "words.position.does" }),
    form,
    clamped,
    offered,
    result,
  );
  const square = matrix([], {});
  const waves = el("p");
  const alike = el(
    "section",
    { class: "card", "aria-labelledby": "words-wpe" },
    el("h2", { id: "words-wpe", say: "words.wpe.title" }),
    waves,
    square,
  );
  if (offline) for (const each of [spelling, ...places]) each.readOnly = true;

  async function ask() {
    if (offline) return;
    [word, at, chosen, own] = [spelling.value, places.map((place) => place.valueAsNumber || 0), 0, true];
    await app.trying(node, load);
  }

  // A word that the model can't read, or that would stand beyond its block, would only be refused: ask for one that fits.
  async function load() {
    const turn = ++turns;
    offer();
    if (!offline) {
      const { block_size } = app.model.model;
      let pieces = await readable(app.model, word);
      if (!pieces && !own) {
        word = spelling.value = fromText()[0] ?? [...app.text.trim()].slice(0, 4).join("");
        pieces = await readable(app.model, word);
      }
      if (turn !== turns) throw overtaken();
      if (!pieces || pieces.length > Math.min(PIECES, block_size)) throw refusal("error.word");
      const asked = at;
      at = asked.map((each) => Math.max(0, Math.min(each, block_size - pieces.length)));
      if (at.some((each, i) => each !== asked[i])) clamped.hidden = false; // until something else is typed
      say(clamped, "words.clamped", { last: block_size - pieces.length });
      places.forEach((place, i) => {
        place.max = block_size - 1;
        if (at[i] !== asked[i]) place.value = at[i]; // else what is being typed stays
      });
    }
    seen = await lens("position", { word, at }, { instead: "position" });
    chosen = Math.min(chosen, seen.tokens.length - 1);
    result.classList.toggle("old", !offline && spelling.value !== word);
    draw();
    drawSquare();
  }

  // A token is a byte at the least, or with characters for tokens a character: so many are never too many.
  const tokensAtMost = (each) =>
    app.model.tokenizer === "char" ? [...each].length : new TextEncoder().encode(each).length;
  const fromText = () =>
    [...new Set(app.text.match(/[\p{L}\p{M}]+/gu) ?? [])]
      .filter((each) => tokensAtMost(each) <= Math.min(PIECES, app.model.model.block_size))
      .slice(0, FROM_TEXT);

  function offer() {
    const found = fromText();
    offered.hidden = offline || !found.length;
    offered.replaceChildren(
      el("span", { class: "quiet", say: "words.from" }),
      ...found.map((each) =>
        el(
          "button",
          {
            type: "button",
            class: "small chip",
            onclick: () => {
              spelling.value = each;
              clamped.hidden = true;
              ask();
            },
          },
          each,
        ),
      ),
    );
  }

  function draw() {
    const many = seen.tokens.length > 1;
    note.hidden = !seen.note;
    if (seen.note) say(note, many ? "words.pieces" : "words.space", { n: seen.tokens.length });
    pieces.hidden = !many;
    pieces.replaceChildren(
      ...(many
        ? seen.tokens.map((piece, i) =>
            el(
              "button",
              {
                type: "button",
                class: "small chip",
                "aria-pressed": String(i === chosen),
                onclick: () => {
                  chosen = i;
                  draw();
                },
              },
              piece.token.label,
            ),
          )
        : []),
    );
    const piece = seen.tokens[chosen];
    const { id: token } = piece.token,
      [one, two] = piece.at;
    say(says, "words.sum", { token: chip(piece.token), id: token, C: piece.wte.length });
    say(verdict, "words.distance", { distance: number(piece.distance, 3), cosine: number(piece.cosine, 3) });
    const rows = [piece.wte, piece.wpe[0], piece.x[0], piece.wte, piece.wpe[1], piece.x[1]];
    const names = [`wte[${token}]`, `+ wpe[${one}]`, `= x[${one}]`, `wte[${token}]`, `+ wpe[${two}]`, `= x[${two}]`];
    const n = (x) => (x < 0 ? `(${exact(x)})` : exact(x));
    sums.show(rows, {
      rows: names,
      gaps: [3],
      cellHeight: 26,
      maxCell: 26,
      label: t("words.position.title"),
      at: sums.values.length ? undefined : [2, 0],
      tell: (r, c) => {
        const i = r < 3 ? 0 : 1;
        return code(
          `x[${piece.at[i]}, ${c}] = wte[${token}, ${c}] + wpe[${piece.at[i]}, ${c}] = ${exact(piece.wte[c])} + ${n(piece.wpe[i][c])} = ${exact(piece.x[i][c])}`,
          { class: "origin" },
        );
      },
    });
  }

  function drawSquare() {
    const { positions, similarity } = seen;
    const began = app.model.wpe_start === "waves" ? "words.wpe.waves" : "words.wpe.random";
    say(waves, "words.wpe.does", { start: el("span", { say: began }) });
    square.show(similarity, {
      rows: (i) => String(positions[i]),
      columns: (i) => String(positions[i]),
      max: 1,
      maxCell: Math.min(20, 560 / positions.length),
      label: t("words.wpe.title"),
      at: square.values.length ? undefined : [Math.min(10, positions.length - 1), 1],
      tell: (a, b, value) =>
        said("words.wpe.cell", { a: positions[a], b: positions[b], cosine: el("b", {}, exact(value)) }),
    });
  }

  return { node, alike, load };
}

// The tokens of a word as the lens takes it, with the space before it if so it is one; null where the tokenizer doesn't
// know all of its letters.
export async function readable(model, word) {
  if (!word || (await knownOf(word, model)) !== word) return null;
  const ask = async (text) => lens("tokens", { model: model.id, step: null, text, unknown: "skip" });
  const { tokens } = await ask(word);
  if (tokens.length === 1 || !["bpe", "gpt2"].includes(model.tokenizer)) return tokens;
  const spaced = (await ask(` ${word}`)).tokens;
  return spaced.length === 1 ? spaced : tokens;
}
