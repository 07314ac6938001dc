// The field for the text of the tabs Walk, Attention, and Positions and words. Notes below it say why the
// tokenizer can't encode the text, or which of its characters it doesn't know.

import { fetchView, findTokenizationProblem, offline } from "octavo/api";
import { el, setSentence } from "octavo/dom";

const TYPING_PAUSE = 250; // milliseconds
const MAX_HEIGHT = 200; // pixels

// `onText(text)` is called when the user has typed a text that the tokenizer can encode; `onProblem(hasProblem)` after
// each check of the text.
export function createTextField(app, onText, onProblem) {
  const box = el("textarea", {
    id: "text",
    rows: 1,
    dir: "auto",
    spellcheck: "false",
    maxlength: 20000,
    autocomplete: "off",
    readonly: offline,
  });
  const problemNote = el("p", { class: "problem", id: "tokenization-problem", role: "alert", hidden: true });
  const unknownNote = el("p", { class: "quiet", id: "unknown-characters", role: "status", hidden: true });
  const element = el(
    "form",
    { class: "text", labelKey: "header.text", onsubmit: (event) => event.preventDefault() },
    el("label", { for: "text", textKey: "header.text" }),
    el("div", { class: "text-body" }, box, problemNote, unknownNote),
  );

  let timer;
  box.addEventListener("input", () => {
    fitHeight();
    clearTimeout(timer);
    timer = setTimeout(checkText, TYPING_PAUSE);
  });

  async function checkText() {
    const text = box.value;
    const problem = await findTokenizationProblem(text, app.model);
    if (text !== box.value) return; // the user typed on
    setProblem(problem);
    if (!problem) onText(text);
  }

  // `problem`: the [key, values] of a sentence, or null.
  function setProblem(problem) {
    problemNote.hidden = !problem;
    if (problem) setSentence(problemNote, ...problem);
    onProblem(Boolean(problem));
  }

  function fitHeight() {
    box.style.height = "auto";
    box.style.height = `${Math.min(MAX_HEIGHT, box.scrollHeight + 2)}px`;
  }

  // Shows the text of `app`, unless the user is typing another.
  function update() {
    if (document.activeElement !== box && problemNote.hidden) box.value = app.text;
    fitHeight();
  }

  function setText(text) {
    setProblem(null);
    box.value = text;
  }

  // Names the characters that the tokenizer doesn't know and that the views therefore skip. The tabs ask for the same
  // tokens, so the answer is mostly cached.
  async function noteUnknownCharacters() {
    const { text } = app;
    const answer = text && !offline ? await fetchView("tokens", { text, unknown: "skip" }).catch(() => null) : null;
    if (text !== app.text) return;
    const known = new Set(answer?.text);
    const unknown = answer ? [...new Set(text)].filter((character) => !known.has(character)) : [];
    unknownNote.hidden = !unknown.length;
    setSentence(unknownNote, "text.left_out", { characters: unknown.slice(0, 30).join(" ") });
  }

  return { element, fitHeight, update, setText, noteUnknownCharacters, value: () => box.value };
}
