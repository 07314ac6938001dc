// Named points in a plane: the pointer or the arrow keys choose a point; the figure can be dragged and zoomed.

import { el } from "octavo/dom";
import { color, fontFamily } from "octavo/figures/colors";
import {
  createFigure,
  ellipsize,
  figureLabel,
  prefersReducedMotion,
  redraw,
  setReadout,
  sizeCanvas,
} from "octavo/figures/figure";
import { t } from "octavo/i18n";

const MAX_ZOOM = 40;
const MAX_NAMES = 150;
const NEAR = 7; // pixels from a point to its name
const FAR = [NEAR, 18, 32, 48, 66, 90, 120, 150]; // the same for points with a priority, see `priority`
const ANIMATION_TIME = 400; // milliseconds
const NO_ANIMATION = -1e9; // a start so long ago that the animation is over

// points: [{key, label, x, y, kind}], where kind is "", "selected" or "near". A point whose key was in the last data
// moves to its new place in an animation. Options besides a figure's:
//   extent           [[left, right], [low, high]] of the figure
//   columns          the names of the table's columns
//   onPick(key)      a point was clicked, or Enter pressed
//   readout(point)   the readout, text or nodes
export function scatter(points, options = {}) {
  const figure = createFigure("scatter", drawScatter, ({ points, options }) => ({
    columns: options.columns ?? [t("figure.token"), "1", "2"],
    rows: points.map((point) => [point.label, point.x, point.y]),
  }));
  figure.canvas = el("canvas");
  figure.focusTarget = el("div", { class: "focus-target", tabindex: "0", role: "application" }, figure.canvas);
  figure.body.append(figure.focusTarget, zoomButtons(figure));
  figure.viewport = { scale: 1, x: 0, y: 0 }; // x, y: how far the points are dragged, in data units
  figure.places = new Map(); // key -> [x, y], where each point is at this moment of the animation, in data units
  figure.pixels = new Map(); // the same in pixels
  figure.cursorKey = null; // the key of the point under the pointer or the keyboard's cursor
  figure.show = (newPoints, newOptions = {}) => {
    const { places } = figure;
    figure.points = newPoints;
    figure.extent = newOptions.extent ?? boundingBox(newPoints.map(({ x, y }) => [x, y]));
    figure.startPlaces = new Map(newPoints.map((point) => [point.key, places.get(point.key) ?? [point.x, point.y]]));
    figure.startTime = prefersReducedMotion() || !places.size ? NO_ANIMATION : performance.now();
    figure.setOptions(newOptions);
    if (figure.startTime !== NO_ANIMATION) requestAnimationFrame(() => animate(figure));
    updateReadout(figure);
  };
  figure.moveTo = (key, trigger = "move") => {
    if (figure.cursorKey === key && trigger !== "pick") return;
    figure.cursorKey = key;
    redraw(figure);
    updateReadout(figure);
    if (trigger === "pick") figure.options.onPick?.(key);
  };
  addPointer(figure);
  addKeys(figure);
  figure.show(points, options);
  return figure;
}

// The box around points [x, y]: [[left, right], [low, high]].
export function boundingBox(points) {
  return [0, 1].map((axis) => [
    Math.min(...points.map((point) => point[axis])),
    Math.max(...points.map((point) => point[axis])),
  ]);
}

function updateReadout(figure) {
  const point = figure.points.find((candidate) => candidate.key === figure.cursorKey);
  if (!point) return setReadout(figure, t("figure.scatter.none"));
  setReadout(figure, figure.options.readout?.(point) ?? el("bdi", {}, point.label));
}

// ---- Zoom, pointer and keys

function zoom(figure, factor) {
  const { viewport } = figure;
  viewport.scale = Math.max(1, Math.min(MAX_ZOOM, viewport.scale * factor));
  if (viewport.scale === 1) viewport.x = viewport.y = 0;
  redraw(figure);
}

const resetZoom = (figure) => zoom(figure, 0); // the smallest scale, which shows all points

function zoomButtons(figure) {
  const button = (text, key, onclick) =>
    el("button", { type: "button", class: "small", labelKey: key, titleKey: key, onclick }, text);
  return el(
    "div",
    { class: "zoom" },
    button("+", "figure.zoom_in", () => zoom(figure, 1.5)),
    button("−", "figure.zoom_out", () => zoom(figure, 1 / 1.5)),
    button("⟲", "figure.zoom_reset", () => resetZoom(figure)),
  );
}

function addPointer(figure) {
  const { canvas, viewport } = figure;
  let drag = null; // {x, y, distance}
  const nearest = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = { key: null, distance: 18 ** 2 }; // squared, in pixels
    for (const [key, [px, py]] of figure.pixels) {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < best.distance) best = { key, distance };
    }
    return best.key;
  };
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, y: event.clientY, distance: 0 };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (drag && event.buttons && viewport.scale > 1) {
      const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
      drag = { x: event.clientX, y: event.clientY, distance: drag.distance + Math.abs(dx) + Math.abs(dy) };
      viewport.x += dx / figure.pixelsPerUnit;
      viewport.y -= dy / figure.pixelsPerUnit;
      redraw(figure);
    } else if (!event.buttons) {
      const key = nearest(event);
      if (key !== null) figure.moveTo(key);
    }
  });
  canvas.addEventListener("click", (event) => {
    const key = (drag?.distance ?? 0) < 6 ? nearest(event) : null;
    drag = null;
    if (key !== null) figure.moveTo(key, "pick");
  });
  const onWheel = (event) => {
    if (!event.ctrlKey && viewport.scale === 1 && event.deltaY > 0) return; // the wheel scrolls the page
    if (!event.ctrlKey && !figure.focusTarget.matches(":focus-within")) return;
    event.preventDefault();
    zoom(figure, event.deltaY < 0 ? 1.2 : 1 / 1.2);
  };
  canvas.addEventListener("wheel", onWheel, { passive: false });
}

function addKeys(figure) {
  figure.focusTarget.addEventListener("keydown", (event) => {
    const direction = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (direction) moveToward(figure, ...direction);
    else if (event.key === "+" || event.key === "=") zoom(figure, 1.5);
    else if (event.key === "-") zoom(figure, 1 / 1.5);
    else if (event.key === "0" || event.key === "Escape") resetZoom(figure);
    else if ((event.key === "Enter" || event.key === " ") && figure.cursorKey !== null)
      figure.moveTo(figure.cursorKey, "pick");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

// Moves the cursor to the nearest point in a direction.
function moveToward(figure, dx, dy) {
  const [x, y] = figure.pixels.get(figure.cursorKey) ?? [0, 0];
  let best = { key: null, distance: Infinity };
  for (const [key, [px, py]] of figure.pixels) {
    const ahead = (px - x) * dx + (py - y) * dy;
    const aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    const distance = ahead + 2 * aside;
    const isAhead = key !== figure.cursorKey && ahead > 0 && aside <= 2 * ahead;
    if (isAhead && distance < best.distance) best = { key, distance };
  }
  if (best.key !== null) figure.moveTo(best.key);
}

// ---- Drawing

function animate(figure) {
  redraw(figure);
  if (performance.now() - figure.startTime < ANIMATION_TIME + 20) requestAnimationFrame(() => animate(figure));
}

function drawScatter(figure) {
  const { canvas, points, body } = figure;
  const label = t("figure.scatter", { label: figureLabel(figure), n: points.length });
  figure.focusTarget.setAttribute("aria-label", label);
  const width = body.clientWidth;
  const height = Math.round(Math.min(figure.options.height ?? 460, Math.max(300, width * 0.72)));
  const context = sizeCanvas(canvas, width, height);
  const toPixels = placePoints(figure, width, height);
  drawAxes(context, toPixels([0, 0]), width, height);
  context.fillStyle = color("--quiet");
  for (const point of points) drawDot(context, figure.pixels.get(point.key), points.length > 400 ? 1.6 : 2.6);
  drawNames(context, figure, width, height);
}

// Moves the points to where they are at this moment of the animation. Returns the function from [x, y] to pixels.
function placePoints(figure, width, height) {
  const { points, viewport, extent } = figure;
  const [[left, right], [low, high]] = extent;
  const horizontal = (width - 100) / Math.max(right - left, 1e-9);
  const vertical = (height - 36) / Math.max(high - low, 1e-9);
  const pixelsPerUnit = (figure.pixelsPerUnit = Math.min(horizontal, vertical) * viewport.scale);
  const toPixels = ([x, y]) => [
    width / 2 + (x - (left + right) / 2 + viewport.x) * pixelsPerUnit,
    height / 2 - (y - (low + high) / 2 + viewport.y) * pixelsPerUnit,
  ];
  const progress = 1 - (1 - Math.min(1, (performance.now() - figure.startTime) / ANIMATION_TIME)) ** 3;
  figure.pixels = new Map();
  for (const { key, x, y } of points) {
    const [startX, startY] = figure.startPlaces.get(key);
    const place = [startX + (x - startX) * progress, startY + (y - startY) * progress];
    figure.places.set(key, place);
    figure.pixels.set(key, toPixels(place));
  }
  return toPixels;
}

function drawAxes(context, [x, y], width, height) {
  context.strokeStyle = color("--border");
  context.beginPath();
  context.moveTo(x, 0);
  context.lineTo(x, height);
  context.moveTo(0, y);
  context.lineTo(width, y);
  context.stroke();
}

// The point at the cursor has 3 or more, selected points 2, neighbors 1, all others 0.
const priority = (point, cursorKey) => (point.key === cursorKey ? 3 : 0) + ({ selected: 2, near: 1 }[point.kind] ?? 0);

// Names go beside their points while there is room, and overlap no other name or dot. Points with a priority
// come first; their names may be farther away, at the end of a line. `figure.names` has the boxes of the names.
function drawNames(context, figure, width, height) {
  const { points, pixels, cursorKey } = figure;
  const occupied = []; // boxes [left, top, right, bottom]
  figure.names = [];
  const isFree = (box) =>
    !occupied.some((other) => box[0] < other[2] && box[2] > other[0] && box[1] < other[3] && box[3] > other[1]);
  context.textBaseline = "middle";
  for (const point of [...points].sort((a, b) => priority(b, cursorKey) - priority(a, cursorKey))) {
    const [x, y] = pixels.get(point.key);
    if (x < -20 || y < -10 || x > width + 20 || y > height + 10) continue;
    const hasPriority = priority(point, cursorKey) > 0;
    const ink = !hasPriority ? "--ink" : point.key === cursorKey || point.kind === "selected" ? "--mark" : "--accent";
    if (hasPriority) {
      context.fillStyle = color(ink);
      drawDot(context, [x, y], point.kind === "selected" ? 6 : 4.5);
    }
    context.font = `${hasPriority ? "600 13px" : "12px"} ${fontFamily("sans")}`;
    const name = ellipsize(context, point.label, 120);
    const boxes = nameBoxes(x, y, context.measureText(name).width, hasPriority ? FAR : [NEAR]);
    const isInside = ([left, top, right, bottom]) => left > 0 && top > 0 && right < width && bottom < height;
    const box = boxes.find((candidate) => isFree(candidate) && (!hasPriority || isInside(candidate)));
    if (!box || figure.names.length >= MAX_NAMES) continue;
    occupied.push(box, [x - 4, y - 4, x + 4, y + 4]);
    figure.names.push(box);
    if (hasPriority) drawLeader(context, [x, y], box);
    context.lineWidth = 3;
    context.strokeStyle = color("--surface");
    context.strokeText(name, box[0], box[1] + 8);
    context.fillStyle = color(ink);
    context.fillText(name, box[0], box[1] + 8);
  }
}

// The places for a name at these distances from its point: right of it, left, above, below, and between these.
function nameBoxes(x, y, width, distances) {
  const places = distances.flatMap((d) => [
    [x + d, y],
    [x - d - width, y],
    [x - width / 2, y - d - 7],
    [x - width / 2, y + d + 7],
    [x + d, y - d],
    [x - d - width, y - d],
    [x + d, y + d],
    [x - d - width, y + d],
  ]);
  return places.map(([left, middle]) => [left, middle - 8, left + width, middle + 8]);
}

// A line from a point to its name, if that is far away.
function drawLeader(context, [x, y], [left, top, right, bottom]) {
  const end = [Math.max(left, Math.min(x, right)), Math.max(top, Math.min(y, bottom))];
  if (Math.hypot(end[0] - x, end[1] - y) < FAR[1]) return;
  context.strokeStyle = color("--edge");
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x, y);
  context.lineTo(...end);
  context.stroke();
}

function drawDot(context, [x, y], radius) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
}
