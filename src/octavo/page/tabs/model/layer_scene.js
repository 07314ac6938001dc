// One layer: its input, what each head attends to, what attention adds, what the MLP adds, its output.
//
// A cell is {t, head}: the token, and the head whose lines are shown; with head null, they are the mean of all heads.

import { color, fontFamily, Scale } from "octavo/figures/colors";
import { ellipsize } from "octavo/figures/figure";
import { t as sentence } from "octavo/i18n";
import {
  drawDot,
  drawLabel,
  drawLine,
  drawText,
  drawVeil,
  labelFont,
  linePoints,
  lineWidth,
  placeColumns,
  pointOnLine,
  Ribbons,
} from "octavo/tabs/model/scene";

const MIN_SHARE = 0.03;
// Heights in pixels, from top to bottom; the output is as high as the input.
const INPUT_HEIGHT = 44;
const LINES_HEIGHT = 190; // the lines of attention
const MLP_HEIGHT = 90;
const GAP = 16; // between the pictures of two heads

export class LayerScene {
  constructor(flow, context, width, { layer }) {
    Object.assign(this, { flow, width, layer });
    const isNarrow = width < 640;
    this.leftMargin = isNarrow ? 8 : 110;
    this.columns = placeColumns(context, flow, width, { leftMargin: this.leftMargin, rightMargin: 8 });
    const top = this.columns.top + 8;
    const lines = top + INPUT_HEIGHT;
    const mlp = lines + LINES_HEIGHT;
    this.y = { input: top, lines, mlp, output: mlp + MLP_HEIGHT };
    this.bottom = this.y.output + INPUT_HEIGHT;
    this.#placePatterns(width - 2 * 8);
    this.height = Math.ceil(this.patterns.at(-1).bottom + 8);
  }

  #placePatterns(width) {
    const { headCount } = this.flow;
    const perRow = Math.max(2, Math.min(headCount, Math.floor(width / 112)));
    const size = Math.min(150, width / perRow - GAP);
    const left = 8 + Math.max(0, (width - perRow * (size + GAP)) / 2);
    this.patterns = Array.from({ length: headCount }, (_, head) => {
      const x = left + (head % perRow) * (size + GAP) + GAP / 2;
      const top = this.bottom + 56 + Math.floor(head / perRow) * (size + 46);
      return { head, x, top, size, bottom: top + size + 34 };
    });
  }

  prepare() {
    const { flow, layer, y } = this;
    const stages = [2 * layer, 2 * layer, 2 * layer + 1, 2 * layer + 2, 2 * layer + 2];
    this.ribbons = new Ribbons(flow, stages, [y.input, y.lines, y.mlp, y.output, this.bottom]);
    const scale = new Scale("sequential", 1);
    this.pictures = flow.patterns[layer].map((rows) => patternPicture(rows, scale));
  }

  paint(context) {
    const { flow, columns, y, layer } = this;
    const names = [
      ["model.input", (y.input + y.lines) / 2],
      ["model.attention", (y.lines + y.mlp) / 2],
      ["model.mlp", (y.mlp + y.output) / 2],
      ["model.output", (y.output + this.bottom) / 2],
    ];
    context.fillStyle = color("--raised");
    context.globalAlpha = 0.45;
    context.fillRect(0, y.lines, this.width, LINES_HEIGHT);
    context.globalAlpha = 1;
    if (this.leftMargin > 50) for (const [key, at] of names) drawText(context, sentence(key), 10, at);
    for (const t of columns.tokens) this.#paintLines(context, t, null, 0.1, 0.5);
    for (const t of columns.tokens) {
      drawLabel(context, flow.tokens[t].label, columns, t, y.input - 8);
      this.ribbons.draw(context, columns.x(t), t, columns.ribbonWidth, y.input, this.bottom);
      this.#paintMlp(context, t);
    }
    const title = { font: `600 13px ${fontFamily("sans")}`, ink: "--ink", align: "center" };
    drawText(context, sentence("model.heads", { layer }), this.width / 2, this.bottom + 26, title);
    for (const pattern of this.patterns) this.#paintPattern(context, pattern);
  }

  #line(s, t) {
    const { columns, y } = this;
    return linePoints(columns.x(s), y.lines, columns.x(t), y.mlp);
  }

  #paintLines(context, t, head, leastAlpha, alpha) {
    const { flow, columns, layer } = this;
    for (const { s, share } of flow.sources(layer, t, MIN_SHARE, head ?? undefined))
      if (s !== t && s >= columns.first) {
        const width = 1.6 * lineWidth(share, columns.columnWidth);
        drawLine(context, this.#line(s, t), width, leastAlpha + alpha * share, color("--accent"));
      }
  }

  #paintMlp(context, t) {
    const { columns, y, flow, layer } = this;
    const width = Math.min(14, columns.columnWidth * 0.3) * Math.min(1, flow.mlpRatio(layer, t));
    context.fillStyle = color("--mark");
    context.globalAlpha = 0.8;
    context.beginPath();
    context.roundRect(columns.x(t) + columns.ribbonWidth / 2 + 1, y.mlp + 18, width, MLP_HEIGHT - 36, width / 2);
    context.fill();
    context.globalAlpha = 1;
  }

  #paintPattern(context, { head, x, top, size, bottom }, isChosen = false) {
    const { flow, layer } = this;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.pictures[head], x, top, size, size);
    context.strokeStyle = color(isChosen ? "--mark" : "--border");
    context.lineWidth = isChosen ? 2.5 : 1;
    context.strokeRect(x, top, size, size);
    const style = { align: "center", font: `600 12px ${fontFamily("sans")}`, ink: isChosen ? "--mark" : "--ink" };
    drawText(context, sentence("model.head", { head }), x + size / 2, top + size + 11, style);
    context.font = `11px ${fontFamily("sans")}`;
    const habit = ellipsize(context, sentence(`habit.short.${flow.habits[layer][head]}`), size + GAP - 2);
    drawText(context, habit, x + size / 2, bottom - 8, { align: "center", font: context.font });
  }

  highlight(context, { t, head }) {
    const { flow, columns, y, layer } = this;
    context.save();
    drawVeil(context, this.width, this.bottom + 4);
    context.restore();
    for (const { s, share } of flow.sources(layer, t, MIN_SHARE, head ?? undefined)) {
      if (s < columns.first) continue;
      context.globalAlpha = 0.3 + 0.7 * Math.sqrt(share);
      this.ribbons.draw(context, columns.x(s), s, columns.ribbonWidth, y.input, y.lines);
      context.globalAlpha = 1;
      if (s !== t) drawLabel(context, flow.tokens[s].label, columns, s, y.input - 8, { ink: "--accent" });
    }
    this.#paintLines(context, t, head, 0.3, 0.65);
    this.ribbons.draw(context, columns.x(t), t, columns.ribbonWidth, y.input, this.bottom);
    this.#paintMlp(context, t);
    drawLabel(context, flow.tokens[t].label, columns, t, y.input - 8, { weight: 700, ink: "--mark" });
    if (head !== null) this.#paintPattern(context, this.patterns[head], true);
  }

  paintBeads(context, y, chosen, head) {
    const { flow, columns, layer } = this;
    const alpha = Math.min(1, (y - this.y.input) / 20, (this.bottom - y) / 20);
    if (alpha <= 0) return;
    const ink = color("--accent");
    for (const t of columns.tokens) if (t !== chosen) drawDot(context, [columns.x(t), y], 2.5, 0.5 * alpha, ink);
    if (y > this.y.lines && y < this.y.mlp)
      for (const { s, share } of flow.sources(layer, chosen, MIN_SHARE, head ?? undefined))
        if (s !== chosen && s >= columns.first) {
          const point = pointOnLine(this.#line(s, chosen), (y - this.y.lines) / LINES_HEIGHT);
          drawDot(context, point, 2 + 6 * share, alpha, color("--mark"));
        }
    drawDot(context, [columns.x(chosen), y], 5, alpha, color("--mark"));
  }

  // ---- Cells

  find(x, y, cell) {
    const contains = (each) => x >= each.x && x < each.x + each.size && y >= each.top && y < each.bottom;
    const pattern = this.patterns.find(contains);
    if (pattern) return { t: cell.t, head: pattern.head };
    if (y > this.bottom || x < this.columns.left || x > this.columns.right) return null;
    return { t: this.columns.at(x), head: cell.head };
  }

  // The part of the picture from which the picture of a head grows: [top, bottom].
  bandOf() {
    return [this.y.lines, this.y.mlp];
  }

  // Left and right go from token to token, up and down from head to head; before the first head is the mean of all.
  move({ t, head }, dx, dy) {
    const next = Math.max(-1, Math.min(this.flow.headCount - 1, (head ?? -1) + dy));
    return {
      t: Math.max(this.columns.first, Math.min(this.flow.tokens.length - 1, t + dx)),
      head: next < 0 ? null : next,
    };
  }
}

// A pattern as an image with one pixel for each weight.
function patternPicture(rows, scale) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = rows.length;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(rows.length, rows.length);
  rows.forEach((row, t) =>
    row.forEach((thousandths, s) => {
      pixels.data.set([...scale.rgb(thousandths / 1000), 255], 4 * (t * rows.length + s));
    }),
  );
  context.putImageData(pixels, 0, 0);
  return canvas;
}
