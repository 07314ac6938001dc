// Training: the curves of runs, as their files grow. Every second, while the tab is seen, each chosen run is asked for
// the lines that came since; what is drawn is what was written, and nothing is smoothed.

import { lines, runs as listRuns } from "octavo/api";
import { lineChart } from "octavo/pictures/bars";
import { Probe } from "octavo/tabs/training/checkpoint_history";
import { count, el, field, language, number, short, t } from "octavo/dom";

const EVERY = 1000; // milliseconds
const LIST_EVERY = 5; // of those: runs come and end less often
const AT_ONCE = 5000; // lines that the server sends
const LATELY = 10; // lines over which speed is averaged
const MOST = 4000; // points of a curve
const CURVES = ["loss", "learning_rate", "grad_norm", "tokens_per_second", "memory"];
const LOSSES = [
  { name: "loss", width: 1 },
  { name: "val_loss", width: 3, points: true },
  { name: "train_loss", width: 1.5, points: true },
];
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];

export function mount(panel, app) {
  const followed = new Map(); // name -> {info, metrics, samples, next, chosen}
  let timer = null,
    ticks = 0,
    asking = false,
    failed = false;

  const none = el("p", { class: "card", say: "train.none", hidden: true });
  const picker = el("fieldset", { class: "line" });
  const axis = el(
    "select",
    { id: "train-axis", onchange: () => draw(true) },
    ["step", "tokens", "seconds"].map((value) => el("option", { value, say: `train.${value}` })),
  );
  const log = el("input", { type: "checkbox", onchange: () => draw(true) });
  const tiles = el("div", { class: "tiles" });
  const waiting = el("p", { class: "quiet", say: "train.waiting", hidden: true });
  const charts = new Map(CURVES.map((name) => [name, chart(name)]));
  const samples = new Samples();
  const probe = new Probe(app);
  const content = el(
    "div",
    { hidden: true },
    el(
      "div",
      { class: "row" },
      picker,
      field(axis, "train.axis"),
      el("label", { class: "check" }, log, el("span", { say: "train.log" })),
    ),
    tiles,
    waiting,
    el(
      "div",
      { class: "curves" },
      [...charts.values()].map((each) => each.card),
    ),
    samples.element,
    probe.element,
  );
  panel.append(el("p", { class: "lead", say: "train.lead" }), none, content);

  document.addEventListener("visibilitychange", () => timer && ask());

  // ---- Asking

  async function ask() {
    if (asking || document.hidden) return;
    asking = true;
    try {
      let changed = ticks++ % LIST_EVERY === 0 && (await list());
      const chosen = [...followed.values()].filter((run) => run.chosen);
      const grown = await Promise.all(chosen.flatMap((run) => ["metrics", "samples"].map((kind) => grow(run, kind))));
      changed ||= grown.some(Boolean);
      if (failed) app.problem(panel, null);
      failed = false;
      if (changed) draw();
    } catch (error) {
      if (!failed) app.problem(panel, error); // said once; asked again until it answers
      failed = true;
    } finally {
      asking = false;
    }
  }

  async function list() {
    const found = await listRuns();
    const before = [...followed.values()].map((run) => run.info);
    const first = found.find((each) => each.name === app.model?.id) ?? found[0];
    for (const info of found) {
      const run = followed.get(info.name);
      if (run) run.info = info;
      else
        followed.set(info.name, {
          info,
          metrics: [],
          samples: [],
          next: { metrics: 0, samples: 0 },
          chosen: !before.length && info === first,
        });
    }
    for (const name of followed.keys()) if (!found.some((each) => each.name === name)) followed.delete(name);
    if (before.map((each) => each.name).join("\n") !== found.map((each) => each.name).join("\n")) pick();
    none.hidden = followed.size > 0;
    content.hidden = !followed.size;
    return JSON.stringify(before) !== JSON.stringify(found);
  }

  async function grow(run, kind) {
    let grown = false;
    for (;;) {
      const { lines: more, next, restarted } = await lines(run.info.name, kind, run.next[kind]);
      if (restarted) run[kind] = [];
      run[kind].push(...more.filter((line) => typeof line.step === "number")); // others are no lines of ours
      run.next[kind] = next;
      grown ||= more.length > 0 || restarted;
      if (more.length < AT_ONCE) return grown;
    }
  }

  function pick() {
    picker.replaceChildren(
      el("legend", { say: "train.runs" }),
      ...[...followed.values()].map((run) =>
        el(
          "label",
          { class: "check" },
          el("input", {
            type: "checkbox",
            checked: run.chosen,
            onchange: (event) => {
              run.chosen = event.target.checked;
              ask().then(() => draw(true));
            },
          }),
          el("bdi", {}, run.info.name),
        ),
      ),
    );
  }

  // ---- Drawing

  const seen = () => [...followed.values()].filter((run) => run.chosen);

  function draw(anew = false) {
    const runs = seen();
    waiting.hidden = runs.some((run) => run.metrics.length) || !runs.length;
    tiles.replaceChildren(...runs.map(tile));
    for (const [name, each] of charts) drawCurve(each, name, runs, anew);
    samples.show(runs);
  }

  function chart(name) {
    const figure = lineChart(
      { x: [], series: [] },
      { caption: () => t(`train.curve.${name}.says`), height: name === "loss" ? 320 : 200 },
    );
    const card = el(
      "section",
      { class: `card curve ${name}`, hidden: true },
      el("h2", { say: `train.curve.${name}` }),
      figure,
    );
    return { figure, card };
  }

  function drawCurve({ figure, card }, name, runs, anew) {
    const along = axis.value;
    // Of several runs without the exact loss of training: a run's colour and dash tell it from the others, the width of
    // its lines one loss from the other.
    const kinds = name !== "loss" ? [{ name, width: 1.5 }] : runs.length > 1 ? LOSSES.slice(0, 2) : LOSSES;
    const every = runs.flatMap((run) => thin(run.metrics).map((line) => at(line, along)));
    const x = [...new Set(every.filter(Number.isFinite))].sort((a, b) => a - b);
    const place = new Map(x.map((value, i) => [value, i]));
    const series = runs
      .flatMap((run) => {
        const nth = [...followed.keys()].indexOf(run.info.name);
        return kinds.map((kind, k) => {
          const values = Array(x.length).fill(null);
          for (const line of thin(run.metrics)) {
            const value = kind.name === "memory" ? line.memory_bytes && line.memory_bytes / 2 ** 20 : line[kind.name];
            const i = place.get(at(line, along));
            if (typeof value === "number" && i !== undefined) values[i] = value;
          }
          const label = name === "loss" ? t(`train.series.${kind.name}`, { run: run.info.name }) : run.info.name;
          const more = kind.points ? { points: true } : {};
          return {
            label,
            values,
            width: kind.width,
            colour: `--line-${((runs.length > 1 ? nth : k) % 6) + 1}`,
            dash: DASHES[(runs.length > 1 ? nth : k) % DASHES.length],
            ...more,
          };
        });
      })
      .filter((each) => each.values.some((value) => value !== null));
    card.hidden = !series.length;
    if (card.hidden) return;
    const options = {
      xName: t(along === "seconds" ? "train.minutes" : `train.${along}`),
      logY: log.checked && name !== "learning_rate",
      whole: along !== "seconds",
      digits: name === "loss" ? 4 : name === "learning_rate" ? 6 : 2,
    };
    const same = JSON.stringify(options) === figure.told && !anew;
    figure.told = JSON.stringify(options);
    figure.show({ x, series }, same ? {} : options);
  }

  function tile({ info, metrics }) {
    const last = metrics.at(-1);
    const losses = metrics.filter((line) => typeof line.val_loss === "number");
    const { max_steps: steps } = info.settings;
    const step = last?.step ?? info.last_step ?? 0;
    const lately = metrics.slice(-LATELY).map((line) => line.tokens_per_second);
    const speed = lately.reduce((sum, each) => sum + each, 0) / lately.length;
    const left = info.running && speed > 0 ? ((steps - step) * info.tokens_per_step) / speed : null;
    const state = info.running ? "train.going" : step >= steps ? "train.done" : "train.rests";
    const best =
      losses.length > 1 ? t("train.best", { loss: number(Math.min(...losses.map((line) => line.val_loss)), 4) }) : "";
    const fact = (name, value, note = "") =>
      el("div", {}, el("dt", { say: name }), el("dd", {}, value, note && el("small", {}, note)));
    return el(
      "section",
      { class: "card tile" },
      el(
        "h2",
        {},
        el("bdi", {}, info.name),
        " ",
        el("span", { class: info.running ? "state going" : "state", say: state }),
      ),
      el("progress", { max: steps, value: step, "aria-label": t("train.progress") }),
      el(
        "dl",
        {},
        fact("train.progress", count(step), t("train.of", { steps })),
        last && fact("train.loss", number(last.loss, 4)),
        losses.length > 0 && fact("train.val", number(losses.at(-1).val_loss, 4), best),
        last && fact("train.speed", count(lately.at(-1))),
        left !== null && fact("train.left", duration(left)),
        last && fact("train.took", duration(last.seconds)),
        last?.memory_bytes &&
          fact("train.memory", el("bdi", { dir: "ltr" }, `${short(last.memory_bytes / 2 ** 20)} MiB`)),
      ),
    );
  }

  return {
    show() {
      timer ??= setInterval(ask, EVERY);
      ask();
    },
    hide() {
      clearInterval(timer);
      timer = null;
      probe.rest();
    },
    update() {
      if (followed.size) draw(true);
      probe.update();
    },
  };
}

// Of very many lines every second, or third, and all that were evaluated.
function thin(lines) {
  const every = Math.ceil(lines.length / MOST);
  return every < 2 ? lines : lines.filter((line, i) => i % every === 0 || i === lines.length - 1 || "val_loss" in line);
}

const at = (line, along) => (along === "seconds" ? line.seconds / 60 : line[along]);

function duration(seconds) {
  const s = Math.round(seconds),
    m = Math.floor(s / 60);
  if (m >= 60) return t("train.unit.h", { h: Math.floor(m / 60), m: m % 60 });
  return m ? t("train.unit.m", { m, s: s % 60 }) : t("train.unit.s", { s });
}

// What each run wrote along the way, at the step that the slider stands at, or the last before it.
class Samples {
  constructor() {
    this.steps = [];
    this.slider = el("input", {
      type: "range",
      id: "sample-step",
      min: 0,
      max: 0,
      step: 1,
      value: 0,
      oninput: () => this.#draw(),
    });
    this.at = el("output", { for: "sample-step" });
    this.list = el("div", { class: "samples" });
    this.scrub = el(
      "div",
      { class: "scrub" },
      el("label", { for: "sample-step", say: "train.sample.step" }),
      this.slider,
      this.at,
    );
    this.lead = el("p", { say: "train.samples.lead" });
    this.none = el("p", { class: "quiet", say: "train.samples.none" });
    this.element = el(
      "section",
      { class: "card" },
      el("h2", { say: "train.samples" }),
      this.lead,
      this.scrub,
      this.none,
      this.list,
    );
  }

  show(runs) {
    const atEnd = Number(this.slider.value) >= this.steps.length - 1;
    const step = this.steps[this.slider.value];
    this.runs = runs;
    this.steps = [...new Set(runs.flatMap((run) => run.samples.map((each) => each.step)))].sort((a, b) => a - b);
    this.slider.max = Math.max(0, this.steps.length - 1);
    // Where the slider stood at the end it follows; else it stays at its step.
    this.slider.value =
      atEnd || step === undefined ? this.steps.length - 1 : this.steps.findLastIndex((each) => each <= step);
    this.scrub.hidden = this.lead.hidden = this.steps.length < 2;
    this.none.hidden = this.steps.length > 0;
    this.#draw();
  }

  #draw() {
    const step = this.steps[this.slider.value];
    this.at.textContent = step === undefined ? "" : count(step);
    this.slider.setAttribute("aria-valuetext", this.at.textContent);
    const found = this.runs
      .map((run) => ({ run: run.info.name, ...run.samples.findLast((each) => each.step <= step) }))
      .filter((each) => "text" in each);
    const drawn = JSON.stringify([language.code, found]);
    if (drawn === this.drawn) return; // so that whoever reads in one isn't thrown out
    this.drawn = drawn;
    this.list.replaceChildren(
      ...found.map(({ run, step, text }) =>
        el(
          "div",
          {},
          el("h3", {}, t("train.sample.at", { run, step: count(step) })),
          el(
            "pre",
            {
              class: "sample",
              dir: "auto",
              tabindex: "0",
              role: "region",
              "aria-label": t("train.sample.at", { run, step: count(step) }),
            },
            String(text),
          ),
        ),
      ),
    );
  }
}
