// The text on the playground, in one box: as an editor to write in, or token by token, with the chosen position and the
// model's window there.

import { el, setSentence } from "octavo/dom";
import { t } from "octavo/i18n";
import { surprisalLevel } from "octavo/tabs/playground/surprisal";
import { markLineBreak, positionsOf, tokenSpans } from "octavo/tokens";

export class TextView {
  // `onPick(index)` is called when the user chooses the token at a position.
  constructor(onPick) {
    this.onPick = onPick;
    this.decoded = null; // {tokens, groups} of the text, see `decodeTokens`
    this.text = null; // its element, see `tokenSpans`
    this.hint = el("p", { class: "quiet", id: "prompt-hint" });
    this.editor = el("textarea", {
      id: "prompt",
      rows: 4,
      dir: "auto",
      spellcheck: "false",
      maxlength: 20000,
      labelKey: "play.prompt",
      "aria-describedby": "prompt-hint",
    });
    this.holder = el("div", { class: "scrolling-text" });
    this.tintNote = el("p", { class: "quiet", textKey: "surprisal.legend", hidden: true });
    this.element = el("div", { class: "text-box" }, this.hint, this.editor, this.holder, this.tintNote);
    this.tokenButtons = el("p", { class: "character-tokens" }); // of a chosen character of several tokens
  }

  get isEditing() {
    return this.holder.hidden;
  }

  // Lets the user write, beginning with a text.
  edit(text) {
    this.editor.value = text;
    this.#setEditing(true);
  }

  #setEditing(isEditing) {
    this.editor.hidden = !isEditing;
    this.holder.hidden = isEditing;
    if (isEditing) this.tintNote.hidden = true;
    if (isEditing) setSentence(this.hint, "play.editing");
  }

  show(decoded) {
    this.decoded = decoded;
    const onSpanEvent = ({ first }, type) => type === "click" && this.onPick(first);
    this.text = tokenSpans(decoded.tokens, decoded.groups, { decorate: markLineBreak, onSpanEvent });
    this.holder.replaceChildren(this.text);
    this.#setEditing(false);
    setSentence(this.hint, "play.hint");
  }

  // Marks each token by its surprisal in nats, one for each position; null if it isn't known.
  tint(surprisal) {
    this.tintNote.hidden = !surprisal || this.isEditing;
    this.text.spans.forEach((span, i) => {
      const levels = surprisal ? positionsOf(this.decoded.groups[i]).map((at) => surprisalLevel(surprisal[at])) : [0];
      span.classList.add("surprisal-bar", `level-${Math.max(...levels)}`);
    });
  }

  // Adds generated text, which isn't decoded into tokens yet, and scrolls to its end.
  append(text) {
    this.text?.append(el("span", { class: "new" }, text));
    this.holder.scrollTop = this.holder.scrollHeight;
  }

  // Marks the token at a position as chosen, and hatches those outside the model's window there.
  mark(index, windowStart, blockSize) {
    const { tokens, groups } = this.decoded;
    const contains = ({ first, count }) => index >= first && index < first + count;
    this.text.spans.forEach((span, i) => {
      const { first, count } = groups[i];
      const isChosen = contains(groups[i]);
      span.classList.toggle("chosen", isChosen);
      span.classList.toggle("out-of-window", first + count <= windowStart);
      if (isChosen) span.setAttribute("aria-current", "true");
      else span.removeAttribute("aria-current");
    });
    if (!this.isEditing) setSentence(this.hint, windowStart ? "play.window" : "play.hint", { block: blockSize });
    const group = groups.find((candidate) => contains(candidate) && candidate.count > 1);
    this.tokenButtons.hidden = !group;
    if (group) this.#drawTokenButtons(group, tokens, index);
  }

  #drawTokenButtons({ first, count }, tokens, index) {
    const button = (token, i) =>
      el(
        "button",
        {
          type: "button",
          class: "small chip",
          "aria-pressed": String(index === first + i),
          title: token.bytes,
          onclick: () => this.onPick(first + i),
        },
        token.label,
      );
    const buttons = tokens.slice(first, first + count).map(button);
    this.tokenButtons.replaceChildren(t("next_token.character_tokens", { count }), " ", ...buttons);
  }
}
