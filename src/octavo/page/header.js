// The page's header: the choice of model, checkpoint, language and theme, and the size of the model.

import { fitsInAddress } from "octavo/address";
import { fetchStandalonePage, offline } from "octavo/api";
import { copyText, download, el, field, setSentence } from "octavo/dom";
import { language, languages, onLanguageChange, setLanguage, t } from "octavo/i18n";
import { readStorage, writeStorage } from "octavo/storage";

const MESSAGE_TIME = 4000; // milliseconds

// Returns {element, description, update(), chosenModel()}; `update` shows the model and step of `app`.
export function createHeader(app) {
  const models = el("select", { id: "model", onchange: () => app.setModel(models.value) });
  const onStepChange = () => app.setStep(steps.value ? Number(steps.value) : null);
  const steps = el("select", { id: "step", onchange: onStepChange });
  const stepField = field(steps, "header.step");
  const description = el("p", { class: "model-size quiet" });
  const onTour = () => app.model && app.startTour();
  const tourButton = el("button", { type: "button", class: "small", textKey: "tour.start", onclick: onTour });
  const element = el(
    "header",
    {},
    el("h1", { lang: "en", dir: "ltr" }, "Octavo"),
    el(
      "div",
      { class: "settings" },
      field(models, "header.model"),
      stepField,
      languageChooser(),
      themeChooser(),
      tourButton,
      !offline && sharing(app),
    ),
  );

  function update() {
    const { model } = app;
    models.replaceChildren(...app.models.map(({ id }) => el("option", { value: id }, id)));
    models.value = model?.id ?? "";
    const checkpointSteps = model?.steps ?? [];
    const served = model?.step ?? null; // null: a model without steps; 0 is a valid step
    steps.replaceChildren(
      el("option", { value: "" }, served === null ? t("header.step.this") : t("header.step.served", { step: served })),
      ...checkpointSteps.map((step) => el("option", { value: step }, t("header.step.at", { step }))),
    );
    steps.value = app.step ?? "";
    stepField.hidden = !checkpointSteps.length;
    if (!model) return;
    const { n_layer, n_head, n_embd, block_size, vocab_size, parameters } = model.model;
    setSentence(description, "header.config", { n_layer, n_head, n_embd, block_size, vocab_size, parameters });
  }

  return { element, description, update, chosenModel: () => models.value };
}

// The buttons that copy a link to what is shown, and save it as one file; and a status message beside them.
function sharing(app) {
  const status = el("span", { class: "quiet", role: "status" });
  let timer;
  const say = (key) => {
    setSentence(status, key);
    clearTimeout(timer);
    timer = setTimeout(() => status.replaceChildren(), MESSAGE_TIME);
  };
  const copy = async () => {
    await copyText(location.href);
    say(fitsInAddress(app.text) ? "share.copied" : "share.copied_without_text");
  };
  const save = async () => {
    saveButton.disabled = true;
    say("share.saving");
    try {
      const { model, text, layer, head } = app;
      const chosen = head === null ? {} : { layer, head };
      download(await fetchStandalonePage({ text, unknown: "skip", ...chosen }), `octavo-${model.id}.html`);
      say("share.saved");
    } catch (error) {
      console.warn(error);
      say("share.failed");
    } finally {
      saveButton.disabled = false;
    }
  };
  const button = (key, onclick) => el("button", { type: "button", class: "small", textKey: key, onclick });
  const saveButton = button("share.save", save);
  return el("span", { class: "sharing" }, button("share.copy", copy), saveButton, status);
}

function languageChooser() {
  const chooser = el(
    "select",
    { id: "language", labelKey: "header.language", onchange: () => setLanguage(chooser.value) },
    languages.map(({ code, name }) => el("option", { value: code, lang: code }, name)),
  );
  chooser.value = language.code;
  onLanguageChange(() => (chooser.value = language.code));
  return chooser;
}

function themeChooser() {
  const chooser = el(
    "select",
    { id: "theme", labelKey: "header.theme", onchange: () => setTheme(chooser.value) },
    ["auto", "light", "dark"].map((value) => el("option", { value, textKey: `header.theme.${value}` })),
  );
  chooser.value = readStorage("octavo-theme") ?? "auto";
  return chooser;
}

export function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  writeStorage("octavo-theme", theme);
}
