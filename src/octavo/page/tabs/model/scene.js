// What the pictures of the whole model, a layer and a head share: columns of tokens, ribbons of the residual stream,
// and the lines of attention.

import { color, fontFamily, Scale } from "octavo/figures/colors";
import { ellipsize } from "octavo/figures/figure";

const MIN_COLUMN = 15; // pixels; on a narrow screen only the last tokens have room
const MAX_COLUMN = 112;
const MAX_RIBBON = 28;

// The columns of tokens within a width: {tokens, first, left, right, columnWidth, ribbonWidth, isRotated,
// top, x(t), at(x)}.
// `tokens` are the indices of those that have room: the last ones, from `first` on.
export function placeColumns(context, flow, width, { leftMargin, rightMargin }) {
  const available = width - leftMargin - rightMargin;
  const count = Math.min(flow.tokens.length, Math.max(1, Math.floor(available / MIN_COLUMN)));
  const columnWidth = Math.min(MAX_COLUMN, available / count);
  const first = flow.tokens.length - count;
  const tokens = Array.from({ length: count }, (_, i) => first + i);
  const left = leftMargin + (available - columnWidth * count) / 2;
  context.font = labelFont();
  const widest = Math.max(...tokens.map((t) => context.measureText(flow.tokens[t].label).width));
  const isRotated = widest > columnWidth - 4;
  return {
    tokens,
    first,
    left,
    right: left + columnWidth * count,
    columnWidth,
    ribbonWidth: Math.min(MAX_RIBBON, columnWidth * 0.46),
    isRotated,
    top: isRotated ? Math.min(84, widest + 16) : 34, // the height of the labels
    x: (t) => left + (t - first + 0.5) * columnWidth,
    at: (x) => Math.max(first, Math.min(flow.tokens.length - 1, first + Math.floor((x - left) / columnWidth))),
  };
}

export const labelFont = (weight = 400, size = 13) => `${weight} ${size}px ${fontFamily("mono")}`;

// A label in the column of a token, its lower end at `y`; below `y` if `isBelow`.
export function drawLabel(context, text, columns, t, y, { isBelow = false, ...style } = {}) {
  const { weight = 400, ink = "--ink", alpha = 1 } = style;
  context.save();
  context.globalAlpha = alpha;
  context.font = labelFont(weight);
  context.fillStyle = color(ink);
  context.textBaseline = "middle";
  context.translate(columns.x(t), y);
  if (columns.isRotated) {
    context.rotate(-Math.PI / 2);
    context.textAlign = isBelow ? "right" : "left";
    context.fillText(ellipsize(context, text, columns.top - 12), 0, 0);
  } else {
    context.textAlign = "center";
    context.fillText(ellipsize(context, text, columns.columnWidth - 2), 0, isBelow ? 9 : -9);
  }
  context.restore();
}

// ---- Ribbons

// The residual stream of all tokens as pixels: for each token one column per shown dimension, from the first of
// `stages` to the last. `stageY` are the y coordinates of these stages. Between two stages the values are
// interpolated; a color is relative to the largest value of its stage.
export class Ribbons {
  constructor(flow, stages, stageY) {
    const dimensions = flow.columns.length;
    this.dimensions = dimensions;
    this.top = Math.round(stageY[0]);
    this.height = Math.max(1, Math.round(stageY.at(-1)) - this.top);
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: flow.tokens.length * dimensions, height: this.height });
    const context = this.canvas.getContext("2d");
    const pixels = context.createImageData(this.canvas.width, this.height);
    const { ramp } = new Scale("signed", 1);
    const values = stages.map((stage) => flow.stream[stage].flat().map((value) => value / flow.largest[stage]));
    let k = 0;
    for (let row = 0; row < this.height; row++) {
      const y = this.top + row;
      while (k < stages.length - 2 && y >= stageY[k + 1]) k++;
      const progress = Math.max(0, Math.min(1, (y - stageY[k]) / Math.max(1, stageY[k + 1] - stageY[k])));
      const mix = progress * progress * (3 - 2 * progress); // slow at the stages, quick between them
      const [above, below] = [values[k], values[k + 1]];
      for (let i = 0; i < above.length; i++) {
        const value = above[i] + (below[i] - above[i]) * mix;
        const [r, g, b] = ramp[Math.round(127.5 * (1 + Math.max(-1, Math.min(1, spread(value)))))];
        const at = 4 * (row * this.canvas.width + i);
        pixels.data[at] = r;
        pixels.data[at + 1] = g;
        pixels.data[at + 2] = b;
        pixels.data[at + 3] = 255;
      }
    }
    context.putImageData(pixels, 0, 0);
  }

  // Draws the ribbon of a token between two heights.
  draw(context, x, t, width, from, to) {
    const start = Math.max(0, Math.round(from) - this.top);
    const height = Math.min(this.height, Math.round(to) - this.top) - start;
    if (height <= 0) return;
    context.imageSmoothingEnabled = false;
    const part = [t * this.dimensions, start, this.dimensions, height];
    context.drawImage(this.canvas, ...part, x - width / 2, this.top + start, width, height);
  }
}

// Small values are the most frequent ones: this makes them visible. The strongest colors are left to the cursor.
const spread = (value) => 0.86 * Math.sign(value) * Math.abs(value) ** 0.85;

// ---- Lines of attention

// The line from token s at height y1 to token t at height y2: the points of a cubic curve. A long line bends later than
// a short one, so that lines from one token fan out.
export const linePoints = (x1, y1, x2, y2) => {
  const height = y2 - y1;
  const bend = Math.min(1, Math.abs(x2 - x1) / 900);
  return [x1, y1, x1, y1 + height * (0.35 + 0.55 * bend), x2, y2 - height * (0.75 - 0.35 * bend), x2, y2];
};

export function drawLine(context, [x1, y1, ...rest], width, alpha, ink) {
  context.globalAlpha = alpha;
  context.strokeStyle = ink;
  context.lineWidth = width;
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(x1, y1);
  context.bezierCurveTo(...rest);
  context.stroke();
  context.globalAlpha = 1;
}

// The point of a line at `u` from 0 to 1.
export function pointOnLine([x0, y0, x1, y1, x2, y2, x3, y3], u) {
  const v = 1 - u;
  const [a, b, c, d] = [v ** 3, 3 * v * v * u, 3 * v * u * u, u ** 3];
  return [a * x0 + b * x1 + c * x2 + d * x3, a * y0 + b * y1 + c * y2 + d * y3];
}

export const lineWidth = (share, columnWidth) => 0.5 + Math.min(9, 0.3 * columnWidth) * share;

export function drawDot(context, [x, y], radius, alpha, ink) {
  context.globalAlpha = alpha;
  context.fillStyle = ink;
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  context.fill();
  context.globalAlpha = 1;
}

// Makes everything that is drawn so far pale.
export function drawVeil(context, width, height, alpha = 0.74) {
  context.globalAlpha = alpha;
  context.fillStyle = color("--surface");
  context.fillRect(0, 0, width, height);
  context.globalAlpha = 1;
}

export function drawText(context, text, x, y, { ink = "--quiet", align = "left", font = null, alpha = 1 } = {}) {
  context.globalAlpha = alpha;
  context.font = font ?? `12px ${fontFamily("sans")}`;
  context.fillStyle = color(ink);
  context.textAlign = align;
  context.textBaseline = "middle";
  context.fillText(text, x, y);
  context.globalAlpha = 1;
}
