// Playground: the model continues a text in the box where the user writes it. Each token shows which other tokens were
// possible at its position. Choosing one of these keeps the ids before it and starts a branch;
// tabs/playground/branches.js has the tree of all branches.

import { fetchView, isAbortError, keepKnownCharacters, requireTokenizable } from "octavo/api";
import { copyText, el, field, foldable, setSentence } from "octavo/dom";
import { t } from "octavo/i18n";
import { readStorage, writeStorage } from "octavo/storage";
import { branchTokens, nextWindowStart, Tree, TreeView } from "octavo/tabs/playground/branches";
import { Chat } from "octavo/tabs/playground/chat";
import { Contributions } from "octavo/tabs/playground/contributions";
import { decodeTokens, generateTokens } from "octavo/tabs/playground/generation";
import { LogitLens } from "octavo/tabs/playground/logit_lens";
import { NextTokenBars } from "octavo/tabs/playground/next_token";
import { SamplingControls } from "octavo/tabs/playground/sampling_controls";
import { Surprisal } from "octavo/tabs/playground/surprisal";
import { TextView } from "octavo/tabs/playground/text_view";
import { unknownCharacters } from "octavo/tokens";

const MAX_NEW_TOKENS = 2000;

export const mount = (panel, app) => new Playground(panel, app);

class Playground {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    this.config = null; // of the model: {id, n_layer, …, block_size, vocab_size}; `app.model` has these in `model`
    this.tree = new Tree();
    this.current = null; // the text on screen: {branch, tokens, decoded: the answer of the view `tokens`}
    // The position that is explained:
    //   index       its number
    //   isEnd       whether the text ends before it
    //   ids         the tokens of the model's window before it
    //   actual      the token at it, or null at the end of the text
    //   step        of the checkpoint
    //   nextToken   the answer of the view `next_token`; null at the first position, which has none
    this.position = null;
    this.generation = null; // the AbortController of the text that is being generated
    this.lastRequest = 0; // the number of the last call of #showBranch; earlier calls that still wait are dropped
    this.#createViews();
    this.#createForm();
    const treeCard = el("div", { class: "card" }, el("h2", { textKey: "tree.title" }), this.treeHint, this.treeView.element);
    this.panel.append(
      el("p", { class: "lead", textKey: "play.lead" }),
      this.modeChooser,
      el(
        "div",
        { class: "workspace" },
        this.form,
        this.chat.element,
        this.sideCard,
        foldable(treeCard),
        this.explanationCards[0],
      ),
      this.explanationCards[1],
      foldable(this.surprisal.element),
    );
  }

  // After a change of model, step, text or language.
  async update() {
    const { app } = this;
    if (!app.model) return;
    const chosen = app.model;
    const isOtherModel = this.config?.id !== chosen.id;
    const knownText = isOtherModel ? await keepKnownCharacters(app.text, chosen) : "";
    if (chosen !== app.model) return; // another model was chosen meanwhile
    if (isOtherModel) this.#reset(knownText);
    this.chat.update();
    this.modeChooser.hidden = !chosen.has_chat_template;
    this.#showMode();
    this.controls.showValues();
    this.stepNote.hidden = this.#isServedStep();
    if (!this.#isServedStep()) setSentence(this.stepNote, "play.other_step", { served: chosen.step, step: app.step });
    this.surprisal.update(isOtherModel);
    if (isOtherModel) return this.#showFirstText();
    if (!this.current || this.generation) return;
    this.#drawTree();
    await this.#explainPosition(this.position?.index ?? this.current.tokens.length);
  }

  // Shows the conversation, or the text and what explains it. A model without a chat template has no conversation.
  #showMode() {
    const isChat = !this.modeChooser.hidden && this.modeChooser.querySelector("[value=chat]").checked;
    this.panel.classList.toggle("chatting", isChat);
    if (isChat) this.generation?.abort();
    else this.chat.stop();
  }

  // Starts again with another model.
  #reset(text) {
    const { app, nextToken, logitLens, contributions } = this;
    this.generation?.abort();
    this.generation = null;
    this.config = { id: app.model.id, ...app.model.model };
    this.tree = new Tree();
    this.current = this.position = null;
    this.lastRequest++; // drops a call of #showBranch that still waits
    this.controls.setVocabularySize(this.config.vocab_size);
    this.textView.edit(text.split(/\s+/).slice(0, 3).join(" "));
    this.#drawTree();
    for (const part of [nextToken, logitLens, contributions]) part.element.hidden = true;
    for (const card of this.explanationCards) card.hidden = true;
    this.idleNote.hidden = false;
    this.status.hidden = true;
    this.#updateButtons();
  }

  // Shows the text of before a reload, else the beginning of the shared text, so that there is something to explain.
  async #showFirstText() {
    const { tree } = this;
    if (await this.#restoreTree()) return;
    if (tree !== this.tree || !this.textView.editor.value) return;
    const root = await this.#findOrAddRoot(this.textView.editor.value);
    if (root) await this.#showBranch(root);
  }

  // ---- Branches are kept until the window is closed

  get #storageKey() {
    return `octavo-branches ${this.config.id}`;
  }

  #storeTree() {
    const { vocab_size } = this.config;
    const saved = { vocab_size, selected: this.current.branch.number, tree: String(this.tree) };
    writeStorage(this.#storageKey, JSON.stringify(saved), "sessionStorage");
  }

  // Whether there were branches of a model with this vocabulary.
  async #restoreTree() {
    const saved = JSON.parse(readStorage(this.#storageKey, "sessionStorage") ?? "null");
    if (saved?.vocab_size !== this.config.vocab_size) return false;
    const tree = Tree.parse(saved.tree);
    const branch = tree.branch(saved.selected) ?? tree.roots.at(-1);
    if (!branch) return false;
    this.tree = tree;
    await this.#showBranch(branch);
    return true;
  }

  #isServedStep() {
    return this.app.step === null || this.app.step === this.app.model.step;
  }

  #runTask(task) {
    return this.app.runTask(this.panel, task);
  }

  // ---- Elements

  #createForm() {
    const { textView } = this;
    this.length = el("input", { id: "length", type: "number", min: 1, max: MAX_NEW_TOKENS, value: 100 });
    this.generateButton = el("button", { class: "main", type: "submit", textKey: "play.generate" });
    const button = (textKey, onclick) => el("button", { type: "button", textKey, onclick });
    this.stopButton = button("common.stop", () => this.generation?.abort());
    this.regenerateButton = button("play.again", () => this.#runTask(() => this.#regenerate()));
    this.editButton = el("button", { type: "button", class: "edit", onclick: () => this.#toggleEditor() });
    this.copyButton = button("play.copy", () => this.#copy());
    this.stepNote = el("p", { class: "caveat" });
    this.unknownNote = el("p", { class: "quiet", hidden: true });
    this.status = el("p", { class: "quiet" }); // announced when the text ends, not with every token
    const onsubmit = (event) => {
      event.preventDefault();
      if (!this.generation) this.#runTask(() => this.#continueText());
    };
    this.form = el(
      "form",
      { class: "card", onsubmit, onkeydown: (event) => this.#handleKey(event) },
      el("h2", { textKey: "play.text" }),
      textView.element,
      el(
        "div",
        { class: "row" },
        this.generateButton,
        this.stopButton,
        this.regenerateButton,
        this.editButton,
        this.copyButton,
        field(this.length, "play.length"),
      ),
      this.stepNote,
      this.unknownNote,
      this.status,
    );
  }

  // Ctrl and Enter generate. F2 opens the editor, Escape closes it.
  #handleKey(event) {
    if (this.generation || event.isComposing) return;
    const { isEditing, editor } = this.textView;
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    else if (event.key === (isEditing ? "Escape" : "F2") && (!isEditing || editor.value)) this.#toggleEditor();
    else return;
    event.preventDefault();
    event.stopPropagation(); // the key chooses no token
  }

  #createViews() {
    this.textView = new TextView((index) => this.#runTask(() => this.#explainPosition(index)));
    this.treeView = new TreeView((branch) => !this.generation && this.#runTask(() => this.#showBranch(branch)));
    this.treeHint = el("p", { class: "quiet" });
    this.controls = new SamplingControls(() => this.nextToken.draw());
    this.nextToken = new NextTokenBars(this.controls, (token) => this.#runTask(() => this.#chooseToken(token)));
    this.idleNote = el("p", { class: "quiet", textKey: "next_token.idle" });
    this.sideCard = el(
      "div",
      { class: "card side" },
      this.controls.element,
      this.idleNote,
      this.textView.tokenButtons,
      this.nextToken.element,
    );
    this.logitLens = new LogitLens();
    this.contributions = new Contributions();
    this.explanationCards = [this.logitLens, this.contributions].map(({ element }) =>
      el("div", { class: "card" }, foldable(element)),
    );
    this.surprisal = new Surprisal(this.app);
    this.chat = new Chat(this.app, this.controls, (task) => this.#runTask(task));
    const mode = (value) => {
      const input = el("input", { type: "radio", name: "mode", value, checked: value === "text" });
      return el("label", { class: "check" }, input, el("span", { textKey: `play.mode.${value}` }));
    };
    this.modeChooser = el(
      "fieldset",
      { class: "tight-row plain", onchange: () => this.#showMode() },
      el("legend", { textKey: "play.mode" }),
      ["text", "chat"].map(mode),
    );
  }

  // ---- Generation

  // Opens the editor with the text on screen; or closes it and shows its text token by token.
  #toggleEditor() {
    if (this.textView.isEditing) return this.#runTask(() => this.#takeEditedText());
    this.textView.edit(this.#text());
    this.#updateButtons();
    this.textView.editor.focus();
  }

  #say(key, values) {
    setSentence(this.status, key, values);
    this.status.hidden = false;
  }

  #text() {
    return this.current?.decoded.groups.map((group) => group.text).join("") ?? "";
  }

  // Shows the edited text token by token: the branch on screen if it is unchanged, else a new root. Returns
  // whether there is a text.
  async #takeEditedText({ explain = true } = {}) {
    const { editor } = this.textView;
    const hadFocus = document.activeElement === editor;
    if (!editor.value) {
      editor.focus();
      this.#say("error.no_text");
      return false;
    }
    const branch = editor.value === this.#text() ? this.current.branch : await this.#findOrAddRoot(editor.value);
    if (!branch) return false;
    await this.#showBranch(branch, { explain });
    if (hadFocus) this.textView.text.querySelector("[tabindex='0']")?.focus({ preventScroll: true });
    return true;
  }

  // The tree's root for a prompt: the same root for the same ids. Null if another model is chosen meanwhile.
  async #findOrAddRoot(prompt) {
    const { tree, config } = this;
    await requireTokenizable(prompt, this.app.model);
    const { tokens, groups } = await fetchView("tokens", { text: prompt, unknown: "skip" });
    if (tree !== this.tree) return null;
    const characters = unknownCharacters(prompt, groups);
    this.unknownNote.hidden = !characters;
    setSentence(this.unknownNote, "text.left_out", { characters });
    const idsOf = (list) => list.map((token) => token.id).join();
    const withWindow = ({ id }, i) => ({ id, windowStart: Math.max(0, i - config.block_size + 1) });
    const root =
      tree.roots.find((other) => idsOf(other.tokens) === idsOf(tokens)) ?? tree.addRoot(tokens.map(withWindow));
    root.text = groups.map((group) => group.text).join("");
    return root;
  }

  // Generates at the end of the text in the box. A branch is extended in place, which its children don't notice: they
  // share only the tokens before their start. A root holds only the prompt, so it gets a new branch.
  async #continueText() {
    if (this.textView.isEditing && !(await this.#takeEditedText({ explain: false }))) return;
    const { branch } = this.current;
    await this.#generate(branch.parent ? branch : this.tree.fork(branch, branch.tokens.length, []));
  }

  // Generates the last part of the text on screen again, as a new branch.
  async #regenerate() {
    const { parent, start } = this.current.branch;
    await this.#generate(this.tree.fork(parent, start, []));
  }

  async #copy() {
    await copyText(this.#text());
    this.app.announce(t("play.copied"));
    this.#say("play.copied");
  }

  // Puts a token at the position that is explained and generates from there. If a branch already has this token there,
  // that branch is shown instead.
  async #chooseToken({ id }) {
    const { index, isEnd, actual } = this.position;
    if (this.generation || (!isEnd && id === actual.id)) return;
    const { branch, tokens } = this.current;
    const existing = this.tree.find(branch, index, id);
    if (existing) return this.#showBranch(existing);
    const token = { id, windowStart: this.#windowStart(tokens, index) };
    const extendsBranch = isEnd && branch.parent;
    if (extendsBranch) branch.tokens.push(token);
    await this.#generate(extendsBranch ? branch : this.tree.fork(branch, index, [token]));
  }

  // Generates at the end of a branch, and shows the text as it grows.
  async #generate(branch) {
    this.generation?.abort();
    const controller = (this.generation = new AbortController());
    const maxTokens = Math.min(MAX_NEW_TOKENS, Math.max(1, this.length.valueAsNumber || 100));
    await this.#showBranch(branch, { explain: false });
    this.#updateButtons();
    let count = 0;
    try {
      const { controls, config } = this;
      const options = { isServedStep: () => this.#isServedStep(), controls, signal: controller.signal };
      for await (const { ids, text, windowStart } of generateTokens(branch, maxTokens, config.block_size, options)) {
        branch.tokens.push(...ids.map((id) => ({ id, windowStart })));
        count += ids.length;
        this.textView.append(text);
        this.#say("play.generating", { count });
      }
    } catch (error) {
      if (!isAbortError(error)) throw error;
    } finally {
      if (this.generation === controller) {
        this.generation = null;
        this.#updateButtons();
        this.#say(controller.signal.aborted ? "play.stopped" : "play.generated", { count });
        this.app.announce(this.status.textContent);
        await this.#showBranch(branch);
      }
    }
  }

  // ---- The text and a position in it

  // Shows the text of a branch, and explains the position after it.
  async #showBranch(branch, { explain = true } = {}) {
    const tokens = branchTokens(branch);
    const request = ++this.lastRequest;
    const decoded = await decodeTokens(
      tokens.map((token) => token.id),
      this.config.block_size,
    );
    if (request !== this.lastRequest) return;
    this.current = { branch, tokens, decoded };
    branch.text = decoded.groups
      .filter((group) => group.first >= branch.start)
      .map((group) => group.text)
      .join("");
    this.textView.show(decoded);
    this.#storeTree();
    this.#drawTree();
    this.#updateButtons();
    if (!explain) return;
    await this.#explainPosition(tokens.length);
    if (this.current?.decoded === decoded) await this.#tintText(decoded);
  }

  // A text that is longer than the context was generated with a window that moved, so its surprisal isn't shown.
  async #tintText(decoded) {
    const ids = decoded.tokens.map((token) => token.id);
    const isShort = ids.length > 1 && ids.length <= this.config.block_size;
    const answer = isShort ? await fetchView("surprisal", { text: ids }, { replaces: "tint" }) : null;
    if (this.current?.decoded === decoded) this.textView.tint(answer?.surprisal);
  }

  // Shows which tokens are possible at a position of the text, and why.
  async #explainPosition(index) {
    const { tokens, decoded } = this.current;
    const isEnd = index >= tokens.length;
    const windowStart = this.#windowStart(tokens, index);
    const ids = tokens.slice(windowStart, index).map((token) => token.id);
    const actual = isEnd ? null : decoded.tokens[index];
    this.textView.mark(index, windowStart, this.config.block_size);
    const answer = ids.length ? await fetchView("next_token", { text: ids }, { replaces: "next_token" }) : null;
    if (this.current?.decoded !== decoded) return;
    const position = { index, isEnd, ids, actual, step: this.app.step, nextToken: answer };
    this.position = position;
    this.idleNote.hidden = true;
    this.nextToken.show(position);
    for (const card of this.explanationCards) card.hidden = !answer;
    if (!answer) return;
    const { mostLikely } = this.nextToken;
    await Promise.all([this.logitLens.show(position), this.contributions.show(position, mostLikely)]);
  }

  // Where the model's window began, or will begin, when it predicts the token at a position.
  #windowStart(tokens, index) {
    return index >= tokens.length ? nextWindowStart(tokens, this.config.block_size) : tokens[index].windowStart;
  }

  #drawTree() {
    const { tree } = this;
    setSentence(this.treeHint, tree.roots.some((root) => root.children.length) ? "tree.hint" : "tree.empty");
    this.treeView.draw(tree, this.current?.branch);
  }

  #updateButtons() {
    const isGenerating = Boolean(this.generation);
    const { isEditing } = this.textView;
    this.generateButton.disabled = isGenerating;
    this.stopButton.disabled = !isGenerating;
    this.editButton.disabled = isGenerating;
    setSentence(this.editButton, isEditing ? "play.tokens" : "play.edit");
    this.regenerateButton.disabled = isGenerating || isEditing || !this.current?.branch.parent;
    this.copyButton.disabled = isGenerating || isEditing || !this.current;
    this.nextToken.list.classList.toggle("waiting", isGenerating); // no token can be chosen while a text is generated
  }
}
