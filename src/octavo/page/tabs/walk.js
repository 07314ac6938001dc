// Walk: a text goes through the model, stage by stage, in the order of octavo/lens/shapes.py. A diagram shows the
// whole; a card shows one stage: what it does, its shape, the first rows and columns of its values, and how each value
// was computed.

import { exportedOptions, fetchView } from "octavo/api";
import { arrowDirection, el } from "octavo/dom";
import { HeadSelector } from "octavo/head_selector";
import { language, t } from "octavo/i18n";
import { cardContent, MAX_SHOWN } from "octavo/tabs/walk/card";
import { createDiagram } from "octavo/tabs/walk/diagram";
import { STAGE_INDEX, STAGES } from "octavo/tabs/walk/stages";
import { lastWordIndex } from "octavo/tokens";

const MIN_SWIPE = 56; // pixels; shorter swipes are ignored

export const mount = (panel, app) => new Walk(panel, app);

class Walk {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    this.stageIndex = stageOfSubpath(app.getSubpath("walk"));
    this.loaded = null; // see #fetchStages()
    this.cell = [0, 3]; // [token, column]: kept from stage to stage, so that one number can be followed
    this.#createElements();
    this.diagram = createDiagram(this.diagramHolder, (i) => this.#goTo(i));
    document.addEventListener("keydown", (event) => this.#handleKey(event));
    addSwipe(this.card, (count) => this.#moveBy(count));
  }

  update() {
    return this.app.runTask(this.panel, () => this.#fetchStages());
  }

  onSubpath(subpath) {
    this.#goTo(stageOfSubpath(subpath));
  }

  #createElements() {
    const backButton = () => el("button", { type: "button", textKey: "walk.back", onclick: () => this.#moveBy(-1) });
    const nextButton = () =>
      el("button", { type: "button", class: "main", textKey: "walk.next", onclick: () => this.#moveBy(1) });
    this.backButtons = [backButton(), backButton()]; // above the card, and below it on narrow screens
    this.nextButtons = [nextButton(), nextButton()];
    this.counter = el("span", { class: "mono", dir: "ltr" });
    this.selector = new HeadSelector("walk", this.app, () => this.update());
    this.gpt2Checkbox = el("input", { type: "checkbox", onchange: () => this.#draw() });
    this.diagramHolder = el("div", { class: "diagram" });
    this.content = el("div");
    const buttonsBelow = el("p", { class: "buttons below" }, this.backButtons[1], this.nextButtons[1]);
    this.card = el("div", { class: "card" }, this.content, buttonsBelow);
    const gpt2Label = el("label", { class: "check quiet" }, this.gpt2Checkbox, el("span", { textKey: "walk.gpt2" }));
    this.panel.append(
      el(
        "div",
        { class: "steps" },
        el("div", { class: "buttons" }, this.backButtons[0], this.counter, this.nextButtons[0]),
        el("div", { class: "buttons" }, this.selector.fields, gpt2Label),
      ),
      el("div", { class: "sidebar-layout" }, this.diagramHolder, this.card),
    );
  }

  // ---- From stage to stage

  #moveBy(count) {
    this.#goTo(clampIndex(this.stageIndex + count), true);
  }

  #goTo(index, announce = false) {
    if (index === this.stageIndex) return;
    const focusIsInDiagram = this.diagramHolder.contains(document.activeElement);
    this.stageIndex = index;
    this.#draw();
    if (focusIsInDiagram) this.diagram.focus(index);
    if (announce) this.app.announce(`${index + 1} / ${STAGES.length}: ${t(`walk.${STAGES[index].id}.title`)}`);
  }

  // The arrow keys change the stage, except in controls and figures that use them.
  #handleKey(event) {
    const { panel, diagramHolder } = this;
    if (panel.hidden || panel.inert || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, [role=tablist], [role=application], .scroll, .running, dialog"))
      return;
    const vertical = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const count = (diagramHolder.contains(event.target) && vertical) || arrowDirection(event.key);
    if (!count) return;
    this.#moveBy(count);
    event.preventDefault();
  }

  async #continueWithLayer(layer) {
    this.stageIndex = STAGE_INDEX.ln_1;
    this.selector.choose(layer);
    await this.update();
  }

  // ---- Data

  // Sets this.loaded: {model, layer, head, shapes, stages, groups, left_out, logits, vocabulary, layerInput,
  // lastStream}. The last two, the residual stream before this layer and after the last one, arrive later; only
  // formulas use them.
  async #fetchStages() {
    const { model, text } = this.app;
    this.selector.update(model.model, "shapes");
    const { layer, head } = this.selector;
    const options = { text, unknown: "skip" };
    const [shapes, { groups, left_out }, nextToken] = await Promise.all([
      fetchView("shapes", { ...options, layer, head }, { replaces: "walk" }),
      fetchView("tokens", options, { replaces: "walk tokens" }),
      fetchNextToken(options),
    ]);
    // `left_out` of the view `tokens` counts the tokens beyond its limit of 65,536, which `app.text` never reaches;
    // that of `next_token` counts those beyond the context.
    const loaded = {
      model,
      layer,
      head,
      shapes,
      stages: stagesByName(shapes),
      groups,
      left_out: left_out || nextToken.left_out,
      logits: nextToken.logits,
      vocabulary: nextToken.vocabulary,
    };
    this.loaded = loaded;
    const shown = shapes.tokens.slice(0, MAX_SHOWN);
    this.cell[0] = Math.min(this.app.position ?? lastWordIndex(shown), shown.length - 1);
    this.#draw();
    const fetchStreamAfter = async (i) => {
      const answer = i === layer ? shapes : await fetchView("shapes", { ...options, layer: i, head });
      return stagesByName(answer).get("x + mlp").values;
    };
    try {
      if (layer > 0) loaded.layerInput = await fetchStreamAfter(layer - 1);
      loaded.lastStream = await fetchStreamAfter(model.model.n_layer - 1);
    } catch {
      // An exported page may lack that layer.
    }
  }

  // ---- Drawing

  #draw() {
    const { loaded, stageIndex } = this;
    if (!loaded) return;
    this.app.setSubpath("walk", stageIndex ? stageIndex + 1 : "");
    this.diagram.show(stageIndex, loaded.layer, loaded.model.model.n_layer);
    this.counter.textContent = `${stageIndex + 1} / ${STAGES.length}`;
    for (const button of this.backButtons) button.disabled = stageIndex === 0;
    for (const button of this.nextButtons) button.disabled = stageIndex === STAGES.length - 1;
    const content = cardContent(STAGES[stageIndex], loaded, {
      showsGpt2: this.gpt2Checkbox.checked,
      cell: this.cell,
      onCell: (cell) => {
        if (cell[0] !== this.cell[0]) this.app.choose({ position: cell[0] });
        this.cell = cell;
      },
      onContinue: (layer) => this.#continueWithLayer(layer),
    });
    this.content.replaceChildren(...content);
  }
}

const clampIndex = (index) => Math.max(0, Math.min(STAGES.length - 1, index));

// The stage of an address: "6" is the sixth, "" the first.
const stageOfSubpath = (subpath) => clampIndex((Number(subpath) || 1) - 1);

const stagesByName = ({ stages }) => new Map(stages.map((stage) => [stage.name, stage]));

// An exported page may lack this view.
const fetchNextToken = (options) =>
  fetchView("next_token", options, { replaces: "walk next_token" }).catch((error) => {
    if (exportedOptions("shapes")) return { logits: [], vocabulary: {} };
    throw error;
  });

// A horizontal swipe goes to the next stage or to the one before.
function addSwipe(card, moveBy) {
  let start = null;
  const onStart = (event) => {
    start = event.target.closest(".scroll, input, select") ? null : event.changedTouches[0];
  };
  const onEnd = (event) => {
    if (!start) return;
    const end = event.changedTouches[0];
    const dx = (end.clientX - start.clientX) * (language.dir === "rtl" ? -1 : 1);
    const dy = end.clientY - start.clientY;
    if (Math.abs(dx) > MIN_SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) moveBy(dx < 0 ? 1 : -1);
  };
  card.addEventListener("touchstart", onStart, { passive: true });
  card.addEventListener("touchend", onEnd, { passive: true });
}
