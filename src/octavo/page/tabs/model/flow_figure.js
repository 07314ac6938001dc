// The figure that shows a scene: the whole model, a layer or a head. It draws the scene once, and over it, in every
// frame, what moves and what is at the cursor. The pointer and the arrow keys move the cursor.

import { el } from "octavo/dom";
import { createFigure, figureLabel, prefersReducedMotion, setReadout, sizeCanvas } from "octavo/figures/figure";
import { t } from "octavo/i18n";

// Milliseconds. Beads are dots that move down the residual streams and along the lines of attention.
const PASS_TIME = 5200; // of the beads, from top to bottom
const REVEAL_TIME = 2200; // in which a new picture is uncovered from top to bottom
const ZOOM_TIME = 420;

// Options besides a figure's:
//   createScene(context, width)   the scene for a width
//   cell                          where the cursor is
//   isActive                      whether the cell and its sources are shown
//   isPlaying                     whether beads move
//   onCell(cell)                  the pointer or an arrow key moved the cursor
//   onEnter(cell)                 a click, or Enter
//   onLeave()                     Escape
//   readout(cell)                 the readout
//   table()                       the content of the table
export function flowFigure(options) {
  const figure = createFigure("flow", drawFlow, () => figure.options.table());
  figure.canvas = el("canvas");
  figure.focusTarget = el("div", { class: "focus-target", tabindex: "0", role: "application" }, figure.canvas);
  figure.body.append(figure.focusTarget);
  figure.still = document.createElement("canvas"); // the scene without what moves
  figure.transition = null; // {image, band, isOut, height, start}: the old picture, see `zoomTo`
  figure.show = (newOptions = {}, { reveals = false } = {}) => {
    if (reveals && canMove()) figure.revealStart = performance.now();
    figure.setOptions(newOptions);
    figure.showReadout();
  };
  figure.showReadout = () => setReadout(figure, figure.options.readout?.(figure.options.cell) ?? "");
  figure.moveTo = (cell) => {
    if (!cell || JSON.stringify(cell) === JSON.stringify(figure.options.cell)) return;
    Object.assign(figure.options, { cell, isActive: true });
    figure.showReadout();
    figure.options.onCell(cell);
    requestFrame(figure);
  };
  figure.play = () => requestFrame(figure);
  addPointer(figure);
  addKeys(figure);
  figure.setOptions(options);
  return figure;
}

const canMove = () => !prefersReducedMotion();

// Keeps the current picture, so that the next scene grows out of its part [top, bottom], or shrinks into that part of
// the next scene if `isOut`.
export function zoomTo(figure, [top, bottom], isOut = false) {
  if (!canMove() || !figure.still.width) return;
  const image = document.createElement("canvas");
  Object.assign(image, { width: figure.still.width, height: figure.still.height });
  image.getContext("2d").drawImage(figure.still, 0, 0);
  figure.transition = { image, band: [top, bottom], isOut, height: figure.scene.height, start: performance.now() };
}

// ---- Pointer and keys

function addPointer(figure) {
  const { canvas } = figure;
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return figure.scene?.find(event.clientX - box.left, event.clientY - box.top, figure.options.cell);
  };
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "touch") figure.moveTo(cellAt(event));
  });
  canvas.addEventListener("pointerleave", () => {
    if (figure.focusTarget.matches(":focus-visible")) return;
    figure.options.isActive = figure.options.staysActive;
    requestFrame(figure);
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    const isTouch = event.pointerType === "touch";
    const isSame = JSON.stringify(cell) === JSON.stringify(figure.options.cell);
    figure.moveTo(cell);
    if (!isTouch || isSame) figure.options.onEnter(cell); // a touch screen's first tap shows, the second enters
  });
}

function addKeys(figure) {
  figure.focusTarget.addEventListener("keydown", (event) => {
    const { cell, onEnter, onLeave } = figure.options;
    const direction = {
      ArrowRight: [1, 0],
      ArrowLeft: [-1, 0],
      ArrowDown: [0, 1],
      ArrowUp: [0, -1],
      Home: [-Infinity, 0],
      End: [Infinity, 0],
      PageUp: [0, -Infinity],
      PageDown: [0, Infinity],
    }[event.key];
    if (direction) figure.moveTo(figure.scene.move(cell, ...direction));
    else if (event.key === "Enter") onEnter(cell);
    else if (event.key === "Escape") onLeave();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  figure.focusTarget.addEventListener("focus", () => {
    if (!figure.focusTarget.matches(":focus-visible")) return;
    figure.options.isActive = true;
    requestFrame(figure);
  });
}

// ---- Drawing

function drawFlow(figure) {
  const { canvas, options, body } = figure;
  if (!options.createScene) return;
  figure.focusTarget.setAttribute("aria-label", t("figure.flow", { label: figureLabel(figure) }));
  const width = body.clientWidth;
  const scene = (figure.scene = options.createScene(canvas.getContext("2d"), width));
  scene.prepare();
  if (canvas.recorder) {
    scene.paint(canvas.recorder);
    if (options.isActive) scene.highlight(canvas.recorder, options.cell);
    return;
  }
  scene.paint(sizeCanvas(figure.still, width, scene.height));
  sizeCanvas(canvas, width, scene.height);
  drawFrame(figure);
  requestFrame(figure);
}

// Draws frames as long as something moves and can be seen.
function requestFrame(figure) {
  figure.frame ??= requestAnimationFrame(() => {
    figure.frame = null;
    if (!figure.isConnected || !figure.body.clientWidth) return;
    if (drawFrame(figure)) requestFrame(figure);
  });
}

// Draws a frame; returns whether another must follow.
function drawFrame(figure) {
  const { canvas, scene, still, options } = figure;
  if (!scene) return false;
  const now = performance.now();
  const context = canvas.getContext("2d");
  const { width, height } = scene;
  context.clearRect(0, 0, width, height);
  if (figure.transition && drawTransition(figure, context, now)) return true;
  const revealed = figure.revealStart ? (now - figure.revealStart) / REVEAL_TIME : 1;
  if (revealed < 1) {
    const y = easeInOut(revealed) * height;
    context.globalAlpha = 0.12;
    context.drawImage(still, 0, 0, width, height);
    context.globalAlpha = 1;
    const density = still.height / height;
    if (y > 1) context.drawImage(still, 0, 0, still.width, y * density, 0, 0, width, y);
    scene.paintBeads(context, y, options.cell.t, options.cell.head);
    return true;
  }
  figure.revealStart = null;
  context.drawImage(still, 0, 0, width, height);
  if (options.isActive) scene.highlight(context, options.cell);
  if (!options.isPlaying || !canMove()) return false;
  scene.paintBeads(context, ((now % PASS_TIME) / PASS_TIME) * height, options.cell.t, options.cell.head);
  return true;
}

// The old picture grows or shrinks while the new one appears. Returns false when the transition has ended.
function drawTransition(figure, context, now) {
  const { scene, still, transition } = figure;
  const { image, band, isOut, start } = transition;
  const progress = easeInOut(Math.min(1, (now - start) / ZOOM_TIME));
  if (progress >= 1) {
    figure.transition = null;
    return false;
  }
  const { width, height } = scene;
  const density = image.width / width;
  if (isOut) {
    // The old picture shrinks into its band of the new one.
    context.globalAlpha = progress;
    context.drawImage(still, 0, 0, width, height);
    context.globalAlpha = 1 - progress;
    const top = band[0] * progress;
    context.drawImage(image, 0, top, width, mix(Math.min(height, transition.height), band[1] - band[0], progress));
  } else {
    // The band of the old picture grows.
    const [top, bottom] = [band[0] * progress, mix(transition.height, band[1], progress)];
    context.globalAlpha = 1 - progress;
    const shownHeight = Math.min(height, transition.height);
    context.drawImage(image, 0, top * density, image.width, (bottom - top) * density, 0, 0, width, shownHeight);
    context.globalAlpha = progress;
    context.drawImage(still, 0, 0, width, height);
  }
  context.globalAlpha = 1;
  return true;
}

const mix = (a, b, progress) => a + (b - a) * progress;
const easeInOut = (x) => (x < 0.5 ? 2 * x * x : 1 - (2 - 2 * x) ** 2 / 2);
