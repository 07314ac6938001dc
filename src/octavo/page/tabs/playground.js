// Playground: the model generates a text, and each token shows which other tokens were possible at its position.
// Choosing one of these keeps the ids before it and starts a branch; tabs/playground/branches.js has the tree of all
// branches.

import { fetchView, isAbortError, keepKnownCharacters, requireReadable } from "octavo/api";
import { el, field, say, stackedField } from "octavo/dom";
import { t } from "octavo/i18n";
import { branchTokens, nextWindowStart, Tree, TreeView } from "octavo/tabs/playground/branches";
import { Contributions } from "octavo/tabs/playground/contributions";
import { decodeTokens, generateTokens } from "octavo/tabs/playground/generation";
import { LogitLens } from "octavo/tabs/playground/logit_lens";
import { NextTokenBars } from "octavo/tabs/playground/next_token";
import { SamplingControls } from "octavo/tabs/playground/sampling_controls";
import { Surprisal } from "octavo/tabs/playground/surprisal";
import { markLineBreak, tokenSpans, unknownCharacters } from "octavo/tokens";

const MAX_NEW_TOKENS = 2000;

export function mount(panel, app) {
  let model = null; // {id, n_layer, …, block_size, vocab_size}
  let tree = new Tree();
  let current = null; // the text on screen: {branch, tokens, decoded: the answer of the view `tokens`}
  // The position that is explained:
  //   index       its number
  //   isEnd       whether the text ends before it
  //   ids         the tokens of the model's window before it
  //   actual      the token at it, or null at the end of the text
  //   step        of the checkpoint
  //   nextToken   the answer of the view `next_token`; null at the first position, where there is none
  let position = null;
  let generation = null; // the AbortController of the text that is being generated
  let lastRequest = 0; // the number of the last call of `showBranch`; earlier calls that still wait are dropped

  // ---- Elements

  const prompt = el("textarea", { id: "prompt", rows: 2, dir: "auto", spellcheck: "false", maxlength: 20000 });
  const length = el("input", { id: "length", type: "number", min: 1, max: MAX_NEW_TOKENS, value: 100 });
  const writeButton = el("button", { class: "main", type: "submit", say: "play.write" });
  const stopButton = el("button", { type: "button", say: "common.stop", onclick: () => generation?.abort() });
  const onContinue = () => app.runTask(panel, continueText);
  const continueButton = el("button", { type: "button", say: "play.on", onclick: onContinue });
  const status = el("p", { class: "quiet" }); // announced when the text ends, not with every token
  const unknownNote = el("p", { class: "quiet", hidden: true });
  const stepNote = el("p", { class: "caveat" });
  const textHolder = el("div", { class: "scrolling-text" });
  const textHint = el("p", { class: "quiet" });
  const tokenButtons = el("p", { class: "pieces" }); // of a character that is several tokens
  const treeView = new TreeView((branch) => !generation && app.runTask(panel, () => showBranch(branch)));
  const treeHint = el("p", { class: "quiet" });
  const controls = new SamplingControls(() => nextToken.draw());
  const idleNote = el("p", { class: "quiet", say: "next_token.idle" });
  const nextToken = new NextTokenBars(controls, (token) => app.runTask(panel, () => chooseToken(token)));
  const logitLens = new LogitLens();
  const contributions = new Contributions();
  const surprisal = new Surprisal(app);
  const explanations = [logitLens, contributions].map((part) => el("div", { class: "card" }, part.element));
  const form = el(
    "form",
    {
      class: "card",
      onsubmit: (event) => {
        event.preventDefault();
        app.runTask(panel, startText);
      },
    },
    stackedField(prompt, "play.prompt"),
    el("div", { class: "row" }, writeButton, stopButton, continueButton, field(length, "play.length")),
    stepNote,
    unknownNote,
    status,
  );
  panel.append(
    el("p", { class: "lead", say: "play.lead" }),
    el(
      "div",
      { class: "workspace" },
      form,
      el("div", { class: "card" }, el("h2", { say: "play.text" }), textHint, textHolder),
      el("div", { class: "card side" }, controls.element, idleNote, tokenButtons, nextToken.element),
      el("div", { class: "card" }, el("h2", { say: "tree.title" }), treeHint, treeView.element),
      explanations[0],
    ),
    explanations[1],
    surprisal.element,
  );

  // ---- Generation

  async function startText() {
    if (!prompt.value) {
      prompt.focus();
      return void say(status, "error.no_text");
    }
    const root = await findOrAddRoot();
    if (root) await generate(tree.fork(root, root.tokens.length, []));
  }

  // The tree's root for the prompt: the same root for the same ids. Null if another model is chosen meanwhile.
  async function findOrAddRoot() {
    const oldTree = tree;
    await requireReadable(prompt.value, app.model);
    const { tokens, groups } = await fetchView("tokens", { text: prompt.value, unknown: "skip" });
    if (oldTree !== tree) return null;
    const characters = unknownCharacters(prompt.value, groups);
    unknownNote.hidden = !characters;
    say(unknownNote, "text.left_out", { characters });
    const idsOf = (list) => list.map((token) => token.id).join();
    const withWindow = ({ id }, i) => ({ id, windowStart: Math.max(0, i - model.block_size + 1) });
    const root =
      tree.roots.find((other) => idsOf(other.tokens) === idsOf(tokens)) ?? tree.addRoot(tokens.map(withWindow));
    root.text = groups.map((group) => group.text).join("");
    return root;
  }

  // Generates at the end of the text on screen. A branch is extended in place, which its children don't notice: they
  // share only the tokens before their start. A root keeps the prompt alone, so it gets a new branch.
  async function continueText() {
    const { branch } = current;
    await generate(branch.parent ? branch : tree.fork(branch, branch.tokens.length, []));
  }

  // Puts a token at the position that is explained and generates from there; shows the branch that has it, if any.
  async function chooseToken({ id }) {
    const { index, isEnd, actual } = position;
    if (generation || (!isEnd && id === actual.id)) return;
    const { branch, tokens } = current;
    const existing = tree.find(branch, index, id);
    if (existing) return showBranch(existing);
    const token = { id, windowStart: windowStartAt(tokens, index) };
    const extendsBranch = isEnd && branch.parent;
    if (extendsBranch) branch.tokens.push(token);
    await generate(extendsBranch ? branch : tree.fork(branch, index, [token]));
  }

  // Where the model's window began, or will begin, for the token at a position.
  const windowStartAt = (tokens, index) =>
    index >= tokens.length ? nextWindowStart(tokens, model.block_size) : tokens[index].windowStart;

  // Generates at the end of a branch, and shows the text as it grows.
  async function generate(branch) {
    generation?.abort();
    const controller = (generation = new AbortController());
    const maxTokens = Math.min(MAX_NEW_TOKENS, Math.max(1, length.valueAsNumber || 100));
    await showBranch(branch, { explain: false });
    updateButtons();
    let count = 0;
    const textElement = textHolder.querySelector(".running");
    try {
      const options = { isServedStep, controls, signal: controller.signal };
      for await (const { ids, text, windowStart } of generateTokens(branch, maxTokens, model.block_size, options)) {
        branch.tokens.push(...ids.map((id) => ({ id, windowStart })));
        count += ids.length;
        textElement?.append(el("span", { class: "new" }, text));
        textHolder.scrollTop = textHolder.scrollHeight;
        say(status, "play.writing", { count });
      }
    } catch (error) {
      if (!isAbortError(error)) throw error;
    } finally {
      if (generation === controller) {
        generation = null;
        updateButtons();
        say(status, controller.signal.aborted ? "play.stopped" : "play.wrote", { count });
        app.announce(status.textContent);
        await showBranch(branch);
      }
    }
  }

  const isServedStep = () => app.step === null || app.step === app.model.step;

  // ---- The text on screen

  // Shows the text of a branch, and explains the position after it.
  async function showBranch(branch, { explain = true } = {}) {
    const tokens = branchTokens(branch);
    const request = ++lastRequest;
    const decoded = await decodeTokens(
      tokens.map((token) => token.id),
      model.block_size,
    );
    if (request !== lastRequest) return;
    current = { branch, tokens, decoded };
    branch.text = decoded.groups
      .filter((group) => group.first >= branch.start)
      .map((group) => group.text)
      .join("");
    say(textHint, "play.hint");
    const onPick = (first, group, how) => how === "click" && app.runTask(panel, () => explainPosition(first));
    textHolder.replaceChildren(tokenSpans(decoded.tokens, decoded.groups, { decorate: markLineBreak, onPick }));
    drawTree();
    updateButtons();
    if (explain) await explainPosition(tokens.length);
  }

  // Shows which tokens are possible at a position of the text, and why.
  async function explainPosition(index) {
    const { tokens, decoded } = current;
    const isEnd = index >= tokens.length;
    const windowStart = windowStartAt(tokens, index);
    const ids = tokens.slice(windowStart, index).map((token) => token.id);
    const actual = isEnd ? null : decoded.tokens[index];
    markPosition(index, windowStart);
    const answer = ids.length ? await fetchView("next_token", { text: ids }, { replaces: "next_token" }) : null;
    if (current?.decoded !== decoded) return;
    position = { index, isEnd, ids, actual, step: app.step, nextToken: answer };
    idleNote.hidden = true;
    nextToken.show(position);
    for (const card of explanations) card.hidden = !answer;
    if (answer) await Promise.all([logitLens.show(position), contributions.show(position, nextToken.mostLikely)]);
  }

  // Marks the chosen token, and hatches those outside the model's window at that position.
  function markPosition(index, windowStart) {
    const { tokens, groups } = current.decoded;
    const contains = ({ first, count }) => index >= first && index < first + count;
    textHolder.querySelectorAll(".token").forEach((span, i) => {
      const { first, count } = groups[i];
      const isChosen = contains(groups[i]);
      span.classList.toggle("chosen", isChosen);
      span.classList.toggle("out-of-window", first + count <= windowStart);
      if (isChosen) span.setAttribute("aria-current", "true");
      else span.removeAttribute("aria-current");
    });
    say(textHint, windowStart ? "play.window" : "play.hint", { block: model.block_size });
    const group = groups.find((candidate) => contains(candidate) && candidate.count > 1);
    tokenButtons.hidden = !group;
    if (group) drawTokenButtons(group, tokens, index);
  }

  function drawTokenButtons({ first, count }, tokens, index) {
    const button = (token, i) =>
      el(
        "button",
        {
          type: "button",
          class: "small chip",
          "aria-pressed": String(index === first + i),
          title: token.bytes,
          onclick: () => app.runTask(panel, () => explainPosition(first + i)),
        },
        token.label,
      );
    const buttons = tokens.slice(first, first + count).map(button);
    tokenButtons.replaceChildren(t("next_token.pieces", { count }), " ", ...buttons);
  }

  function drawTree() {
    say(treeHint, tree.roots.some((root) => root.children.length) ? "tree.hint" : "tree.empty");
    treeView.draw(tree, current?.branch);
  }

  function updateButtons() {
    const isGenerating = Boolean(generation);
    writeButton.disabled = isGenerating;
    stopButton.disabled = !isGenerating;
    continueButton.disabled = isGenerating || !current;
    nextToken.list.classList.toggle("waiting", isGenerating); // no token can be chosen while a text is generated
  }

  // ---- Another model, step or language

  async function update() {
    if (!app.model) return;
    const chosen = app.model;
    const isOtherModel = model?.id !== chosen.id;
    const readable = isOtherModel ? await keepKnownCharacters(app.text, chosen) : "";
    if (chosen !== app.model) return; // another model was chosen meanwhile
    if (isOtherModel) reset(readable);
    controls.showValues();
    stepNote.hidden = isServedStep();
    if (!isServedStep()) say(stepNote, "play.other", { served: chosen.step, step: app.step });
    surprisal.update(isOtherModel);
    if (isOtherModel && prompt.value) {
      const root = await findOrAddRoot(); // so that there is something to explain
      if (root) await showBranch(root);
      return;
    }
    if (!current || generation) return;
    drawTree();
    await explainPosition(position?.index ?? current.tokens.length);
  }

  function reset(text) {
    generation?.abort();
    generation = null;
    model = { id: app.model.id, ...app.model.model };
    tree = new Tree();
    current = position = null;
    lastRequest++; // drops a call of `showBranch` that still waits
    controls.setVocabularySize(model.vocab_size);
    prompt.value = text.split(/\s+/).slice(0, 3).join(" ");
    textHolder.replaceChildren();
    drawTree();
    for (const part of [nextToken, logitLens, contributions]) part.element.hidden = true;
    for (const card of explanations) card.hidden = true;
    idleNote.hidden = false;
    say(textHint, "play.idle");
    say(status, "play.ready");
    updateButtons();
  }

  return { update };
}
