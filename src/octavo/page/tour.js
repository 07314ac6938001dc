// A guided tour: eight stops on the user's own model and text. Each stop opens a tab, marks a part of it, says what it
// shows and what to try. It is loaded when it is started.

import { el, setSentence } from "octavo/dom";
import { prefersReducedMotion } from "octavo/figures/figure";
import { loadSentences } from "octavo/i18n";
import { STAGE_INDEX } from "octavo/tabs/walk/stages";

const stage = (id) => STAGE_INDEX[id] + 1;

// Each stop: the key of its sentences, the tab with its subpath, and the selector of an element to mark. The tab keeps
// that element when it draws again.
const STOPS = [
  ["tokens", "walk", stage("idx"), "#panel-walk .card"],
  ["sum", "walk", stage("x"), "#panel-walk .card"],
  ["whole", "model", "", "#panel-model .flow .body"],
  ["heads", "model", "layer", "#panel-model .flow .body"],
  ["attention", "attention", "", "#panel-attention .arcs"],
  ["mlp", "walk", stage("fc"), "#panel-walk .card"],
  ["next", "walk", stage("next"), "#panel-walk .card"],
  ["training", "training", "", "#panel-training .curve.loss"],
].map(([key, tab, subpath, target]) => ({ key, tab, subpath: String(subpath), target }));
const MARK_TIMEOUT = 5000; // milliseconds to wait until a tab has drawn the element to mark

let tour = null; // the running tour: {card, stops, parts, index, marked}

// `hasTab(id)` is false for the tabs that an exported page lacks.
export async function startTour(app, hasTab) {
  endTour();
  await loadSentences("model");
  const stops = STOPS.filter(({ tab }) => hasTab(tab));
  const button = (key, onclick, kind = "") =>
    el("button", { type: "button", class: kind, textKey: key, onclick: () => onclick() });
  const parts = {
    count: el("p", { class: "quiet" }),
    title: el("h2", { id: "tour-title", tabindex: "-1" }),
    says: el("p"),
    hint: el("p"),
    back: button("tour.back", () => goTo(app, tour.index - 1)),
    next: button("tour.next", () => (tour.index + 1 < stops.length ? goTo(app, tour.index + 1) : endTour()), "main"),
  };
  const { count, title, says, hint, back, next } = parts;
  const card = el(
    "section",
    { class: "tour", role: "dialog", "aria-labelledby": "tour-title" },
    count,
    title,
    says,
    hint,
    el("div", { class: "buttons" }, back, next, button("tour.end", endTour)),
  );
  const onKey = (event) => event.key === "Escape" && endTour();
  card.addEventListener("keydown", onKey);
  tour = { card, stops, parts, index: 0, marked: null };
  document.body.append(card);
  await goTo(app, 0);
}

function endTour() {
  tour?.marked?.classList.remove("tour-target");
  tour?.card.remove();
  tour = null;
}

async function goTo(app, index) {
  const { stops, parts, card } = tour;
  const { key, tab, subpath, target } = stops[index];
  tour.index = index;
  const { n_layer: L, n_head: H, n_embd: C, vocab_size: V, parameters } = app.model.model;
  const values = { L, H, C, V, parameters, mlp_width: 4 * C };
  setSentence(parts.count, "tour.at", { n: index + 1, count: stops.length });
  setSentence(parts.title, `tour.${key}.title`, values);
  setSentence(parts.says, `tour.${key}.says`, values);
  parts.hint.replaceChildren(
    el("strong", { textKey: "tour.try" }),
    " ",
    el("span", { textKey: `tour.${key}.try` }),
  );
  parts.back.disabled = index === 0;
  parts.title.focus({ preventScroll: true });
  app.openTab(tab, subpath);
  tour.marked?.classList.remove("tour-target");
  const marked = await findVisible(target);
  if (!marked || tour?.index !== index || !card.isConnected) return;
  tour.marked = marked;
  marked.classList.add("tour-target");
  marked.scrollIntoView({ block: "start", behavior: prefersReducedMotion() ? "auto" : "smooth" });
}

async function findVisible(selector) {
  const end = performance.now() + MARK_TIMEOUT;
  while (performance.now() < end) {
    const element = document.querySelector(selector);
    if (element?.checkVisibility() && element.clientHeight) return element;
    await new Promise((resolve) => setTimeout(resolve, 60));
  }
  return null;
}
