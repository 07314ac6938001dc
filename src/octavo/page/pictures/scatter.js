// Points of a plane with their names: to be hovered, walked through by keys, moved and brought closer.

import { colour, cut, fontOf, frame, redraw, still, tell } from "octavo/pictures/figure";
import { el, t } from "octavo/dom";

// points: [{key, label, x, y, kind}], where kind is "" or "chosen" or "near". Points that keep their key glide to their
// new place. Options: onPick(key), tell(point); the view can be moved by dragging, wheel, buttons and keys.
export function scatter(points, options = {}) {
  const figure = frame("scatter", options, drawScatter, ({ points, options }) => ({
    columns: options.columns ?? [t("draw.token"), "1", "2"],
    rows: points.map((point) => [point.label, point.x, point.y]),
  }));
  const canvas = (figure.canvas = el("canvas"));
  figure.stage = el("div", { class: "stage", tabindex: "0", role: "application" }, canvas);
  const zoom = (by) => () => figure.zoom(by);
  const button = (text, key, by) =>
    el("button", { type: "button", class: "small", sayLabel: key, sayTitle: key, onclick: zoom(by) }, text);
  figure.body.append(
    figure.stage,
    el(
      "div",
      { class: "zoom" },
      button("+", "draw.closer", 1.5),
      button("−", "draw.wider", 1 / 1.5),
      button("⟲", "draw.whole", 0),
    ),
  );
  figure.view = { scale: 1, x: 0, y: 0 }; // x, y: what is moved to the middle, less; in units of the points
  figure.places = new Map();
  figure.zoom = (by) => {
    const { view } = figure;
    view.scale = by ? Math.max(1, Math.min(40, view.scale * by)) : 1;
    if (view.scale === 1) view.x = view.y = 0;
    redraw(figure);
  };
  figure.show = (newPoints, more = {}) => {
    const before = figure.places;
    figure.points = newPoints;
    figure.extent = more.extent ?? boxOf(newPoints.map(({ x, y }) => [x, y]));
    figure.from = new Map(newPoints.map((point) => [point.key, before.get(point.key) ?? [point.x, point.y]]));
    figure.since = still() || !before.size ? -1e9 : performance.now();
    figure.set(more);
    const glide = () => {
      redraw(figure);
      if (performance.now() - figure.since < 420) requestAnimationFrame(glide);
    };
    if (figure.since > 0) requestAnimationFrame(glide);
    sayPoint(figure);
  };
  figure.chosen = null;
  figure.choose = (key, how) => {
    if (figure.chosen === key && how !== "pick") return;
    figure.chosen = key;
    redraw(figure);
    sayPoint(figure);
    if (how === "pick") figure.options.onPick?.(key);
  };
  let dragged = null;
  const near = (event) => {
    const box = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let best = null,
      least = 18 ** 2;
    for (const [key, [px, py]] of figure.screen ?? []) {
      const far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) [best, least] = [key, far];
    }
    return best;
  };
  canvas.addEventListener("pointerdown", (event) => {
    dragged = { x: event.clientX, y: event.clientY, far: 0 };
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged && event.buttons && figure.view.scale > 1) {
      const [dx, dy] = [event.clientX - dragged.x, event.clientY - dragged.y];
      dragged = { x: event.clientX, y: event.clientY, far: dragged.far + Math.abs(dx) + Math.abs(dy) };
      figure.view.x += dx / figure.unit;
      figure.view.y -= dy / figure.unit;
      redraw(figure);
    } else if (!event.buttons) {
      const key = near(event);
      if (key !== null) figure.choose(key);
    }
  });
  canvas.addEventListener("click", (event) => {
    const key = (dragged?.far ?? 0) < 6 ? near(event) : null;
    dragged = null;
    if (key !== null) figure.choose(key, "pick");
  });
  canvas.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && figure.view.scale === 1 && event.deltaY > 0) return; // the page scrolls on
      if (!event.ctrlKey && !figure.stage.matches(":focus-within")) return;
      event.preventDefault();
      figure.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2);
    },
    { passive: false },
  );
  figure.stage.addEventListener("keydown", (event) => {
    const way = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[event.key];
    if (way) figure.step(...way);
    else if (event.key === "+" || event.key === "=") figure.zoom(1.5);
    else if (event.key === "-") figure.zoom(1 / 1.5);
    else if (event.key === "0" || event.key === "Escape") figure.zoom(0);
    else if ((event.key === "Enter" || event.key === " ") && figure.chosen !== null)
      figure.choose(figure.chosen, "pick");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  // To the nearest point that lies that way.
  figure.step = (dx, dy) => {
    const here = figure.screen.get(figure.chosen) ?? [0, 0];
    let best = null,
      least = Infinity;
    for (const [key, [x, y]] of figure.screen) {
      const along = (x - here[0]) * dx + (y - here[1]) * dy;
      const aside = Math.abs((x - here[0]) * dy) + Math.abs((y - here[1]) * dx);
      const far = along + 2 * aside;
      if (key !== figure.chosen && along > 0 && aside <= 2 * along && far < least) [best, least] = [key, far];
    }
    if (best !== null) figure.choose(best);
  };
  figure.show(points, options);
  return figure;
}

// The least and the most of points [x, y]: [[left, right], [low, up]].
export function boxOf(points) {
  return [0, 1].map((axis) => [
    Math.min(...points.map((point) => point[axis])),
    Math.max(...points.map((point) => point[axis])),
  ]);
}

function sayPoint(figure) {
  const point = figure.points.find((each) => each.key === figure.chosen);
  tell(figure, point ? (figure.options.tell?.(point) ?? el("bdi", {}, point.label)) : t("draw.scatter.none"));
}

function drawScatter(figure) {
  const { canvas, points, options, view, extent } = figure;
  figure.stage.setAttribute(
    "aria-label",
    t("draw.scatter", { label: options.label ?? figure.caption.textContent, n: points.length }),
  );
  const wide = figure.body.clientWidth,
    high = Math.round(Math.min(options.height ?? 460, Math.max(300, wide * 0.72)));
  const dots = devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(wide * dots), height: Math.round(high * dots) });
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  const pen = canvas.getContext("2d");
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  const [[left, right], [low, up]] = extent;
  const unit = (figure.unit =
    Math.min((wide - 100) / Math.max(right - left, 1e-9), (high - 36) / Math.max(up - low, 1e-9)) * view.scale);
  const across = (x) => wide / 2 + (x - (left + right) / 2 + view.x) * unit,
    upward = (y) => high / 2 - (y - (low + up) / 2 + view.y) * unit;
  const ease = 1 - (1 - Math.min(1, (performance.now() - figure.since) / 400)) ** 3;
  figure.screen = new Map();
  for (const point of points) {
    const from = figure.from.get(point.key);
    const [x, y] = [from[0] + (point.x - from[0]) * ease, from[1] + (point.y - from[1]) * ease];
    figure.places.set(point.key, [x, y]);
    figure.screen.set(point.key, [across(x), upward(y)]);
  }
  pen.strokeStyle = colour("--line");
  pen.beginPath();
  const [cx, cy] = [across(0), upward(0)];
  pen.moveTo(cx, 0);
  pen.lineTo(cx, high);
  pen.moveTo(0, cy);
  pen.lineTo(wide, cy);
  pen.stroke();
  const order = [...points].sort((a, b) => rank(b, figure) - rank(a, figure)); // what matters gets its name first
  const dot = points.length > 400 ? 1.6 : 2.6;
  pen.fillStyle = colour("--quiet");
  for (const point of points) circle(pen, figure.screen.get(point.key), dot);
  const taken = [];
  pen.textBaseline = "middle";
  for (const point of order) {
    const [x, y] = figure.screen.get(point.key);
    if (x < -20 || y < -10 || x > wide + 20 || y > high + 10) continue;
    const strong = rank(point, figure) > 0;
    pen.font = `${strong ? "600 13px" : "12px"} ${fontOf("sans")}`;
    const text = cut(pen, point.label, 120),
      w = pen.measureText(text).width;
    if (strong) {
      pen.fillStyle = colour(point.key === figure.chosen || point.kind === "chosen" ? "--mark" : "--accent");
      circle(pen, [x, y], point.kind === "chosen" ? 6 : 4.5);
    }
    // To the right of its point, else left, above or below; a name without room is left out, unless it matters.
    const boxes = [
      [x + 7, y],
      [x - 7 - w, y],
      [x - w / 2, y - 14],
      [x - w / 2, y + 14],
    ].map(([from, middle]) => [from, middle - 8, from + w, middle + 8]);
    const free = (box) =>
      !taken.some((each) => box[0] < each[2] && box[2] > each[0] && box[1] < each[3] && box[3] > each[1]);
    const box = boxes.slice(0, strong ? 4 : 2).find(free) ?? (strong ? boxes[0] : null);
    if (!box || taken.length > 300) continue;
    taken.push(box, [x - 4, y - 4, x + 4, y + 4]);
    pen.lineWidth = 3;
    pen.strokeStyle = colour("--surface");
    pen.strokeText(text, box[0], box[1] + 8);
    pen.fillStyle = strong
      ? colour(point.key === figure.chosen || point.kind === "chosen" ? "--mark" : "--accent")
      : colour("--ink");
    pen.fillText(text, box[0], box[1] + 8);
  }
}

const rank = (point, figure) => (point.key === figure.chosen ? 3 : 0) + ({ chosen: 2, near: 1 }[point.kind] ?? 0);

function circle(pen, [x, y], radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}
