// What all pictures share: colours that follow the theme, the figure with its readout and its table, and drawing anew when
// theme, language or width change. Nothing here knows what a picture shows.

import { el, exact, number, onLanguage, t } from "octavo/dom";

// ---- Colours

const probe = el("span", { hidden: true });
document.head.after(probe);

// A colour of style.css, as a canvas can take it: colour("--accent").
export function colour(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

const STOPS = {
  plain: ["--share-0", "--share-0"],
  share: ["--share-0", "--share-1", "--share-2", "--share-3"],
  signed: ["--minus-2", "--minus-1", "--share-0", "--plus-1", "--plus-2"],
};
let ramps = {};

// 256 colours from the least to the most, as [r, g, b].
function ramp(kind) {
  if (ramps[kind]) return ramps[kind];
  const pen = el("canvas", { width: 256, height: 1 }).getContext("2d", { willReadFrequently: true });
  const gradient = pen.createLinearGradient(0, 0, 256, 0);
  STOPS[kind].forEach((name, at, all) => gradient.addColorStop(at / (all.length - 1), colour(name)));
  pen.fillStyle = gradient;
  pen.fillRect(0, 0, 256, 1);
  const bytes = pen.getImageData(0, 0, 256, 1).data;
  return (ramps[kind] = Array.from({ length: 256 }, (_, i) => [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2]]));
}

// How values become colours. Shares grow from 0, by their square root, so that small ones are seen; signed values go
// both ways from 0.
export class Scale {
  constructor(kind, max) {
    Object.assign(this, { kind, max: max || 1, colours: ramp(kind) });
  }

  at(value) {
    const share = Math.max(-1, Math.min(1, value / this.max));
    return this.kind === "share" ? Math.sqrt(Math.max(0, share)) : (share + 1) / 2;
  }

  rgb(value) {
    return this.colours[Math.round(255 * this.at(value))];
  }

  css(value) {
    return `rgb(${this.rgb(value).join(" ")})`;
  }

  ink(value) {
    const [r, g, b] = this.rgb(value).map((each) => (each / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#15161a" : "#ffffff";
  }

  get ticks() {
    return this.kind === "share" ? [0, this.max / 4, this.max] : [-this.max, 0, this.max];
  }
}

// The background of a token in running text, for a share between 0 and 1; its text stays readable.
export function wash(node, share, name = "--accent") {
  node.style.backgroundColor =
    share > 0.01
      ? `color-mix(in srgb, var(${name}) ${Math.round(6 + 38 * Math.sqrt(Math.min(1, share)))}%, transparent)`
      : "";
}

export function legend(scale, capped) {
  const bar = el("canvas", { width: 128, height: 1, class: "ramp", "aria-hidden": "true" });
  const pen = bar.getContext("2d");
  for (let i = 0; i < 128; i++) {
    pen.fillStyle = `rgb(${scale.colours[2 * i].join(" ")})`;
    pen.fillRect(i, 0, 1, 1);
  }
  const name = (tick) =>
    tick && Math.abs(tick) < 0.01
      ? exact(Number(tick.toPrecision(2)))
      : number(tick, tick && Math.abs(tick) < 10 ? 2 : 0);
  const ticks = scale.ticks.map((tick, at, all) =>
    el("span", {}, (capped && at === all.length - 1 ? "≥ " : "") + name(tick)),
  );
  return el("div", { class: "legend", dir: "ltr" }, bar, el("div", { class: "ticks" }, ticks));
}

// ---- Figures

const figures = new Set(); // weak: a figure that left the page is forgotten
const sizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const figure = target.closest("figure");
    if (contentRect.width && figure && Math.abs((figure.drawnAt ?? 0) - contentRect.width) > 0.5) redraw(figure);
  }
});

export function redraw(figure) {
  if (!figure.body.clientWidth) return; // hidden: it is drawn when it is shown
  figure.drawnAt = figure.body.clientWidth;
  figure.draw();
}

function redrawAll() {
  ramps = {};
  for (const weak of figures) {
    const figure = weak.deref();
    if (!figure) figures.delete(weak);
    else if (figure.isConnected) {
      figure.refresh();
    } else figure.drawnAt = 0;
  }
}
onLanguage(redrawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
new MutationObserver(redrawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// The frame that all pictures share. `draw(figure)` fills figure.body; `table(figure)` gives {columns, rows}.
export function frame(kind, options, draw, table) {
  const figure = el("figure", { class: `picture ${kind}` });
  figure.caption = el("figcaption");
  figure.body = el("div", { class: "body", dir: "ltr" });
  figure.readout = el("div", { class: "readout", "aria-live": "polite" });
  figure.foot = el("div", { class: "foot" });
  figure.table = el("details", { class: "table" }, el("summary", { say: "draw.table" }));
  figure.table.addEventListener("toggle", () => fillTable(figure));
  figure.options = {};
  figure.append(figure.caption, figure.body, figure.readout, figure.foot, figure.table);
  figure.draw = () => draw(figure);
  figure.makeTable = () => table(figure);
  figure.refresh = () => {
    const { caption } = figure.options;
    figure.caption.replaceChildren(...[typeof caption === "function" ? caption() : (caption ?? [])].flat());
    figure.caption.hidden = !figure.caption.childNodes.length;
    redraw(figure);
    fillTable(figure);
  };
  figure.set = (more) => {
    Object.assign(figure.options, more);
    if (figure.options.table === false) figure.table.hidden = true;
    figure.drawnAt = 0;
    figure.refresh();
  };
  sizes.observe(figure.body);
  figures.add(new WeakRef(figure));
  return figure;
}

const MOST_ROWS = 600;

export function fillTable(figure) {
  const { table: details } = figure;
  for (const old of [...details.children].slice(1)) old.remove();
  if (!details.open) return;
  const { columns, rows, before } = figure.makeTable();
  const cell = (value) =>
    el(
      "td",
      {},
      value instanceof Node ? value : typeof value === "number" || value === null ? exact(value) : String(value),
    );
  const shown = rows.slice(0, MOST_ROWS);
  details.append(
    ...[before ?? []].flat(),
    el(
      "div",
      {
        class: "scroll",
        tabindex: "0",
        role: "group",
        dir: "ltr", // here, so that it begins at its first column
        "aria-label": figure.options.label ?? figure.caption.textContent ?? t("draw.table"),
      },
      el(
        "table",
        {},
        el(
          "thead",
          {},
          el(
            "tr",
            {},
            columns.map((name) => el("th", { scope: "col" }, name)),
          ),
        ),
        el(
          "tbody",
          {},
          shown.map(([first, ...rest]) =>
            el("tr", {}, el("th", { scope: "row" }, typeof first === "number" ? String(first) : first), rest.map(cell)),
          ),
        ),
      ),
    ),
  );
  if (rows.length > shown.length)
    details.append(el("p", { class: "quiet" }, t("draw.more", { shown: shown.length, all: rows.length })));
}

export function tell(figure, words) {
  figure.readout.replaceChildren(...[words ?? []].flat());
}

// A text that fits, with an ellipsis if it must be shorter.
export function cut(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  const letters = [...text];
  while (letters.length > 1 && pen.measureText(letters.join("") + "…").width > room) letters.pop();
  return letters.join("") + "…";
}

export const fontOf = (kind) => getComputedStyle(document.documentElement).getPropertyValue(`--${kind}`);
