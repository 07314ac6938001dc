// Training: the curves of runs, as their log files grow. While the tab is visible, the new records (lines of a file) of
// each chosen run are fetched every second. The curves show what was logged; nothing is smoothed.

import { fetchLines, fetchRuns } from "octavo/api";
import { el, field, foldable } from "octavo/dom";
import { lineChart } from "octavo/figures/line_chart";
import { formatCompact, formatCount, formatNumber, t } from "octavo/i18n";
import { CheckpointHistory } from "octavo/tabs/training/checkpoint_history";
import { Samples } from "octavo/tabs/training/samples";

const POLL_TIME = 1000; // milliseconds
const POLLS_PER_LIST = 5; // the list of runs is fetched with every fifth poll: it changes less often than their records
const MAX_RECORDS = 5000; // that the server sends at once
const SPEED_RECORDS = 10; // over which the speed is averaged
const MAX_POINTS = 4000; // of a series
const CURVES = ["loss", "learning_rate", "grad_norm", "tokens_per_second", "memory"];
const LOSSES = [
  { name: "loss", width: 1 },
  { name: "val_loss", width: 3, points: true },
  { name: "train_loss", width: 1.5, points: true },
];
const UNITS = ["nats", "bits"]; // of losses: nats per token, bits per byte
const DIVERGENCE = ["spikes", "skipped_steps", "rollbacks"]; // counts, which are shown if there were any
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

export const mount = (panel, app) => new Training(panel, app);

class Training {
  constructor(panel, app) {
    Object.assign(this, { panel, app });
    this.runs = new Map(); // name -> {info, metrics, samples, next: {metrics, samples}, isChosen}
    this.timer = null; // the timer of the polls while the tab is open
    this.polls = 0;
    this.isPolling = false;
    this.hasFailed = false; // the last poll has failed
    this.unit = null; // the user's choice of UNITS; null: the one that suits the chosen runs
    this.noRuns = el("p", { class: "card", textKey: "train.none", hidden: true });
    this.loadingNote = el("p", { class: "quiet", textKey: "train.loading" });
    this.content = this.#createContent();
    panel.append(el("p", { class: "lead", textKey: "train.lead" }), this.noRuns, this.content, this.loadingNote);
    document.addEventListener("visibilitychange", () => this.timer && this.#poll());
  }

  show() {
    this.timer ??= setInterval(() => this.#poll(), POLL_TIME);
    this.#poll();
  }

  hide() {
    clearInterval(this.timer);
    this.timer = null;
    this.history.stop();
  }

  // After a change of model, text or language.
  update() {
    if (this.runs.size) this.#draw(true);
    this.history.update();
  }

  #createContent() {
    const redraw = () => this.#draw(true);
    this.runChooser = el("fieldset", { class: "tight-row" });
    this.xAxis = el(
      "select",
      { id: "train-axis", onchange: redraw },
      ["step", "tokens", "seconds"].map((value) => el("option", { value, textKey: `train.${value}` })),
    );
    const onUnit = () => {
      this.unit = this.unitSelect.value;
      this.#draw(true);
    };
    this.unitSelect = el(
      "select",
      { id: "train-unit", onchange: onUnit },
      UNITS.map((value) => el("option", { value, textKey: `train.loss_unit.${value}` })),
    );
    this.unitNote = el("p", { class: "caveat", textKey: "train.loss_unit.why", hidden: true });
    this.logCheckbox = el("input", { type: "checkbox", onchange: redraw });
    this.tiles = el("div", { class: "tiles" });
    this.waitingNote = el("p", { class: "quiet", textKey: "train.waiting", hidden: true });
    this.curves = CURVES.map(createCurve);
    this.samples = new Samples();
    this.history = new CheckpointHistory(this.app);
    const logLabel = el("label", { class: "check" }, this.logCheckbox, el("span", { textKey: "train.log" }));
    const cards = this.curves.map((curve) => curve.card);
    return el(
      "div",
      { hidden: true },
      el(
        "div",
        { class: "row" },
        this.runChooser,
        field(this.xAxis, "train.axis"),
        field(this.unitSelect, "train.loss_unit"),
        logLabel,
      ),
      this.unitNote,
      this.tiles,
      this.waitingNote,
      el("div", { class: "curves" }, cards),
      foldable(this.samples.element),
      foldable(this.history.element),
    );
  }

  // ---- Data

  async #poll() {
    if (this.isPolling || document.hidden) return;
    this.isPolling = true;
    try {
      const listChanged = this.polls++ % POLLS_PER_LIST === 0 && (await this.#updateList());
      const requests = this.#chosenRuns().flatMap((run) => [
        fetchNewRecords(run, "metrics"),
        fetchNewRecords(run, "samples"),
      ]);
      const recordsChanged = (await Promise.all(requests)).some(Boolean);
      if (this.hasFailed) this.app.showError(this.panel, null);
      this.hasFailed = false;
      this.loadingNote.hidden = true;
      if (listChanged || recordsChanged) this.#draw();
    } catch (error) {
      this.loadingNote.hidden = true;
      if (!this.hasFailed) this.app.showError(this.panel, error); // once; polling continues
      this.hasFailed = true;
    } finally {
      this.isPolling = false;
    }
  }

  // Fetches the list of runs. Returns whether the list or the information about a run has changed. The first call
  // chooses the run of the chosen model.
  async #updateList() {
    const { runs, app } = this;
    const list = await fetchRuns();
    const before = [...runs.values()].map((run) => run.info);
    const first = list.find((info) => info.name === app.model?.id) ?? list[0];
    for (const info of list) {
      const isChosen = !before.length && info === first;
      const run = runs.get(info.name) ?? { metrics: [], samples: [], next: { metrics: 0, samples: 0 }, isChosen };
      runs.set(info.name, Object.assign(run, { info }));
    }
    for (const name of runs.keys()) if (!list.some((info) => info.name === name)) runs.delete(name);
    const names = (infos) => infos.map((info) => info.name).join("\n");
    if (names(before) !== names(list)) this.#drawRunChooser();
    this.noRuns.hidden = runs.size > 0;
    this.content.hidden = !runs.size;
    return JSON.stringify(before) !== JSON.stringify(list);
  }

  #chosenRuns() {
    return [...this.runs.values()].filter((run) => run.isChosen);
  }

  // ---- Drawing

  #drawRunChooser() {
    const choice = (run) => {
      const onchange = async (event) => {
        run.isChosen = event.target.checked;
        await this.#poll();
        this.#draw(true);
      };
      const input = el("input", { type: "checkbox", checked: run.isChosen, onchange });
      return el("label", { class: "check" }, input, el("bdi", {}, run.info.name));
    };
    const choices = [...this.runs.values()].map(choice);
    this.runChooser.replaceChildren(el("legend", { textKey: "train.runs" }), ...choices);
  }

  // `redrawAll`: something other than new records has changed.
  #draw(redrawAll = false) {
    const chosen = this.#chosenRuns();
    this.waitingNote.hidden = chosen.some((run) => run.metrics.length) || !chosen.length;
    this.tiles.replaceChildren(...chosen.map(runTile));
    const canCompareTokens = new Set(chosen.map(({ info }) => tokenizerOf(info))).size < 2;
    this.unitSelect.value = this.unit ?? (canCompareTokens ? "nats" : "bits");
    this.unitNote.hidden = canCompareTokens;
    for (const curve of this.curves) this.#drawCurve(curve, chosen, redrawAll);
    this.samples.show(chosen);
  }

  #drawCurve(curve, chosen, redrawAll) {
    const { name, figure, card } = curve;
    const axis = this.xAxis.value;
    const unit = this.unitSelect.value;
    const data = curveData(name, chosen, axis, unit, [...this.runs.keys()]);
    card.hidden = !data.series.length;
    if (card.hidden) return;
    const options = {
      xName: t(axis === "seconds" ? "train.minutes" : `train.${axis}`),
      yName: name === "loss" ? t(`train.loss_unit.${unit}`) : undefined,
      logY: this.logCheckbox.checked && name !== "learning_rate",
      integerX: axis !== "seconds",
      digits: name === "loss" ? 4 : name === "learning_rate" ? 6 : 2,
    };
    const hasSameOptions = JSON.stringify(options) === curve.lastOptions && !redrawAll;
    curve.lastOptions = JSON.stringify(options);
    figure.show(data, hasSameOptions ? {} : options); // without options, new points are cheap
  }
}

// Fetches the new records of a run's metrics or samples. Returns whether there were any.
async function fetchNewRecords(run, kind) {
  let hasChanged = false;
  for (;;) {
    const { lines, next, restarted } = await fetchLines(run.info.name, kind, run.next[kind]);
    if (restarted) run[kind] = [];
    run[kind].push(...lines.filter((record) => typeof record.step === "number"));
    run.next[kind] = next;
    hasChanged ||= lines.length > 0 || restarted;
    if (lines.length < MAX_RECORDS) return hasChanged;
  }
}

// ---- Curves

function createCurve(name) {
  const options = { caption: () => t(`train.curve.${name}.says`), height: name === "loss" ? 320 : 200 };
  const figure = lineChart({ x: [], series: [] }, options);
  const properties = { class: `card curve ${name}`, hidden: true };
  const card = el("section", properties, el("h2", { textKey: `train.curve.${name}` }), figure);
  return { name, figure, card: name === "loss" ? card : foldable(card) };
}

// The data of a chart: a series for each run and each loss. The losses of one run differ by width, color and dash.
// Several runs differ by color and dash, so their losses differ by width only, and `train_loss`, the loss of the whole
// training split, is left out.
function curveData(name, chosen, axis, unit, allNames) {
  const hasSeveralRuns = chosen.length > 1;
  const kinds = name !== "loss" ? [{ name, width: 1.5 }] : hasSeveralRuns ? LOSSES.slice(0, 2) : LOSSES;
  const recordsOf = new Map(chosen.map((run) => [run, thinOut(run.metrics)]));
  const xs = [...recordsOf.values()].flat().map((record) => xOf(record, axis));
  const x = [...new Set(xs.filter(Number.isFinite))].sort((a, b) => a - b);
  const indexOf = new Map(x.map((value, i) => [value, i]));
  const series = chosen.flatMap((run) =>
    kinds.map((kind, k) => {
      const factor = name === "loss" && unit === "bits" ? bitsPerByteFactor(run.metrics) : 1;
      const values = Array(x.length).fill(null);
      for (const record of recordsOf.get(run)) {
        const value = valueOf(record, kind.name);
        const i = indexOf.get(xOf(record, axis));
        if (typeof value === "number" && i !== undefined) values[i] = value * factor;
      }
      const styleIndex = hasSeveralRuns ? allNames.indexOf(run.info.name) : k;
      return {
        label: name === "loss" ? t(`train.series.${kind.name}`, { run: run.info.name }) : run.info.name,
        values,
        width: kind.width,
        color: `--series-${(styleIndex % 6) + 1}`,
        dash: DASHES[styleIndex % DASHES.length],
        ...(kind.points && { points: true }),
      };
    }),
  );
  return { x, series: series.filter(({ values }) => values.some(Number.isFinite)) };
}

// At most about MAX_POINTS records: every n-th one, the last one, and all with a validation loss.
function thinOut(records) {
  const n = Math.ceil(records.length / MAX_POINTS);
  const isLast = (i) => i === records.length - 1;
  return n < 2 ? records : records.filter((record, i) => i % n === 0 || isLast(i) || "val_loss" in record);
}

// The factor from nats per token to bits per byte: the same at every evaluation of a run, and NaN before the first.
function bitsPerByteFactor(records) {
  const evaluated = records.findLast((record) => record.val_loss > 0 && record.bits_per_byte > 0);
  return evaluated ? evaluated.bits_per_byte / evaluated.val_loss : NaN;
}

// What two runs have in common if their losses per token can be compared.
const tokenizerOf = ({ settings: { tokenizer, vocab_size } }) => `${tokenizer} ${vocab_size}`;

const xOf = (record, axis) => (axis === "seconds" ? record.seconds / 60 : record[axis]);
const mebibytes = (bytes) => bytes && bytes / 2 ** 20;
const valueOf = (record, name) => (name === "memory" ? mebibytes(record.memory_bytes) : record[name]);

// ---- Tiles

function runTile({ info, metrics }) {
  const last = metrics.at(-1);
  const loss = metrics.findLast((record) => typeof record.loss === "number")?.loss; // null in a skipped step
  const valLosses = metrics.map((record) => record.val_loss).filter((loss) => typeof loss === "number");
  const { max_steps: steps } = info.settings;
  const step = last?.step ?? info.last_step ?? 0;
  const speeds = metrics.slice(-SPEED_RECORDS).map((record) => record.tokens_per_second);
  const speed = speeds.reduce((sum, value) => sum + value, 0) / speeds.length;
  const secondsLeft = info.running && speed > 0 ? ((steps - step) * info.tokens_per_step) / speed : null;
  const state = info.running ? "train.state.running" : step >= steps ? "train.state.finished" : "train.state.stopped";
  const best = valLosses.length > 1 ? t("train.best", { loss: formatNumber(Math.min(...valLosses), 4) }) : "";
  const memory = () => el("bdi", { dir: "ltr" }, `${formatCompact(mebibytes(last.memory_bytes))} MiB`);
  const fact = (key, value, note = "") =>
    el("div", {}, el("dt", { textKey: key }), el("dd", {}, value, note && el("small", {}, note)));
  const stateName = el("span", { class: info.running ? "state in-progress" : "state", textKey: state });
  return el(
    "section",
    { class: "card tile" },
    el("h2", {}, el("bdi", {}, info.name), " ", stateName),
    el("progress", { max: steps, value: step, "aria-label": t("train.progress") }),
    el(
      "dl",
      {},
      fact("train.progress", formatCount(step), t("train.of", { steps })),
      loss !== undefined && fact("train.loss", formatNumber(loss, 4)),
      valLosses.length > 0 && fact("train.val", formatNumber(valLosses.at(-1), 4), best),
      last && fact("train.speed", formatCount(speeds.at(-1))),
      secondsLeft !== null && fact("train.left", duration(secondsLeft)),
      last && fact("train.took", duration(last.seconds)),
      last?.memory_bytes > 0 && fact("train.memory", memory()),
      ...DIVERGENCE.filter((name) => last?.[name] > 0).map((name) => fact(`train.${name}`, formatCount(last[name]))),
    ),
  );
}

function duration(seconds) {
  const s = Math.round(seconds);
  const m = Math.floor(s / 60);
  if (m >= 60) return t("train.unit.h", { h: Math.floor(m / 60), m: m % 60 });
  return m ? t("train.unit.m", { m, s: s % 60 }) : t("train.unit.s", { s });
}
