// The page: its head, its tabs, and what they share. Each tab is a module that gives
//   mount(panel, app) -> {update(), and if it wants show(), hide()}
// `update()` is called on the tab that is seen when model, step, text or language changed, and on another, once, just
// before it is shown. `app` is what they share, see below. Models, steps and texts are the same on all tabs.

import { ApiError, choose, isAborted, knownOf, lens, models, offline, onKey, unreadable } from "octavo/api";
import {
  el,
  embedded,
  field,
  language,
  languages,
  onLanguage,
  preferredLanguage,
  say,
  setLanguage,
  store,
  stored,
  t,
} from "octavo/dom";

const TABS = ["walk", "attention", "positions_and_words", "playground", "training", "compare"];
const SAMPLE = "The cat sat on the mat, and the cat slept.";
const OFFLINE = ["walk", "attention", "positions_and_words"];

const listeners = new Map();

export const app = {
  models: [], // as GET /lens describes them
  model: null, // the one that is chosen: {id, model: {n_layer, n_head, n_embd, block_size, vocab_size, parameters}, tokenizer, steps, step, run}
  step: null, // a kept checkpoint of its run, or null: the one that is served
  text: "", // what walk, attention and words look at; the model can read it

  setText: (text) => change({ text }),
  setStep: (step) => change({ step }),
  async setModel(id) {
    const model = app.models.find((each) => each.id === id) ?? app.model;
    let text = null; // what is typed, else what was looked at, else a text that this model can read
    for (const each of [textBox.value, app.text]) if (!(await unreadable(each, model))) text ??= each;
    text ??= await firstText(model);
    if (modelChooser.value !== id) return; // another was chosen meanwhile
    withhold(null);
    textBox.value = text;
    change({ model, step: null, text });
  },

  // app.on("change", fn): fn({model, step, text}) with true for what changed. Gives a function that ends it.
  on(event, listener) {
    if (!listeners.has(event)) listeners.set(event, new Set());
    listeners.get(event).add(listener);
    return () => listeners.get(event).delete(listener);
  },

  // Where a tab stands, kept in the address: #walk/6.
  placeOf: (id) => tabs.get(id).place,
  place(id, place) {
    tabs.get(id).place = place;
    if (current === id && location.hash !== addressOf(id)) history.replaceState(null, "", addressOf(id));
  },

  // Says it to a screen reader.
  announce(text) {
    spoken.textContent = "";
    requestAnimationFrame(() => (spoken.textContent = text));
  },

  // Shows an error at the top of a panel; null takes it away. One that was only overtaken by a newer request is none.
  problem(panel, error) {
    if (isAborted(error)) return;
    panel.querySelector(":scope > .problem")?.remove();
    if (!error) return;
    if (!(error instanceof ApiError)) console.error(error);
    panel.prepend(problem(error));
  },

  // Runs a task of a panel, with its error, if it has one, at the top of the panel: await app.trying(panel, async () => {…}).
  async trying(panel, task) {
    under.set(panel, (under.get(panel) ?? 0) + 1);
    panel.setAttribute("aria-busy", "true");
    try {
      const result = await task();
      app.problem(panel, null);
      return result;
    } catch (error) {
      app.problem(panel, error);
      return undefined;
    } finally {
      under.set(panel, under.get(panel) - 1);
      if (!under.get(panel)) panel.removeAttribute("aria-busy");
    }
  },
};

const under = new WeakMap(); // panel -> tasks of it that are under way

const SAID = {
  "-1": "error.unreachable",
  401: "error.key",
  404: "error.offline",
  429: "error.busy",
  503: "error.none",
};

// What the server says is English; a hint of it that is for the command line is of no use here.
function problem(error) {
  const told = error instanceof ApiError && error.message;
  const hint = told && !/--|octavo /.test(error.hint) ? error.hint : "";
  const message = told
    ? [el("span", { say: "error.server" }), " ", el("bdi", { lang: "en", dir: "ltr" }, error.message)]
    : el("span", { say: error.says ?? SAID[error.status] ?? "error.unknown" });
  return el(
    "div",
    { class: "problem", role: "alert" },
    el("p", {}, el("strong", { say: "error.title" }), " ", message),
    hint && el("p", { class: "quiet" }, el("span", { say: "error.try" }), " ", el("code", { dir: "ltr" }, hint)),
  );
}

// ---- What is chosen

function change(changes) {
  const changed = Object.fromEntries(
    Object.keys(changes)
      .filter((name) => app[name] !== changes[name])
      .map((name) => [name, true]),
  );
  Object.assign(app, changes);
  if (!Object.keys(changed).length) return;
  choose(app.model?.id ?? null, app.step);
  if (changed.text) store(`octavo-text ${app.model?.id}`, app.text, "sessionStorage");
  showChoices();
  for (const listener of listeners.get("change") ?? []) listener(changed);
  refresh();
}

// A text to begin with: the last one, else a sentence that this model reads in the fewest tokens; else its own.
async function firstText(model) {
  if (offline) return embedded.text;
  const kept = stored(`octavo-text ${model.id}`, "sessionStorage");
  if (kept && !(await unreadable(kept, model))) return kept;
  const read = (text) => lens("tokens", { model: model.id, step: null, text });
  let best = { text: "", each: 0 };
  for (const text of new Set([t("sample.text"), SAMPLE])) {
    if ((await knownOf(text, model)) !== text) continue;
    const each = text.length / (await read(text)).tokens.length;
    if (each > best.each) best = { text, each };
  }
  return best.text || [...(await read(null)).text].slice(0, 40).join("");
}

// ---- The head

const spoken = el("div", { class: "unseen", role: "status" });
const modelChooser = el("select", { id: "model", onchange: () => app.setModel(modelChooser.value) });
const stepChooser = el("select", {
  id: "step",
  onchange: () => app.setStep(stepChooser.value ? Number(stepChooser.value) : null),
});
const languageChooser = el(
  "select",
  { id: "language", sayLabel: "head.language", onchange: () => setLanguage(languageChooser.value) },
  languages.map(({ code, name }) => el("option", { value: code, lang: code }, name)),
);
const themeChooser = el(
  "select",
  { id: "theme", sayLabel: "head.theme", onchange: () => setTheme(themeChooser.value) },
  ["auto", "light", "dark"].map((value) => el("option", { value, say: `head.theme.${value}` })),
);
const description = el("p", { class: "model quiet" });

const textBox = el("textarea", {
  id: "text",
  rows: 1,
  dir: "auto",
  spellcheck: "false",
  maxlength: 20000,
  autocomplete: "off",
});
const textRow = el(
  "form",
  { class: "text", sayLabel: "head.text", onsubmit: (event) => event.preventDefault() },
  el("label", { for: "text", say: "head.text" }),
  el(
    "div",
    { class: "wide" },
    textBox,
    el("p", { class: "problem", id: "unread", role: "alert", hidden: true }),
    el("p", { class: "quiet", id: "left-out", role: "status", hidden: true }),
  ),
);
let typing;
textBox.addEventListener("input", () => {
  fitText();
  clearTimeout(typing);
  typing = setTimeout(async () => {
    const text = textBox.value,
      why = await unreadable(text, app.model);
    if (text !== textBox.value) return; // typed on
    withhold(why);
    if (!why) app.setText(text);
  }, 250);
});

// Where what is typed can't be looked at, that is said beneath it, and what is seen of the text before is pale.
function withhold(why) {
  const note = textRow.querySelector("#unread");
  note.hidden = !why;
  if (why) say(note, ...why);
  for (const id of ["walk", "attention"]) {
    tabs.get(id).panel.classList.toggle("old", Boolean(why));
    tabs.get(id).panel.inert = Boolean(why);
  }
}

function fitText() {
  textBox.style.height = "auto";
  textBox.style.height = `${Math.min(200, textBox.scrollHeight + 2)}px`;
}

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  store("octavo-theme", theme);
  themeChooser.value = theme;
}

function showChoices() {
  const { model } = app;
  modelChooser.replaceChildren(...app.models.map(({ id }) => el("option", { value: id }, id)));
  modelChooser.value = model?.id ?? "";
  const steps = model?.steps ?? [];
  stepChooser.replaceChildren(
    el("option", { value: "" }, model?.step ? t("head.step.served", { step: model.step }) : t("head.step.this")),
    ...steps.map((step) => el("option", { value: step }, t("head.step.at", { step }))),
  );
  stepChooser.value = app.step ?? "";
  stepChooser.closest(".field").hidden = !steps.length;
  if (model) {
    const { n_layer, n_head, n_embd, block_size, vocab_size, parameters } = model.model;
    say(description, "head.shape", { n_layer, n_head, n_embd, block_size, vocab_size, parameters });
  }
  if (document.activeElement !== textBox && textRow.querySelector("#unread").hidden) textBox.value = app.text;
  textBox.readOnly = offline;
  fitText();
}

// ---- Tabs

const tabs = new Map(); // id -> {button, panel, view, stale, place}
const tabList = el("div", { role: "tablist", class: "tabs", sayLabel: "head.tabs" });
const panels = el("main", { id: "main" });
let current = null;
let none = null; // why there are no models, if they couldn't be asked for

function addTab(id) {
  const button = el("button", {
    role: "tab",
    id: `tab-${id}`,
    "aria-controls": `panel-${id}`,
    type: "button",
    say: `tab.${id}`,
    onclick: () => go(id),
  });
  const panel = el("section", {
    role: "tabpanel",
    id: `panel-${id}`,
    "aria-labelledby": `tab-${id}`,
    hidden: true,
    tabindex: "-1",
    class: `panel ${id}`,
  });
  tabs.set(id, { button, panel, view: null, stale: true, place: "" });
  tabList.append(button);
  panels.append(panel);
}

tabList.addEventListener("keydown", (event) => {
  const ids = [...tabs.keys()];
  const forward = language.dir === "rtl" ? "ArrowLeft" : "ArrowRight",
    back = language.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
  const at = ids.indexOf(current);
  const to = {
    [forward]: (at + 1) % ids.length,
    [back]: (at + ids.length - 1) % ids.length,
    Home: 0,
    End: ids.length - 1,
  }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  go(ids[to]);
  tabs.get(ids[to]).button.focus();
});

const addressOf = (id) => `#${id}${tabs.get(id).place ? `/${tabs.get(id).place}` : ""}`;

function go(id) {
  if (location.hash !== addressOf(id)) history.pushState(null, "", addressOf(id));
  show(id);
}

// What the address says.
function follow() {
  const [id, place = ""] = location.hash.slice(1).split("/");
  if (!tabs.has(id)) return show(tabs.keys().next().value);
  tabs.get(id).place = place;
  tabs.get(id).view?.place?.(place);
  return show(id);
}

async function show(id) {
  if (current === id) return;
  const last = tabs.get(current);
  current = id;
  last?.view?.hide?.();
  for (const [each, { button, panel }] of tabs) {
    button.setAttribute("aria-selected", String(each === id));
    button.tabIndex = each === id ? 0 : -1;
    panel.hidden = each !== id;
  }
  document.body.dataset.tab = id;
  textRow.hidden = !OFFLINE.includes(id);
  fitText();
  titled();
  await open(id);
}

async function open(id) {
  const tab = tabs.get(id);
  if (none || (!app.model && id !== "training")) return app.problem(tab.panel, none ?? new ApiError("", "", 503));
  app.problem(tab.panel, null);
  try {
    tab.loading ??= import(`octavo/tabs/${id}`).then((module) => (tab.view = module.mount(tab.panel, app)));
    await tab.loading;
    if (current !== id) return;
    tab.view.show?.();
    if (!tab.stale) return;
    tab.stale = false;
    await tab.view.update?.();
    await noteLeftOut();
  } catch (error) {
    app.problem(tab.panel, error);
  }
}

// What of the text the tokenizer doesn't know, said beneath it. Tabs ask the same, so this is mostly kept already.
async function noteLeftOut() {
  const note = textRow.querySelector("#left-out"),
    { text } = app;
  const read = text && !offline ? await lens("tokens", { text, unknown: "skip" }).catch(() => null) : null;
  if (text !== app.text) return;
  const known = new Set(read?.text),
    left = read ? [...new Set(text)].filter((each) => !known.has(each)) : [];
  note.hidden = !left.length;
  say(note, "text.left_out", { characters: left.slice(0, 30).join(" ") });
}

function refresh() {
  for (const [id, tab] of tabs) {
    tab.stale = id !== current || !tab.view;
    if (!tab.stale)
      Promise.resolve(tab.view.update?.())
        .catch((error) => app.problem(tab.panel, error))
        .then(noteLeftOut);
  }
}

function titled() {
  document.title = `${t(`tab.${current}`)} · ${app.model?.id ?? "Octavo"} · Octavo`;
}

// ---- The key

function keyDialog(wrong) {
  return new Promise((resolve) => {
    const field = el("input", { id: "key", type: "password", autocomplete: "off", required: true });
    const dialog = el(
      "dialog",
      { "aria-labelledby": "key-title" },
      el(
        "form",
        { method: "dialog", onsubmit: () => (dialog.returnValue = "given") },
        el("h2", { id: "key-title", say: "key.title" }),
        el("p", { say: "key.why" }),
        wrong && el("p", { class: "problem", role: "alert", say: "key.wrong" }),
        el("label", { class: "field", for: "key" }, el("span", { say: "key.field" }), field),
        el(
          "p",
          { class: "buttons" },
          el("button", { class: "main", value: "given", say: "key.use" }),
          el("button", { type: "button", say: "key.cancel", onclick: () => dialog.close("") }),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "given" && field.value ? field.value.trim() : null);
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// ---- Begin

async function begin() {
  setTheme(stored("octavo-theme") ?? "auto");
  await setLanguage(preferredLanguage(), false);
  languageChooser.value = language.code;
  onKey(keyDialog);
  for (const id of offline ? OFFLINE : TABS) addTab(id);
  document.body.prepend(
    el("a", {
      class: "skip",
      href: "#main",
      say: "head.skip",
      onclick: (event) => {
        event.preventDefault();
        tabs.get(current).panel.focus();
      },
    }),
    el(
      "header",
      {},
      el("h1", { lang: "en", dir: "ltr" }, "Octavo"),
      el(
        "div",
        { class: "settings" },
        field(modelChooser, "head.model"),
        field(stepChooser, "head.step"),
        languageChooser,
        themeChooser,
      ),
    ),
    el("nav", { sayLabel: "head.tabs" }, tabList, description),
    textRow,
    panels,
    spoken,
  );
  onLanguage(() => {
    languageChooser.value = language.code;
    showChoices();
    titled();
    refresh();
  });
  await findModels(); // a tab that is asked for before would find no model
  window.addEventListener("hashchange", follow);
  follow();
}

// A run whose training has just begun has no model yet: then this is asked again until there is one.
async function findModels() {
  try {
    app.models = (await models()).models;
    app.model = app.models[0] ?? null;
    choose(app.model?.id ?? null, null);
    showChoices();
    if (app.model) app.text = await firstText(app.model);
    else
      setTimeout(async () => {
        await findModels();
        if (app.model) open(current);
      }, 3000);
    showChoices();
    none = null;
  } catch (error) {
    none = error;
  }
}

begin();
