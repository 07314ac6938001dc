// Words: what is said in the reader's language, numbers as that language writes them, and the elements that hold both.
//
// Sentences stand in i18n/<language>/*.json as `key: sentence`. A sentence may have {names}, which values fill, and
// `code`, which becomes a <code> that reads left to right wherever it stands. Nothing here knows of models.
//
// Text gets into the page as text only (`el`, `said`): no markup is ever parsed.

export const languages = [
  { code: "en", name: "English", dir: "ltr" },
  { code: "ar", name: "العربية", dir: "rtl" },
  { code: "hi", name: "हिन्दी", dir: "ltr" },
  { code: "fr", name: "Français", dir: "ltr" },
  { code: "de", name: "Deutsch", dir: "ltr" },
];

export let language = languages[0];

// The static page carries its words, its answers and its model with it; a served one asks for them.
const carried = document.getElementById("octavo-static");
export const embedded = carried ? JSON.parse(carried.textContent) : null;

const sentences = new Map(); // code -> {key: sentence}
const listeners = new Set();
const spoken = new WeakMap(); // element -> {say, sayLabel, ...}: what it says in whatever language
let speaking = new Set(); // those elements, weakly: what left the page is forgotten

// ---- Languages

// The language that was chosen before, else the first of the browser's that there is.
export function preferredLanguage() {
  const known = (code) => languages.some((each) => each.code === code);
  const kept = stored("octavo-language");
  if (known(kept)) return kept;
  return (navigator.languages ?? []).map((each) => each.slice(0, 2).toLowerCase()).find(known) ?? "en";
}

export async function setLanguage(code, keep = true) {
  const chosen = languages.find((each) => each.code === code) ?? languages[0];
  await learn(chosen.code);
  language = chosen;
  if (keep) store("octavo-language", chosen.code);
  document.documentElement.lang = chosen.code;
  document.documentElement.dir = chosen.dir;
  forget();
  for (const weak of speaking) speak(weak.deref());
  for (const listener of listeners) listener(chosen);
}

// Calls `listener(language)` after each change. Gives a function that ends it.
export function onLanguage(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function forget() {
  speaking = new Set([...speaking].filter((weak) => weak.deref()));
}

async function learn(code) {
  if (sentences.has(code)) return;
  if (embedded) return void sentences.set(code, embedded.i18n[code] ?? {});
  const files = ["explain", "live"].map(async (name) => {
    const answer = await fetch(`/page/i18n/${code}/${name}.json`);
    return answer.ok ? answer.json() : {};
  });
  sentences.set(code, Object.assign({}, ...(await Promise.all(files))));
}

function sentence(key) {
  return sentences.get(language.code)?.[key] ?? key;
}

// A sentence as plain text.
export function t(key, values = {}) {
  return parts(key, values)
    .map(({ text, isolate }) => (isolate ? `\u2068${text}\u2069` : text))
    .join("");
}

// A sentence as nodes: its `code` as <code>, and values that are nodes (a token's chip, say) as they are.
export function said(key, values = {}) {
  return parts(key, values).map(({ text, node, inCode, isolate }) =>
    node ? node.cloneNode(true) : inCode ? code(text) : isolate ? el("bdi", {}, text) : document.createTextNode(text),
  );
}

// The template is taken apart before values go in, so whatever they hold is text.
function parts(key, values) {
  return sentence(key)
    .split("`")
    .flatMap((piece, at) => {
      if (at % 2) return { text: piece.replace(PLACE, (whole, name) => shown(values[name] ?? whole)), inCode: true };
      return piece.split(PLACE).map((text, i) => {
        if (i % 2 === 0) return { text };
        const value = values[text] ?? `{${text}}`;
        if (value instanceof Node) return { text: value.textContent, node: value };
        // In right-to-left text a shape or a formula keeps its own order only if it is set apart.
        return { text: shown(value), isolate: language.dir === "rtl" && !/^[\p{L}\p{Nd}]*$/u.test(shown(value)) };
      });
    })
    .filter(({ text, node }) => text !== "" || node);
}

const PLACE = /\{(\w+)\}/g;

const shown = (value) => (typeof value === "number" ? count(value) : String(value));

// ---- Numbers: digits are Latin in every language, for they stand beside code

const formats = new Map();

function format(value, options) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const key = language.code + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new Intl.NumberFormat(`${language.code}-u-nu-latn`, options));
  return formats.get(key).format(value).replace("-", "−"); // as in the formulas beside it
}

// With so many decimals: columns of them align.
export const number = (x, digits = 3) =>
  format(x, { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "negative" }); // never -0.00

// As exactly as the server sends it, but for what is next to nothing.
export const exact = (x) =>
  x && Math.abs(x) < 1e-8 ? "≈ 0" : format(x, { maximumSignificantDigits: 6 });

export const percent = (x, digits = 1) =>
  format(x, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });

export const count = (n) => format(n, { maximumFractionDigits: 0 });

// Where there is little room: 124M.
export const short = (n) => format(n, { notation: "compact", maximumSignificantDigits: 3 });

// ---- Elements

// el("button", {class: "quiet", say: "walk.next", onclick: step}, ...children). What is special:
//   say: "key" or ["key", values]   text in the reader's language, and again when that changes
//   sayLabel, sayTitle   the same for aria-label, title
//   style: {…}, dataset: {…}, on…: listener; true sets an attribute without a value, null and false leave it out
export function el(tag, props = {}, ...children) {
  return build(document.createElement(tag), props, children);
}

// The same in SVG.
export function svg(tag, props = {}, ...children) {
  return build(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

// The last token that has letters in it, one to follow: its place, or 0.
export const lastWord = (tokens) =>
  Math.max(0, tokens.findLastIndex(({ label }) => /\p{L}/u.test(label) && !/^<[\da-f ]+>$/.test(label)));

function build(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("say")) setSaid(node, name, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "text") node.textContent = value;
    else if (name === "value" || name === "checked") node[name] = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "style") for (const [each, how] of Object.entries(value)) node.style.setProperty(each, how);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((each) => each !== null && each !== undefined && each !== false));
  return node;
}

// Changes what an element says: say(node, "head.step.at", {step: 3}).
export function say(node, key, values) {
  setSaid(node, "say", values ? [key, values] : key);
}

export function sayLabel(node, key, values) {
  setSaid(node, "sayLabel", values ? [key, values] : key);
}

function setSaid(node, name, value) {
  if (!spoken.has(node)) speaking.add(new WeakRef(node));
  if (speaking.size > 20_000) forget();
  spoken.set(node, { ...spoken.get(node), [name]: [value].flat() });
  speak(node);
}

const ATTRIBUTES = { sayLabel: "aria-label", sayTitle: "title" };

function speak(node) {
  for (const [name, [key, values]] of Object.entries(spoken.get(node) ?? {})) {
    if (name === "say") node.replaceChildren(...said(key, values));
    else node.setAttribute(ATTRIBUTES[name], t(key, values));
  }
}

// A control with its label before it.
export function field(control, key) {
  return el("span", { class: "field" }, el("label", { for: control.id, say: key }), control);
}

// The numbers that a <select> offers, and the one that is chosen.
export function choices(select, values, chosen) {
  select.replaceChildren(...values.map((value) => el("option", { value }, String(value))));
  select.value = String(chosen);
  select.disabled = values.length < 2;
}

export function code(text, props = {}) {
  return el("code", { dir: "ltr", ...props }, text);
}

// ---- Tokens

// A token's name where it stands alone: blanks can be seen, marks stand on a circle.
const label = (token) => token.label;

// What a token that is shown alone is wrapped in: it keeps its own direction.
export function chip(token, props = {}) {
  return el("bdi", { class: "chip", title: token.bytes, ...props }, token.label);
}

// Running text, one span for each group of tokens that make whole characters together. Spans have no padding, margin,
// border or isolation, which would break the joining of letters: they differ by background only.
//   each(span, group, tokens)   to colour a span
//   onPick(first, group, how)   on hover ("hover"), focus ("focus") or click ("click")
// Arrow keys walk from span to span. Gives the element; `.spans` are in order, `.spanAt(position)` finds one.
export function tokenSpans(tokens, groups, { each, onPick, labelKey = "text.tokens", class: name = "" } = {}) {
  const spans = groups.map((group) => {
    const own = tokens.slice(group.first, group.first + group.count);
    const hex = own.map((token) => token.bytes).join(" + ");
    const span = el("span", { class: "token", title: `${group.first} · ${hex}` }, group.text);
    if (onPick) {
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `${group.first}: ${own.map(label).join(" ")}`);
      span.tabIndex = -1;
      for (const [event, how] of [
        ["mouseenter", "hover"],
        ["focus", "focus"],
        ["click", "click"],
      ])
        span.addEventListener(event, () => onPick(group.first, group, how));
    }
    each?.(span, group, own);
    return span;
  });
  const text = el(
    "p",
    { class: `running ${name}`, dir: "auto", role: onPick ? "group" : null, sayLabel: onPick && labelKey },
    spans,
  );
  text.spans = spans;
  text.spanAt = (position) => spans[groups.findIndex((group) => position < group.first + group.count)];
  if (onPick && spans.length) {
    spans[0].tabIndex = 0;
    text.addEventListener("focusin", (event) => {
      for (const span of spans) span.tabIndex = span === event.target ? 0 : -1;
    });
    text.addEventListener("keydown", (event) => {
      const at = spans.indexOf(event.target);
      if (at < 0) return;
      if (event.key === "Enter" || event.key === " ") onPick(groups[at].first, groups[at], "click");
      else {
        const forward = getComputedStyle(text).direction === "rtl" ? "ArrowLeft" : "ArrowRight";
        const back = forward === "ArrowLeft" ? "ArrowRight" : "ArrowLeft";
        const to = { [forward]: at + 1, [back]: at - 1, Home: 0, End: spans.length - 1 }[event.key];
        if (to === undefined) return;
        spans[to]?.focus();
      }
      event.preventDefault();
      event.stopPropagation();
    });
  }
  return text;
}

// ---- What the browser keeps; it may refuse to

export function stored(key, where = "localStorage") {
  try {
    return window[where].getItem(key);
  } catch {
    return null;
  }
}

export function store(key, value, where = "localStorage") {
  try {
    window[where].setItem(key, value);
  } catch {
    // Then it is not kept.
  }
}
