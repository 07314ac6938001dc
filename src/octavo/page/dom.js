// Elements, with sentences that follow the user's language. Text gets into the page as text only: no markup is parsed.

import { formatNumber, language, onLanguageChange, sentenceParts, t } from "octavo/i18n";

// ---- Elements

// el("button", {class: "quiet", textKey: "walk.next", onclick: step}, ...children). Special properties:
//   textKey: "key" or ["key", values]   a translated sentence as the element's content
//   labelKey, titleKey                  the same as aria-label and title
//   style: {…}, dataset: {…}, on…: listener; true sets an attribute without a value, null and false omit it
export function el(tag, properties = {}, ...children) {
  return build(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function build(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name in SENTENCE_PROPERTIES) setTranslated(node, name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") node[name] = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "style")
      for (const [rule, setting] of Object.entries(value)) node.style.setProperty(rule, setting);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// ---- Sentences in elements

// The special properties of `el` -> the attribute that the sentence is set as; null: it is the content.
const SENTENCE_PROPERTIES = { textKey: null, labelKey: "aria-label", titleKey: "title" };

const sentencesOf = new WeakMap(); // element -> {textKey, labelKey, titleKey}: each [key, values]
let translatedNodes = new Set(); // WeakRefs of the elements in `sentencesOf`, so that removed ones can be collected

// Changes the sentence of an element: setSentence(node, "header.step.at", {step: 3}).
export function setSentence(node, key, values) {
  setTranslated(node, "textKey", [key, values]);
}

export function setLabel(node, key, values) {
  setTranslated(node, "labelKey", [key, values]);
}

function setTranslated(node, property, value) {
  if (!sentencesOf.has(node)) translatedNodes.add(new WeakRef(node));
  if (translatedNodes.size > 20_000) dropCollected();
  sentencesOf.set(node, { ...sentencesOf.get(node), [property]: [value].flat() });
  renderSentences(node);
}

function renderSentences(node) {
  for (const [property, [key, values]] of Object.entries(sentencesOf.get(node) ?? {})) {
    const attribute = SENTENCE_PROPERTIES[property];
    if (attribute === null) node.replaceChildren(...tNodes(key, values));
    else node.setAttribute(attribute, t(key, values));
  }
}

function dropCollected() {
  translatedNodes = new Set([...translatedNodes].filter((reference) => reference.deref()));
}

onLanguageChange(() => {
  dropCollected();
  for (const reference of translatedNodes) renderSentences(reference.deref());
});

// A sentence as nodes. Text between backquotes becomes a <code>; a value may be a node, such as a token's chip.
export function tNodes(key, values = {}) {
  return sentenceParts(key, values).map(({ text, node, inCode, isolated }) => {
    if (node) return node.cloneNode(true);
    if (inCode) return code(text);
    return isolated ? el("bdi", {}, text) : document.createTextNode(text);
  });
}

export function code(text, properties = {}) {
  return el("code", { dir: "ltr", ...properties }, text);
}

// An element with a number and its sign, which reads left to right in every language.
export const signedNumberElement = (value, digits = 2) =>
  el("bdi", { dir: "ltr" }, `${value > 0 ? "+" : value < 0 ? "−" : "±"}${formatNumber(Math.abs(value), digits)}`);

// ---- Sections that fold

const NARROW = "(max-width: 560px)";

// Makes a section fold below its heading. On a narrow screen it is folded at first.
export function foldable(section, heading = section.querySelector("h2, h3")) {
  const content = [...section.childNodes].slice([...section.childNodes].indexOf(heading) + 1);
  const properties = { class: "fold", open: !matchMedia(NARROW).matches };
  section.append(el("details", properties, el("summary", {}, heading), content));
  return section;
}

// ---- Files and the clipboard

// Lets the browser save a Blob under a name.
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000); // after the download has begun
}

// A page that is not served from this machine or by HTTPS has no `navigator.clipboard`.
export async function copyText(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = el("textarea", { value: text });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}

// ---- Controls

// A control with its label before it.
export function field(control, key) {
  return el("span", { class: "field" }, el("label", { for: control.id, textKey: key }), control);
}

// A control with its label above it.
export const stackedField = (control, key) =>
  el("div", { class: "stacked" }, el("label", { for: control.id, textKey: key }), control);

// A text field without the browser's corrections.
export const textInput = (properties) =>
  el("input", { type: "text", dir: "auto", spellcheck: "false", autocomplete: "off", ...properties });

// Sets the options of a <select>, [value, text] each. `selected` is chosen if it is among them.
export function setOptions(select, options, selected = select.value) {
  select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
  if (options.some(([value]) => String(value) === String(selected))) select.value = selected;
}

// Sets the numbers that a <select> offers; it is disabled if there is no choice.
export function setNumbers(select, values, selected) {
  setOptions(
    select,
    values.map((value) => [value, String(value)]),
    selected,
  );
  select.disabled = values.length < 2;
}

// A container that scrolls sideways, by keyboard too, for content that may be wider than the page.
export const scrollRegion = (label, ...children) =>
  el("div", { class: "scroll", tabindex: "0", role: "region", labelKey: label }, children);

// 1 for the arrow key that points forward in the page's reading direction, -1 for backward, 0 for any other key.
export function arrowDirection(key, direction = language.dir) {
  const forward = direction === "rtl" ? "ArrowLeft" : "ArrowRight";
  const backward = direction === "rtl" ? "ArrowRight" : "ArrowLeft";
  return key === forward ? 1 : key === backward ? -1 : 0;
}
