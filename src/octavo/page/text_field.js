// The field for the text of the tabs Model, Walk, Attention, and Positions and words, with examples to choose from.
// Notes below it say why the tokenizer can't encode the text, which of its characters it doesn't know, and whether it is
// too long.

import { fetchView, findTokenizationProblem, offline } from "octavo/api";
import { el, setOptions, setSentence } from "octavo/dom";
import { t } from "octavo/i18n";

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
  const cutNote = el("p", { class: "quiet", id: "cut-text", role: "status", hidden: true });
  const onExample = () => {
    setText(examples.value);
    onText(examples.value);
  };
  const examples = el("select", { id: "example", labelKey: "text.examples", onchange: onExample, hidden: true });
  const element = el(
    "form",
    { class: "text", labelKey: "header.text", onsubmit: (event) => event.preventDefault() },
    el("label", { for: "text", textKey: "header.text" }),
    el("div", { class: "text-body" }, box, problemNote, unknownNote, cutNote),
    examples,
  );

  let timer;
  box.addEventListener("input", () => {
    fitHeight();
    clearTimeout(timer);
    timer = setTimeout(checkText, TYPING_PAUSE);
  });

  // Enter takes the text at once; a line break, which is a token too, is typed with Shift.
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    clearTimeout(timer);
    checkText();
  });

  const checkText = () =>
    app.runPageTask(async () => {
      const text = box.value;
      const problem = await findTokenizationProblem(text, app.model);
      if (text !== box.value) return; // the user has typed more
      setProblem(problem);
      if (!problem) onText(text);
    });

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
    examples.hidden = offline || !app.examples.length;
    setOptions(examples, [["", t("text.examples")], ...app.examples.map((text) => [text, text])], app.text);
    if (examples.value !== app.text) examples.value = "";
    examples.options[0].disabled = true;
    fitHeight();
  }

  function setText(text) {
    setProblem(null);
    box.value = text;
  }

  // Names the characters that the tokenizer doesn't know and that the views therefore skip, and says how many tokens
  // the model can't take. The tabs ask for the same tokens, so the answer is mostly cached.
  async function noteOmissions() {
    const { text } = app;
    const answer = text && !offline ? await fetchView("tokens", { text, unknown: "skip" }).catch(() => null) : null;
    if (text !== app.text) return;
    const known = new Set(answer?.text);
    const unknown = answer ? [...new Set(text)].filter((character) => !known.has(character)) : [];
    unknownNote.hidden = !unknown.length;
    setSentence(unknownNote, "text.left_out", { characters: unknown.slice(0, 30).join(" ") });
    const all = answer ? answer.tokens.length + answer.left_out : 0;
    const block = app.model?.model.block_size;
    cutNote.hidden = !(all > block);
    setSentence(cutNote, "text.cut", { all, block, n: all - block });
  }

  return { element, fitHeight, update, setText, noteOmissions, value: () => box.value };
}
