// Tokens on screen: single ones as chips, and running text in spans that can be colored and chosen.

import { arrowDirection, el } from "octavo/dom";

// A token that stands alone, by its label (which makes whitespace visible). <bdi> isolates it from the direction of the
// surrounding text.
export function chip(token, properties = {}) {
  return el("bdi", { class: "chip", title: token.bytes, ...properties }, token.label);
}

export const labelChip = (label) => chip({ label, bytes: "" }, { title: null });

// The label of a token whose bytes alone aren't valid UTF-8: those bytes, as in <e2 80>.
const isByteLabel = (label) => /^<[\da-f ]+>$/.test(label);

// The index of the last token that has letters, or 0.
export const lastWordIndex = (tokens) =>
  Math.max(
    0,
    tokens.findLastIndex(({ label }) => /\p{L}/u.test(label) && !isByteLabel(label)),
  );

// Makes the token of a line break visible by a sign (in CSS), so that it can be chosen.
export const markLineBreak = (span, { text }) => span.classList.toggle("break", /^[\n\r]/.test(text));

// The characters of a text that none of its tokens has, because the tokenizer doesn't know them, separated by spaces.
export function unknownCharacters(text, groups) {
  const characters = new Set(groups.map((group) => group.text).join(""));
  return [...new Set(text)].filter((character) => !characters.has(character)).join(" ");
}

// The positions of a group of tokens.
export const positionsOf = ({ first, count }) => Array.from({ length: count }, (_, i) => first + i);

// Running text with one span for each group of tokens that make whole characters together. Spans have no padding,
// margin, border or isolation, which would break the joining of Arabic and Indic letters; they differ by background.
//   decorate(span, group)        colors a span
//   onSpanEvent(group, type)     type: "hover", "focus" or "click" (also for Enter and space)
// Arrow keys move from span to span. The element has `.spans`, in order, and `.spanAt(position)`.
export function tokenSpans(tokens, groups, { decorate, onSpanEvent, labelKey = "text.tokens", class: name = "" } = {}) {
  const spans = groups.map((group) => {
    const span = tokenSpan(tokens.slice(group.first, group.first + group.count), group, onSpanEvent);
    decorate?.(span, group);
    return span;
  });
  const properties = { class: `running ${name}`, dir: "auto", role: onSpanEvent ? "group" : null };
  const text = el("p", { ...properties, labelKey: onSpanEvent && labelKey }, spans);
  text.spans = spans;
  text.spanAt = (position) => spans[groups.findIndex((group) => position < group.first + group.count)];
  if (onSpanEvent && spans.length) addSpanKeys(text, groups, onSpanEvent);
  return text;
}

function tokenSpan(tokens, group, onSpanEvent) {
  const bytes = tokens.map((token) => token.bytes).join(" + ");
  const span = el("span", { class: "token", title: `${group.first} · ${bytes}` }, group.text);
  if (onSpanEvent) {
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", `${group.first}: ${tokens.map((token) => token.label).join(" ")}`);
    span.tabIndex = -1;
    span.addEventListener("mouseenter", () => onSpanEvent(group, "hover"));
    span.addEventListener("focus", () => onSpanEvent(group, "focus"));
    span.addEventListener("click", () => onSpanEvent(group, "click"));
  }
  return span;
}

// One span is in the tab order; arrow keys, Home and End move the focus, Enter and space choose.
function addSpanKeys(text, groups, onSpanEvent) {
  const { spans } = text;
  spans[0].tabIndex = 0;
  text.addEventListener("focusin", (event) => {
    for (const span of spans) span.tabIndex = span === event.target ? 0 : -1;
  });
  text.addEventListener("keydown", (event) => {
    const current = spans.indexOf(event.target);
    if (current < 0) return;
    if (event.key === "Enter" || event.key === " ") onSpanEvent(groups[current], "click");
    else {
      const step = arrowDirection(event.key, getComputedStyle(text).direction);
      const target = step ? current + step : { Home: 0, End: spans.length - 1 }[event.key];
      if (target === undefined) return;
      spans[target]?.focus();
    }
    event.preventDefault();
    event.stopPropagation();
  });
}
