// The page: what its parts share, and how it starts. Model, step and text are the same on all tabs.

import { parseAddress } from "octavo/address";
import {
  fetchExamples,
  fetchModels,
  fetchView,
  findTokenizationProblem,
  forgetAnswers,
  keepKnownCharacters,
  offline,
  pageError,
  selectModel,
  setKeyPrompt,
} from "octavo/api";
import { el } from "octavo/dom";
import { embedded } from "octavo/embedded";
import { showError } from "octavo/error_box";
import { redrawOtherLanguages } from "octavo/figures/figure";
import { createHeader, setTheme } from "octavo/header";
import { onLanguageChange, preferredLanguage, setLanguage, t } from "octavo/i18n";
import { askForKey } from "octavo/key_dialog";
import { readStorage, writeStorage } from "octavo/storage";
import { createTabBar } from "octavo/tab_bar";
import { createTextField } from "octavo/text_field";

const TABS = ["model", "walk", "attention", "positions_and_words", "playground", "training", "compare"];
// The tabs with the shared text; an exported page has only these.
const TEXT_TABS = ["model", "walk", "attention", "positions_and_words"];
const SAMPLE = "The cat sat on the mat, and the cat slept.";
const FOLLOW_DELAY = 1500; // milliseconds between two requests for newer checkpoints
const RETRY_DELAY = 3000; // milliseconds between two requests for models until one is available

const announcer = el("div", { class: "visually-hidden", role: "status" });
const taskCounts = new WeakMap(); // panel -> the number of its running tasks
let modelsError = null; // why the models couldn't be fetched

// What the tabs share.
const app = {
  models: [], // as GET /lens describes them; `steps`: the checkpoints that the run kept; `step`: the served one
  model: null, // the chosen entry of `models`; its fields are those of `fetchModels` in api.js
  step: null, // one of model.steps; null: the served checkpoint, which the server generates with
  text: "", // the last text of which the model's tokenizer knew at least one character
  examples: [], // texts to begin with
  // What the user has chosen on any tab; null: each tab has its own default.
  layer: null,
  head: null,
  position: null, // of a token of `text`

  setText: (text) => setState({ text }),
  setStep: (step) => setState({ step }),

  // A tab calls this after it has changed layer, head or position itself; the other tabs follow when they are opened.
  choose(choices) {
    Object.assign(app, choices);
    tabBar.scheduleAddress();
    tabBar.markOthersStale();
  },

  // What the address holds.
  choices() {
    const { model, step, text, layer, head, position } = app;
    return { model: model?.id, step, text, layer, head, position };
  },

  // Keeps the text in the field, or else `app.text`, if the new model's tokenizer knows at least one of its characters;
  // else chooses another text.
  setModel: (id) =>
    app.runPageTask(async () => {
      const model = app.models.find((other) => other.id === id) ?? app.model;
      let text = null;
      for (const candidate of [textField.value(), app.text])
        if (text === null && !(await findTokenizationProblem(candidate, model))) text = candidate;
      const examples = await fetchExamples(model.id);
      text ??= await chooseText(model, examples);
      if (header.chosenModel() !== id) return; // another was chosen meanwhile
      textField.setText(text);
      setState({ model, step: null, text, examples });
    }),

  // The part of the address after the tab: 6 in #walk/6.
  getSubpath: (id) => tabBar.getSubpath(id),
  setSubpath: (id, subpath) => tabBar.setSubpath(id, subpath),

  // Opens a tab, at a subpath if one is given: openTab("walk", 6).
  openTab: (id, subpath) => tabBar.navigateTo(id, subpath === undefined ? undefined : String(subpath)),

  async startTour() {
    const { startTour } = await import("octavo/tour");
    await startTour(app, (id) => Boolean(tabBar.panelOf(id)));
  },

  // Makes a screen reader speak a text.
  announce(text) {
    announcer.textContent = "";
    requestAnimationFrame(() => (announcer.textContent = text));
  },

  showError,

  // Runs a task of a panel, which is marked as busy, and shows its error at the top of the panel.
  async runTask(panel, task) {
    taskCounts.set(panel, (taskCounts.get(panel) ?? 0) + 1);
    panel.setAttribute("aria-busy", "true");
    try {
      await task();
      showError(panel, null);
    } catch (error) {
      showError(panel, error);
    } finally {
      taskCounts.set(panel, taskCounts.get(panel) - 1);
      if (!taskCounts.get(panel)) panel.removeAttribute("aria-busy");
    }
  },

  // Runs a task that may change the model, the step or the text. The page is busy until the open tab begins its update.
  runPageTask: (task) => app.runTask(tabBar.panels, task),
};

const header = createHeader(app);
const textField = createTextField(app, app.setText, (hasProblem) => {
  for (const id of ["model", "walk", "attention"]) {
    const panel = tabBar.panelOf(id); // it still shows the old text
    panel.classList.toggle("stale", hasProblem);
    panel.inert = hasProblem;
  }
});
const tabBar = createTabBar(offline ? TEXT_TABS : TABS, app, {
  findProblem: (id) => modelsError ?? (app.model || id === "training" ? null : pageError("error.no_model")),
  onOpen(id) {
    textField.element.hidden = !TEXT_TABS.includes(id);
    textField.fitHeight();
    updateTitle();
  },
  onUpdate: textField.noteOmissions, // the update has fetched the view `tokens`, so it is in the cache
});

// ---- Model, step and text

function setState(changes) {
  if (Object.keys(changes).every((name) => app[name] === changes[name])) return;
  const isNewText = "text" in changes && changes.text !== app.text;
  const isNewModel = "model" in changes && changes.model !== app.model;
  Object.assign(app, isNewModel && { layer: null, head: null }, isNewText && { position: null }, changes);
  selectModel(app.model?.id ?? null, app.step);
  if (isNewText) writeStorage(`octavo-text ${app.model?.id}`, app.text, "sessionStorage");
  if (isNewModel) writeStorage("octavo-model", app.model.id);
  tabBar.updateAddress();
  updateHeaderAndText();
  tabBar.updateAll();
}

// Shows the tab and the choices of an address; a model or step that does not exist is ignored.
async function followAddress() {
  const { choices } = parseAddress();
  tabBar.followAddress();
  if (app.model) await app.runPageTask(async () => setState(await resolveChoices(choices, app)));
}

// The choices of an address that can be shown, as changes of `current`: {model, step, text}.
async function resolveChoices({ model: id, step, text, ...others }, current) {
  const model = app.models.find((other) => other.id === id) ?? current.model;
  const changes = { ...others };
  if (model !== current.model) changes.model = model;
  if (id && step === undefined) changes.step = null;
  else if (model.steps.includes(step)) changes.step = step;
  if (text && text !== current.text && !(await findTokenizationProblem(text, model))) changes.text = text;
  return changes;
}

function updateHeaderAndText() {
  header.update();
  textField.update();
}

function updateTitle() {
  document.title = `${t(`tab.${tabBar.openId()}`)} · ${app.model?.id ?? "Octavo"} · Octavo`;
}

// A text to begin with: the last one, else the first example, else the sample sentence with the most characters per
// token, else a text that the model generates.
async function chooseText(model, examples) {
  if (offline) return embedded.text;
  const saved = readStorage(`octavo-text ${model.id}`, "sessionStorage");
  if (saved && !(await findTokenizationProblem(saved, model))) return saved;
  if (examples.length) return examples[0];
  const fetchTokens = (text) => fetchView("tokens", { model: model.id, step: null, text });
  let best = { text: "", charactersPerToken: 0 };
  for (const text of new Set([t("sample.text"), SAMPLE])) {
    if ((await keepKnownCharacters(text, model)) !== text) continue;
    const charactersPerToken = text.length / (await fetchTokens(text)).tokens.length;
    if (charactersPerToken > best.charactersPerToken) best = { text, charactersPerToken };
  }
  if (best.text) return best.text;
  const generated = (await fetchTokens(null)).text; // without a text, the model generates one
  return [...generated].slice(0, 40).join("");
}

// ---- Start

async function start() {
  setTheme(readStorage("octavo-theme") ?? "auto");
  await setLanguage(preferredLanguage(), false);
  setKeyPrompt(askForKey);
  const skip = (event) => {
    event.preventDefault();
    tabBar.panelOf(tabBar.openId()).focus();
  };
  document.body.prepend(
    el("a", { class: "skip", href: "#main", textKey: "header.skip", onclick: skip }),
    header.element,
    el("nav", { labelKey: "header.tabs" }, tabBar.list, header.description),
    textField.element,
    tabBar.panels,
    announcer,
  );
  onLanguageChange(async () => {
    updateHeaderAndText();
    updateTitle();
    await tabBar.updateAll();
    redrawOtherLanguages();
  });
  await loadModels(); // before any tab asks for a view
  window.addEventListener("hashchange", followAddress);
  tabBar.followAddress();
  if (!offline) setTimeout(followModels, FOLLOW_DELAY);
}

// A run whose training has just started has no model yet, so this is repeated until there is one.
async function loadModels() {
  try {
    app.models = (await fetchModels()).models;
    const { choices } = parseAddress();
    const findModel = (id) => app.models.find((model) => model.id === id);
    app.model = findModel(choices.model) ?? findModel(readStorage("octavo-model")) ?? app.models[0] ?? null;
    selectModel(app.model?.id ?? null, null);
    updateHeaderAndText();
    if (app.model) {
      Object.assign(app, await resolveChoices(choices, app));
      selectModel(app.model.id, app.step);
      app.examples = await fetchExamples(app.model.id);
      app.text ||= await chooseText(app.model, app.examples);
    } else setTimeout(retryModels, RETRY_DELAY);
    updateHeaderAndText();
    modelsError = null;
  } catch (error) {
    modelsError = error;
  }
}

async function retryModels() {
  await loadModels();
  if (app.model) tabBar.mountOpenTab();
}

// Shows the newer checkpoints of runs that are still training.
async function followModels() {
  setTimeout(followModels, FOLLOW_DELAY);
  if (document.hidden || !app.model || !app.models.some(({ run }) => run)) return;
  const { models } = await fetchModels().catch(() => app);
  if (JSON.stringify(models) === JSON.stringify(app.models)) return;
  const served = app.model.step;
  app.models = models;
  app.model = models.find(({ id }) => id === app.model.id) ?? app.model;
  forgetAnswers();
  const isGone = app.step !== null && !app.model.steps.includes(app.step);
  if (isGone) setState({ step: null });
  else if (app.step === null && app.model.step !== served) tabBar.updateAll();
  updateHeaderAndText();
}

start();
