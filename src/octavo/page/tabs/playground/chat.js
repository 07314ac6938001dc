// A conversation with a model that has a chat template. The server writes the messages as a prompt. They are kept until
// the window is closed.

import { isAbortError, streamChat } from "octavo/api";
import { copyText, el, setSentence } from "octavo/dom";
import { t } from "octavo/i18n";
import { readStorage, writeStorage } from "octavo/storage";

export class Chat {
  // `controls` are the sampling controls; `runTask(task)` shows the error of a task.
  constructor(app, controls, runTask) {
    Object.assign(this, { app, controls, runTask });
    this.model = null; // its id
    this.messages = []; // {role: "user" or "assistant", content}
    this.answering = null; // the AbortController of the answer that is being generated
    this.list = el("ol", { class: "messages" });
    this.log = el("div", { class: "conversation", role: "log", tabindex: "0", labelKey: "play.mode.chat" }, this.list);
    this.field = el("textarea", { id: "message", rows: 2, dir: "auto", maxlength: 20000, labelKey: "chat.message" });
    this.status = el("p", { class: "quiet" });
    const button = (textKey, onclick) => el("button", { type: "button", textKey, onclick });
    this.sendButton = el("button", { class: "main", type: "submit", textKey: "chat.send" });
    this.stopButton = button("common.stop", () => this.answering?.abort());
    this.againButton = button("play.again", () => this.#answerAgain());
    this.copyButton = button("play.copy", () => this.#copy());
    this.newButton = button("chat.new", () => this.#setMessages([]));
    const onsubmit = (event) => {
      event.preventDefault();
      this.#send();
    };
    this.element = el(
      "form",
      { class: "card chat", onsubmit, onkeydown: (event) => this.#handleKey(event) },
      el("h2", { textKey: "play.mode.chat" }),
      el("p", { class: "quiet", textKey: "chat.hint" }),
      this.log,
      this.field,
      el("div", { class: "row" }, this.sendButton, this.stopButton, this.againButton, this.copyButton, this.newButton),
      this.status,
    );
  }

  // After a change of model: its last conversation.
  update() {
    const { id } = this.app.model;
    if (id === this.model) return;
    this.stop();
    this.model = id;
    this.#setMessages(JSON.parse(readStorage(`octavo-chat ${id}`, "sessionStorage") ?? "[]"));
  }

  stop() {
    this.answering?.abort();
  }

  // Enter sends; a line break is typed with Shift. Escape stops the answer.
  #handleKey(event) {
    if (event.isComposing) return;
    if (event.key === "Escape" && this.answering) this.stop();
    else if (event.key === "Enter" && !event.shiftKey && event.target === this.field) this.#send();
    else return;
    event.preventDefault();
  }

  #send() {
    const content = this.field.value.trim();
    if (!content || this.answering) return this.field.focus();
    this.field.value = "";
    this.#setMessages([...this.messages, { role: "user", content }]);
    this.runTask(() => this.#answer());
  }

  #answerAgain() {
    this.#setMessages(this.messages.slice(0, this.#hasAnswer() ? -1 : undefined));
    this.runTask(() => this.#answer());
  }

  // Generates an answer to the messages and shows it as it grows.
  async #answer() {
    const { messages, model } = this;
    const controller = (this.answering = new AbortController());
    const message = { role: "assistant", content: "" };
    const { item, text } = messageItem(message);
    this.list.append(item);
    this.#say("chat.answering");
    this.#updateButtons();
    try {
      const body = { model, messages, ...this.controls.requestOptions };
      for await (const { choices } of streamChat(body, { signal: controller.signal })) {
        message.content += choices[0]?.delta.content ?? "";
        text.textContent = message.content;
        this.log.scrollTop = this.log.scrollHeight;
      }
    } catch (error) {
      if (!isAbortError(error)) throw error;
    } finally {
      this.answering = null;
      if (this.model === model) this.#setMessages(message.content ? [...messages, message] : messages);
      else this.#updateButtons();
    }
  }

  #setMessages(messages) {
    this.messages = messages;
    writeStorage(`octavo-chat ${this.model}`, JSON.stringify(messages), "sessionStorage");
    this.list.replaceChildren(...messages.map((message) => messageItem(message).item));
    this.log.hidden = !messages.length;
    this.log.scrollTop = this.log.scrollHeight;
    this.status.hidden = true;
    this.#updateButtons();
  }

  async #copy() {
    await copyText(this.messages.at(-1).content);
    this.app.announce(t("play.copied"));
    this.#say("play.copied");
  }

  #say(key) {
    setSentence(this.status, key);
    this.status.hidden = false;
  }

  #updateButtons() {
    const isAnswering = Boolean(this.answering);
    this.sendButton.disabled = isAnswering;
    this.stopButton.disabled = !isAnswering;
    this.againButton.disabled = this.newButton.disabled = isAnswering || !this.messages.length;
    this.copyButton.disabled = isAnswering || !this.#hasAnswer();
  }

  #hasAnswer() {
    return this.messages.at(-1)?.role === "assistant";
  }
}

// {item, text}: a message on screen, and its element that has the content.
function messageItem({ role, content }) {
  const text = el("p", { dir: "auto", class: "message" }, content);
  return { item: el("li", { class: role }, el("h3", { textKey: `chat.${role}` }), text), text };
}
