// The page's languages: their sentences and number formats.
//
// Sentences are in i18n/<language>/<file>.json as `key: sentence`: common.json, and one file per tab, which is loaded
// when the tab is first opened. A sentence may have {placeholders} for values, and `code`, which becomes a <code> that
// reads left to right in every language.

import { embedded } from "octavo/embedded";
import { readStorage, writeStorage } from "octavo/storage";
import { fileUrl } from "octavo/urls";

export const languages = [
  { code: "en", name: "English", dir: "ltr" },
  { code: "ar", name: "العربية", dir: "rtl" },
  { code: "hi", name: "हिन्दी", dir: "ltr" },
  { code: "fr", name: "Français", dir: "ltr" },
  { code: "de", name: "Deutsch", dir: "ltr" },
];

export let language = languages[0];
let requested = language; // the user's choice; it becomes `language` when its sentences are loaded

// ---- Languages

const listeners = new Set();

// The language of the last visit, else the first of the browser's languages that the page has, else English.
export function preferredLanguage() {
  const exists = (code) => languages.some((entry) => entry.code === code);
  const saved = readStorage("octavo-language");
  if (exists(saved)) return saved;
  return (navigator.languages ?? []).map((tag) => tag.slice(0, 2).toLowerCase()).find(exists) ?? "en";
}

// `remember`: the user chose this language, so the next visit begins with it.
export async function setLanguage(code, remember = true) {
  const chosen = languages.find((entry) => entry.code === code) ?? languages[0];
  requested = chosen;
  await Promise.all([...files].map((file) => loadFile(chosen.code, file)));
  if (requested !== chosen) return;
  language = chosen;
  if (remember) writeStorage("octavo-language", chosen.code);
  document.documentElement.lang = chosen.code;
  document.documentElement.dir = chosen.dir;
  for (const listener of listeners) listener();
}

export function onLanguageChange(listener) {
  listeners.add(listener);
}

// ---- Sentences

const PLACEHOLDER = /\{(\w+)\}/g;

const files = new Set(["common"]); // the files that the page has needed so far
const loads = new Map(); // "<language>/<file>" -> promise
const sentences = new Map(); // language code -> {key: sentence}

// Loads the sentences of a tab in the current language; other languages follow when the user changes to them.
export async function loadSentences(file) {
  files.add(file);
  await Promise.all([language, requested].map(({ code }) => loadFile(code, file)));
}

async function loadFile(code, file) {
  const name = `${code}/${file}`;
  if (!loads.has(name)) loads.set(name, fetchFile(code, name));
  try {
    await loads.get(name);
  } catch (error) {
    loads.delete(name); // the next call tries again
    throw error;
  }
}

async function fetchFile(code, name) {
  let content = embedded?.i18n[code] ?? {}; // an exported page carries all files of a language in one
  if (!embedded) {
    const response = await fetch(fileUrl(`i18n/${name}.json`));
    if (response.ok) content = await response.json();
  }
  sentences.set(code, { ...sentences.get(code), ...content });
}

// A sentence as plain text: t("header.step.at", {step: 3}).
export function t(key, values = {}) {
  return sentenceParts(key, values)
    .map(({ text, isolated }) => (isolated ? `\u2068${text}\u2069` : text))
    .join("");
}

// The parts of a sentence, as {text}, {text, inCode}, {text, node} or {text, isolated}; isolated: to be isolated from
// the direction of the sentence (<bdi>). The template is split before the values are filled in, so markup in a value
// stays text.
export function sentenceParts(key, values) {
  const sentence = sentences.get(language.code)?.[key] ?? key;
  return sentence
    .split("`")
    .flatMap((part, i) => {
      if (i % 2) {
        const text = part.replace(PLACEHOLDER, (placeholder, name) => formatValue(values[name] ?? placeholder));
        return { text, inCode: true };
      }
      return part.split(PLACEHOLDER).map((text, j) => {
        if (j % 2 === 0) return { text };
        const value = values[text] ?? `{${text}}`;
        if (value instanceof Node) return { text: value.textContent, node: value };
        // Within right-to-left text a shape or a formula keeps its order only if it is isolated.
        const isPlain = /^[\p{L}\p{Nd}]*$/u.test(formatValue(value));
        return { text: formatValue(value), isolated: language.dir === "rtl" && !isPlain };
      });
    })
    .filter(({ text, node }) => text !== "" || node);
}

const formatValue = (value) => (typeof value === "number" ? formatCount(value) : String(value));

// ---- Numbers as text. Digits are Latin in every language, as in the code beside them.

const formats = new Map();

function format(value, options) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const key = language.code + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(`${language.code}-u-nu-latn`, options));
  return formats.get(key).format(value).replace("-", "−"); // the minus sign that the formulas have
}

// With a fixed number of decimals, so that columns align; never "−0.00".
export const formatNumber = (value, digits = 3) =>
  format(value, { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" });

// With six significant digits, like the numbers that the server sends. Below 1e-8 there is only rounding error.
export const formatSignificant = (value) =>
  value && Math.abs(value) < 1e-8 ? "≈ 0" : format(value, { maximumSignificantDigits: 6 });

export const formatPercent = (value, digits = 1) =>
  format(value, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });

export const formatCount = (value) => format(value, { maximumFractionDigits: 0 });

// For small spaces: 124M.
export const formatCompact = (value) => format(value, { notation: "compact", maximumSignificantDigits: 3 });
