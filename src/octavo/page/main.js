// The page: what its parts share, and how it starts. Model, step and text are the same on all tabs.

import {
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
import { createHeader, setTheme } from "octavo/header";
import { onLanguageChange, preferredLanguage, setLanguage, t } from "octavo/i18n";
import { askForKey } from "octavo/key_dialog";
import { readStorage, writeStorage } from "octavo/storage";
import { createTabBar } from "octavo/tab_bar";
import { createTextField } from "octavo/text_field";

const TABS = ["walk", "attention", "positions_and_words", "playground", "training", "compare"];
const TEXT_TABS = ["walk", "attention", "positions_and_words"]; // with the shared text; an exported page has only these
const SAMPLE = "The cat sat on the mat, and the cat slept.";
const FOLLOW_DELAY = 1500; // milliseconds between two looks at the checkpoints
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

  setText: (text) => setState({ text }),
  setStep: (step) => setState({ step }),

  // Keeps the text in the field if the new model's tokenizer knows at least one of its characters, else `app.text` if
  // it knows one of that; else chooses another text.
  async setModel(id) {
    const model = app.models.find((other) => other.id === id) ?? app.model;
    let text = null;
    for (const candidate of [textField.value(), app.text])
      if (text === null && !(await findTokenizationProblem(candidate, model))) text = candidate;
    text ??= await chooseText(model);
    if (header.chosenModel() !== id) return; // another was chosen meanwhile
    textField.setText(text);
    setState({ model, step: null, text });
  },

  // The part of the address after the tab: 6 in #walk/6.
  getSubpath: (id) => tabBar.getSubpath(id),
  setSubpath: (id, subpath) => tabBar.setSubpath(id, subpath),

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
};

const header = createHeader(app);
const textField = createTextField(app, app.setText, (hasProblem) => {
  for (const id of ["walk", "attention"]) {
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
  onUpdate: textField.noteUnknownCharacters, // the update has fetched the view `tokens`, so it is in the cache
});

// ---- Model, step and text

function setState(changes) {
  if (Object.keys(changes).every((name) => app[name] === changes[name])) return;
  const isNewText = "text" in changes && changes.text !== app.text;
  Object.assign(app, changes);
  selectModel(app.model?.id ?? null, app.step);
  if (isNewText) writeStorage(`octavo-text ${app.model?.id}`, app.text, "sessionStorage");
  updateHeaderAndText();
  tabBar.updateAll();
}

function updateHeaderAndText() {
  header.update();
  textField.update();
}

function updateTitle() {
  document.title = `${t(`tab.${tabBar.openId()}`)} · ${app.model?.id ?? "Octavo"} · Octavo`;
}

// A text to begin with: the last one, else the sample sentence with the most characters per token, else a text that the
// model generates.
async function chooseText(model) {
  if (offline) return embedded.text;
  const saved = readStorage(`octavo-text ${model.id}`, "sessionStorage");
  if (saved && !(await findTokenizationProblem(saved, model))) return saved;
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
  onLanguageChange(() => {
    updateHeaderAndText();
    updateTitle();
    tabBar.updateAll();
  });
  await loadModels(); // before any tab asks for a view
  window.addEventListener("hashchange", tabBar.followAddress);
  tabBar.followAddress();
  if (!offline) setTimeout(followModels, FOLLOW_DELAY);
}

// A run whose training has just started has no model yet, so this is repeated until there is one.
async function loadModels() {
  try {
    app.models = (await fetchModels()).models;
    app.model = app.models[0] ?? null;
    selectModel(app.model?.id ?? null, null);
    updateHeaderAndText();
    if (app.model) app.text = await chooseText(app.model);
    else setTimeout(retryModels, RETRY_DELAY);
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
