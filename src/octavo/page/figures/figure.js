// What all figures share: a <figure> with caption, drawing, readout (the value under the pointer or the keyboard's
// cursor), legend, all values as a table, and buttons that save the picture. It is drawn again when theme, language or
// width change.
//
// The functions arcs, bars, lineChart, matrix and scatter create such a figure with `.show(data, options)`: new data or
// new options in the same figure. Figures read left to right in every language, as the formulas beside them do; only
// captions follow the page.

import { el } from "octavo/dom";
import { clearColorRamps } from "octavo/figures/colors";
import { pictureTools } from "octavo/figures/picture_tools";
import { dataTable } from "octavo/figures/table";
import { language, t } from "octavo/i18n";

const MAX_TABLE_ROWS = 600;

// `draw(figure)` fills figure.body; `tableContent(figure)` returns {columns, rows} as `dataTable` takes them. Options
// of every figure:
//   caption   text or nodes, or a function that returns them
//   label     the figure's name for screen readers; the caption by default
export function createFigure(kind, draw, tableContent) {
  const figure = el("figure", { class: `figure ${kind}` });
  figure.options = {};
  figure.caption = el("figcaption");
  figure.body = el("div", { class: "body", dir: "ltr" });
  figure.readout = el("div", { class: "readout", "aria-live": "polite" });
  figure.foot = el("div", { class: "foot" });
  const label = () => figureLabel(figure) || t("figure.table");
  const table = dataTable(() => tableContent(figure), {
    label,
    dir: "ltr", // so that it begins at its first column
    maxRows: MAX_TABLE_ROWS,
  });
  figure.table = pictureTools(table, label, () => [figure.caption, figure.body, figure.foot], figure);
  figure.append(figure.caption, figure.body, figure.readout, figure.foot, figure.table);
  figure.draw = () => draw(figure);
  figure.refresh = () => {
    figure.language = language;
    const { caption } = figure.options;
    figure.caption.replaceChildren(...[typeof caption === "function" ? caption() : (caption ?? [])].flat());
    figure.caption.hidden = !figure.caption.childNodes.length;
    redraw(figure);
    figure.table.fill();
  };
  figure.setOptions = (options) => {
    Object.assign(figure.options, options);
    figure.drawnWidth = 0; // so that a figure that is hidden now is drawn again when it appears
    figure.refresh();
  };
  resizes.observe(figure.body);
  figures.add(new WeakRef(figure));
  return figure;
}

export const figureLabel = (figure) => figure.options.label ?? figure.caption.textContent;

export function setReadout(figure, content) {
  figure.readout.replaceChildren(...[content ?? []].flat());
}

// ---- Drawing again

const figures = new Set(); // WeakRefs, so that removed figures can be collected

const resizes = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const figure = target.closest("figure");
    if (contentRect.width && figure && Math.abs((figure.drawnWidth ?? 0) - contentRect.width) > 0.5) redraw(figure);
  }
});

// A hidden figure is drawn when it appears.
export function redraw(figure) {
  figure.drawnWidth = figure.body.clientWidth;
  if (!figure.drawnWidth) return;
  figure.draw();
}

function redrawAll() {
  clearColorRamps();
  refreshFigures(() => true);
}

// Draws the figures that are still in the language before a change. The tabs update first, which draws most figures.
export const redrawOtherLanguages = () => refreshFigures((figure) => figure.language !== language);

function refreshFigures(isOutdated) {
  for (const reference of figures) {
    const figure = reference.deref();
    if (!figure) figures.delete(reference);
    else if (!figure.isConnected) figure.drawnWidth = 0;
    else if (isOutdated(figure)) figure.refresh();
  }
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
new MutationObserver(redrawAll).observe(document.documentElement, { attributeFilter: ["data-theme"] });

export const prefersReducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// ---- On a canvas

// Gives a canvas a size in CSS pixels, sharp on dense screens. Returns its cleared context.
export function sizeCanvas(canvas, width, height) {
  if (canvas.recorder) return canvas.recorder; // the picture is being saved, see figures/save_picture.js
  const density = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(width * density), height: Math.round(height * density) });
  Object.assign(canvas.style, { width: `${width}px`, height: `${height}px` });
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  return context;
}

// Shortens a text to at most `width` pixels, with an ellipsis at its end.
export function ellipsize(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  const letters = [...text];
  while (letters.length > 1 && context.measureText(letters.join("") + "…").width > width) letters.pop();
  return letters.join("") + "…";
}
