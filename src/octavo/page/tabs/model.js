// The model: one picture of all layers with the real activations of the text, and its zoom levels: a layer, a head, and
// from there the stages of the tab Walk, which have every number.

import { fetchView } from "octavo/api";
import { el, setSentence, tNodes } from "octavo/dom";
import { prefersReducedMotion } from "octavo/figures/figure";
import { HeadSelector } from "octavo/head_selector";
import { formatNumber, formatPercent, loadSentences, t } from "octavo/i18n";
import { FlowData } from "octavo/tabs/model/flow_data";
import { flowFigure, zoomTo } from "octavo/tabs/model/flow_figure";
import { HeadScene } from "octavo/tabs/model/head_scene";
import { LayerScene } from "octavo/tabs/model/layer_scene";
import { WholeScene } from "octavo/tabs/model/whole_scene";
import { STAGE_INDEX, STAGES } from "octavo/tabs/walk/stages";
import { chip } from "octavo/tokens";

const LEVELS = ["whole", "layer", "head"]; // in the address: #model, #model/layer, #model/head
const MAX_SOURCES = 4; // that the readout names
// The stages of the walk that a level leads to.
const STAGES_OF = {
  whole: ["idx", "wte", "wpe", "x", "ln_f", "logits", "next"],
  layer: ["ln_1", "qkv", "scores", "softmax", "mix", "proj", "plus_attention", "ln_2", "fc", "mlp_proj", "plus_mlp"],
  head: ["qkv", "scores", "softmax", "mix"],
};

export const mount = (panel, app) => new Model(panel, app);

class Model {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    this.flow = null; // FlowData of the text
    this.shown = null; // the model and text that are shown
    this.level = levelOf(app.getSubpath("model"));
    this.row = null; // the stage at the cursor in the whole picture; null: the prediction
    this.isPlaying = !prefersReducedMotion();
    this.#createElements();
  }

  update() {
    return this.app.runTask(this.panel, () => this.#fetchFlow());
  }

  show() {
    this.figure.play();
  }

  onSubpath(subpath) {
    this.#setLevel(levelOf(subpath));
  }

  #createElements() {
    this.selector = new HeadSelector("model", this.app, () => {
      if (this.level === "whole") this.#goTo("layer");
      else this.#draw();
    });
    this.levelButtons = LEVELS.map((level) =>
      el("button", { type: "button", textKey: `model.level.${level}`, onclick: () => this.#goTo(level) }),
    );
    const onPlay = () => {
      this.isPlaying = !this.isPlaying;
      this.#draw();
    };
    this.playButton = el("button", { type: "button", class: "small", onclick: onPlay, hidden: prefersReducedMotion() });
    this.figure = flowFigure({ label: "", table: () => this.#table() });
    this.stages = el("ul", { class: "stage-links" });
    this.note = el("p", { class: "quiet" });
    this.panel.append(
      el("p", { class: "lead", textKey: "model.lead" }),
      el(
        "div",
        { class: "row" },
        el("div", { class: "buttons levels", role: "group", labelKey: "model.level" }, this.levelButtons),
        this.selector.fields,
        this.playButton,
      ),
      el("div", { class: "card" }, this.figure, this.note, legend()),
      el("p", { class: "quiet", textKey: "model.numbers" }),
      this.stages,
      el(
        "p",
        { class: "caveat" },
        el("span", { textKey: "common.attention_caveat" }),
        " ",
        el("span", { textKey: "model.caveat" }),
      ),
    );
  }

  // ---- Levels

  #goTo(level) {
    this.app.openTab("model", level === "whole" ? "" : level);
  }

  #setLevel(level) {
    if (level === this.level) return;
    const isOut = LEVELS.indexOf(level) < LEVELS.indexOf(this.level);
    const { figure, selector } = this;
    const old = figure.scene;
    if (old) zoomTo(figure, old.bandOf?.(selector.layer) ?? [0, old.height], isOut);
    this.level = level;
    this.#draw();
    if (isOut && figure.transition) figure.transition.band = figure.scene.bandOf(selector.layer);
    this.app.announce(figure.options.label);
  }

  // ---- Data

  async #fetchFlow() {
    const { model, text } = this.app;
    this.selector.update(model.model, "flow");
    const [answer] = await Promise.all([
      fetchView("flow", { text, unknown: "skip" }, { replaces: "flow" }),
      loadSentences("walk"), // the titles of the stages
    ]);
    if (answer !== this.answer) this.flow = new FlowData(answer);
    this.answer = answer;
    const shown = `${model.id} ${text}`; // a newer checkpoint of the same model isn't revealed again
    const reveals = shown !== this.shown && this.level === "whole";
    this.shown = shown;
    this.#draw(reveals);
  }

  // The token that is chosen, as an index of the shown tokens.
  #chosenToken() {
    const { flow, app } = this;
    const last = flow.tokens.length - 1;
    return app.position === null ? last : Math.max(0, Math.min(last, app.position - flow.first));
  }

  #cell() {
    const { flow, level, selector, row } = this;
    const token = this.#chosenToken();
    if (level === "whole") return { row: row ?? flow.stageCount, t: token };
    if (level === "layer") return { t: token, head: this.app.head };
    const [most] = flow.sources(selector.layer, token, 0, selector.head);
    return { t: token, s: most?.s ?? token };
  }

  // ---- Drawing

  #draw(reveals = false) {
    const { flow, level, selector, figure, app } = this;
    if (!flow) return;
    selector.update(app.model.model, "flow");
    this.levelButtons.forEach((button, i) => button.setAttribute("aria-pressed", String(LEVELS[i] === level)));
    setSentence(this.playButton, this.isPlaying ? "model.pause" : "model.play");
    const { layer, head } = selector;
    const Scene = { whole: WholeScene, layer: LayerScene, head: HeadScene }[level];
    figure.show(
      {
        createScene: (context, width) => new Scene(flow, context, width, { layer, head }),
        caption: () => tNodes(`model.hint.${level}`),
        label: t(`model.title.${level}`, { layer, head, L: flow.layerCount }),
        cell: this.#cell(),
        isActive: level === "head",
        staysActive: level === "head",
        isPlaying: this.isPlaying,
        onCell: (cell) => this.#onCell(cell),
        onEnter: (cell) => this.#onEnter(cell),
        onLeave: () => this.#leave(),
        readout: (cell) => this.#readout(cell),
      },
      { reveals },
    );
    const shownFirst = flow.first + figure.scene?.columns.first;
    this.note.hidden = !shownFirst && !flow.left_out;
    setSentence(this.note, flow.left_out ? "common.left_out" : "model.first", { n: flow.left_out || shownFirst });
    this.#drawStages();
  }

  #drawStages() {
    const link = (id) => {
      const onclick = () => this.app.openTab("walk", STAGE_INDEX[id] + 1);
      const stage = STAGES[STAGE_INDEX[id]];
      const name = el("code", { dir: "ltr" }, stage.short);
      const properties = { type: "button", class: "small", titleKey: `walk.${id}.title`, onclick };
      return el("li", {}, el("button", properties, name));
    };
    this.stages.replaceChildren(...STAGES_OF[this.level].map(link));
  }

  // ---- The cursor

  #onCell(cell) {
    const { flow, app, level } = this;
    if (level === "whole") this.row = cell.row;
    const position = flow.first + cell.t;
    if (position !== app.position) app.choose({ position });
    if (level === "layer" && cell.head !== app.head) {
      if (cell.head === null) app.choose({ head: null });
      else this.selector.choose(this.selector.layer, cell.head);
      this.selector.update(app.model.model, "flow");
    }
  }

  #onEnter(cell) {
    const { figure, level, selector } = this;
    this.#onCell(cell);
    if (level === "whole") {
      selector.choose(figure.scene.layerOf(cell), this.app.head ?? 0);
      this.app.choose({ head: null });
      this.#goTo("layer");
    } else if (level === "layer" && cell.head !== null) this.#goTo("head");
    else if (level === "head") {
      selector.choose(selector.layer, selector.head);
      this.app.openTab("walk", STAGE_INDEX.softmax + 1);
    }
  }

  #leave() {
    if (this.level !== "whole") this.#goTo(LEVELS[LEVELS.indexOf(this.level) - 1]);
  }

  #readout(cell) {
    const { flow, level, selector } = this;
    const { layer } = selector;
    const token = chip(flow.tokens[cell.t]);
    const position = flow.first + cell.t;
    if (level === "head") {
      const share = el("b", {}, formatPercent(flow.share(layer, cell.t, cell.s, selector.head)));
      const habit = el("span", { textKey: `habit.${flow.habits[layer][selector.head]}` });
      return tNodes("model.cell.head", { token, other: chip(flow.tokens[cell.s]), share, habit });
    }
    if (level === "layer") {
      const sources = this.#sources(layer, cell.t, cell.head);
      if (cell.head === null) return tNodes("model.cell.heads", { token, sources, H: flow.headCount });
      const habit = el("span", { textKey: `habit.${flow.habits[layer][cell.head]}` });
      return tNodes("model.cell.one_head", { token, sources, head: cell.head, habit });
    }
    const { row, t: i } = cell;
    if (row >= flow.stageCount) {
      const prediction = chip({ label: flow.label(flow.predictions[i]), bytes: null });
      const share = el("b", {}, formatPercent(flow.prediction_probabilities[i]));
      if (i === flow.tokens.length - 1) return tNodes("model.cell.last_prediction", { token, prediction, share });
      return tNodes("model.cell.prediction", { token, prediction, share, next: chip(flow.tokens[i + 1]) });
    }
    const norm = el("b", {}, formatNumber(flow.norms[row][i], 2));
    if (row === 0) return tNodes("model.cell.embedding", { token, position, norm });
    const at = Math.floor((row - 1) / 2);
    const isAttention = row % 2 === 1;
    const added = el("b", {}, formatNumber((isAttention ? flow.attention : flow.mlp)[at][i], 2));
    const values = { token, layer: at, norm, added, H: flow.headCount, sources: this.#sources(at, i, null) };
    return tNodes(isAttention ? "model.cell.attention" : "model.cell.mlp", values);
  }

  // The tokens that a token attends to most, with their shares.
  #sources(layer, token, head) {
    const { flow } = this;
    const sources = flow.sources(layer, token, 0.005, head ?? undefined).slice(0, MAX_SOURCES);
    const item = ({ s, share }) =>
      el("span", { class: "pair" }, chip(flow.tokens[s]), " ", el("b", {}, formatPercent(share, 0)));
    return el("span", {}, sources.map(item));
  }

  // ---- The table

  #table() {
    const { flow, level, selector } = this;
    if (!flow) return { columns: [], rows: [] };
    const labels = flow.tokens.map((token) => token.label);
    if (level !== "whole") {
      const head = level === "head" ? selector.head : (this.app.head ?? undefined);
      const share = (i, s) => (s > i ? "" : formatPercent(flow.share(selector.layer, i, s, head)));
      return {
        columns: [t("figure.row"), ...labels],
        rows: labels.map((name, i) => [name, ...labels.map((_, s) => share(i, s))]),
      };
    }
    const stage = (row) => {
      if (!row) return "wte + wpe";
      return t(row % 2 ? "model.after_attention" : "model.after_mlp", { layer: Math.floor((row - 1) / 2) });
    };
    return {
      columns: [t("col.norm"), ...labels],
      rows: [
        ...flow.norms.map((norms, row) => [stage(row), ...norms.map((norm) => formatNumber(norm, 2))]),
        [t("model.prediction"), ...flow.predictions.map((id) => flow.label(id))],
      ],
    };
  }
}

const levelOf = (subpath) => (LEVELS.includes(subpath) ? subpath : "whole");

// What ribbons, lines and marks are.
function legend() {
  const item = (kind) =>
    el(
      "li",
      {},
      el("i", { class: `flow-sample ${kind}`, "aria-hidden": "true" }),
      el("span", { textKey: `model.legend.${kind}` }),
    );
  return el("ul", { class: "level-legend" }, ["stream", "lines", "mlp"].map(item));
}
