// The whole model in one picture: tokens at the top, each with the ribbon of its residual stream, which runs down
// through all layers to the model's prediction of the next token. Blue lines are attention, rust marks are MLPs.
//
// A cell is {row, t}: the stage of the stream (see FlowData), and the token. The row after the last stage is the prediction.

import { color, fontFamily } from "octavo/figures/colors";
import { ellipsize } from "octavo/figures/figure";
import { formatPercent, t as sentence } from "octavo/i18n";
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

const MIN_SHARE = 0.07; // lines of smaller mean shares are not drawn
const MIN_CURSOR_SHARE = 0.02; // the same for the token at the cursor
const ATTENTION_PART = 0.64; // of the height of a layer; the rest is the MLP's
const [MIN_HEIGHT, MAX_HEIGHT] = [380, 600]; // of all layers, in pixels; many layers may need more
const OTHER_HEIGHT = 540; // of everything else in the window, in pixels
const MAX_MARK = 9; // the width of an MLP's mark in pixels

export class WholeScene {
  constructor(flow, context, width) {
    Object.assign(this, { flow, width });
    const isNarrow = (this.isNarrow = width < 640);
    const margins = { leftMargin: isNarrow ? 26 : 92, rightMargin: isNarrow ? 84 : 176 };
    this.columns = placeColumns(context, flow, width, margins);
    const L = flow.layerCount;
    const room = Math.max(MIN_HEIGHT, Math.min(MAX_HEIGHT, window.innerHeight - OTHER_HEIGHT));
    this.layerHeight = Math.max(38, Math.min(120, room / L));
    this.top = this.columns.top + 8;
    this.stageY = [this.top + 14];
    for (let i = 0; i < L; i++) {
      const y = this.top + 14 + i * this.layerHeight;
      this.stageY.push(y + ATTENTION_PART * this.layerHeight, y + this.layerHeight);
    }
    this.bottom = this.stageY.at(-1) + 16;
    const predictions = this.columns.isRotated ? this.columns.top + 8 : 40;
    this.height = Math.ceil(this.bottom + Math.max(predictions, isNarrow ? 0 : 116));
    this.rowCount = flow.stageCount + 1;
  }

  // Ribbons have colors, so they are computed again after a change of theme.
  prepare() {
    const stages = [...this.flow.stream.keys()];
    this.ribbons = new Ribbons(this.flow, [0, ...stages, stages.at(-1)], [this.top, ...this.stageY, this.bottom]);
  }

  rowY(row) {
    return this.stageY[row] ?? this.bottom + 18;
  }

  // ---- Drawing

  paint(context) {
    const { flow, columns, stageY, layerHeight } = this;
    for (let i = 0; i < flow.layerCount; i++) {
      if (i % 2 === 0) {
        context.fillStyle = color("--raised");
        context.globalAlpha = 0.45;
        context.fillRect(0, stageY[2 * i], this.width, layerHeight);
        context.globalAlpha = 1;
      }
      this.#paintLayerName(context, i);
      this.#paintAttention(context, i);
    }
    if (!this.isNarrow) drawText(context, "wte + wpe", 10, this.top + 4, { font: labelFont(400, 11) });
    for (const t of columns.tokens) {
      drawLabel(context, flow.tokens[t].label, columns, t, this.top - 8);
      this.ribbons.draw(context, columns.x(t), t, columns.ribbonWidth, this.top, this.bottom);
      for (let i = 0; i < flow.layerCount; i++) this.#paintMlp(context, i, t);
      this.#paintPrediction(context, t);
    }
    this.#paintStagePredictions(context);
    this.#paintNextTokens(context);
  }

  #paintLayerName(context, layer, ink = "--quiet") {
    const name = this.isNarrow ? String(layer) : sentence("model.layer", { layer });
    drawText(context, name, this.isNarrow ? 4 : 10, this.stageY[2 * layer] + this.layerHeight / 2, { ink });
  }

  #line(layer, s, t) {
    const { columns, stageY } = this;
    return linePoints(columns.x(s), stageY[2 * layer] + 2, columns.x(t), stageY[2 * layer + 1]);
  }

  #paintAttention(context, layer) {
    const { flow, columns } = this;
    const ink = color("--accent");
    for (const t of columns.tokens)
      for (const { s, share } of flow.sources(layer, t, MIN_SHARE))
        if (s !== t && s >= columns.first)
          drawLine(context, this.#line(layer, s, t), lineWidth(share, columns.columnWidth), 0.08 + 0.55 * share, ink);
  }

  #paintMlp(context, layer, t, alpha = 0.75) {
    const { columns, stageY, flow } = this;
    const [y1, y2] = [stageY[2 * layer + 1], stageY[2 * layer + 2]];
    const width = Math.min(MAX_MARK, columns.columnWidth * 0.24) * Math.min(1, flow.mlpRatio(layer, t));
    if (width < 0.5) return;
    const height = (y2 - y1) * 0.62;
    context.globalAlpha = alpha;
    context.fillStyle = color("--mark");
    context.beginPath();
    const left = columns.x(t) + columns.ribbonWidth / 2 + 1;
    context.roundRect(left, (y1 + y2 - height) / 2, width, height, Math.min(width, height) / 2);
    context.fill();
    context.globalAlpha = 1;
  }

  // The prediction after token t; in the accent color if the text continues so.
  #paintPrediction(context, t, isStrong = false) {
    const { flow, columns } = this;
    const isRight = flow.predictions[t] === flow.tokens[t + 1]?.id;
    drawLabel(context, flow.label(flow.predictions[t]), columns, t, this.bottom + 8, {
      isBelow: true,
      ink: isRight ? "--accent" : isStrong ? "--ink" : "--quiet",
      weight: isRight || isStrong ? 700 : 400,
      alpha: isStrong ? 1 : 0.4 + 0.6 * Math.sqrt(flow.prediction_probabilities[t]),
    });
  }

  // What the model would answer after the text, layer by layer.
  #paintStagePredictions(context) {
    const { flow, columns, stageY } = this;
    const left = columns.right + 10;
    const room = this.width - left - 4;
    context.setLineDash([1, 4]);
    for (let stage = 0; stage <= flow.layerCount; stage++) {
      const y = stageY[2 * stage];
      const last = columns.x(flow.tokens.length - 1) + columns.ribbonWidth / 2 + MAX_MARK;
      const line = [last + 2, y, last + 8, y, left - 8, y, left - 4, y];
      drawLine(context, line, 1, 0.8, color("--edge"));
      const probability = flow.stage_probabilities[stage];
      const share = formatPercent(probability, 0);
      context.font = labelFont(600);
      const shareWidth = context.measureText(share).width + 8;
      const name = ellipsize(context, flow.label(flow.stage_predictions[stage]), room - shareWidth);
      const alpha = 0.45 + 0.55 * Math.sqrt(probability);
      drawText(context, name, left, y, { ink: "--ink", font: labelFont(600), alpha });
      drawText(context, share, left + context.measureText(name).width + 8, y, { font: labelFont(400, 11) });
    }
    context.setLineDash([]);
    if (!this.isNarrow) drawText(context, ellipsize(context, sentence("model.so_far"), room), left, this.top - 8);
  }

  // The five most likely tokens after the text, as bars from 0 to 100%.
  #paintNextTokens(context) {
    const { flow, columns } = this;
    if (this.isNarrow) return;
    const left = columns.right + 10;
    const [width, names] = [this.width - left - 8, 70];
    const track = width - names - 46;
    const title = { font: `600 12px ${fontFamily("sans")}`, ink: "--ink" };
    drawText(context, sentence("model.next"), left, this.bottom + 10, title);
    flow.next_tokens.forEach((id, i) => {
      const y = this.bottom + 30 + 17 * i;
      const probability = flow.next_probabilities[i];
      context.font = labelFont();
      drawText(context, ellipsize(context, flow.label(id), names - 6), left, y, { ink: "--ink", font: labelFont() });
      const bars = [
        ["--raised", track],
        ["--accent", track * probability],
      ];
      for (const [ink, length] of bars) {
        context.fillStyle = color(ink);
        context.fillRect(left + names, y - 5, length, 10);
      }
      drawText(context, formatPercent(probability, 0), left + width, y, { align: "right", font: labelFont(400, 11) });
    });
  }

  // Shows a cell and its sources, everything else pale.
  highlight(context, { row, t }) {
    const { flow, columns } = this;
    drawVeil(context, this.width, this.height);
    const isPrediction = row >= flow.stageCount;
    const y = isPrediction ? this.bottom : this.rowY(row);
    const layers = isPrediction ? [...Array(flow.layerCount).keys()] : row ? [Math.floor((row - 1) / 2)] : [];
    for (const layer of layers) this.#highlightLayer(context, layer, t, !isPrediction);
    this.ribbons.draw(context, columns.x(t), t, columns.ribbonWidth, this.top, y);
    for (let i = 0; i < flow.layerCount && this.stageY[2 * i + 2] <= y + 1; i++) this.#paintMlp(context, i, t, 1);
    drawLabel(context, flow.tokens[t].label, columns, t, this.top - 8, { weight: 700, ink: "--mark" });
    if (isPrediction) this.#paintPrediction(context, t, true);
    if (row % 2 === 0) this.#paintStagePredictions(context); // these are at the stages after a layer
    this.#paintNextTokens(context);
    for (const layer of layers) this.#paintLayerName(context, layer, layers.length === 1 ? "--ink" : "--quiet");
    context.strokeStyle = color("--mark");
    context.lineWidth = 2;
    const half = columns.ribbonWidth / 2 + 3;
    const predictionHeight = columns.isRotated ? columns.top : 26;
    const prediction = [columns.x(t) - columns.columnWidth / 2 + 1, y + 2, columns.columnWidth - 2, predictionHeight];
    context.strokeRect(...(isPrediction ? prediction : [columns.x(t) - half, y - 5, 2 * half, 10]));
  }

  // The lines from the sources of token t in a layer, with their shares if there is room.
  #highlightLayer(context, layer, t, hasShares) {
    const { flow, columns, stageY } = this;
    const ink = color("--accent");
    for (const { s, share } of flow.sources(layer, t, MIN_CURSOR_SHARE).reverse()) {
      if (s === t || s < columns.first) continue;
      if (hasShares) {
        context.globalAlpha = 0.25 + 0.75 * Math.sqrt(share);
        this.ribbons.draw(context, columns.x(s), s, columns.ribbonWidth, this.top, stageY[2 * layer]);
        context.globalAlpha = 1;
        const style = { ink: "--accent", weight: share > 0.15 ? 700 : 400 };
        drawLabel(context, flow.tokens[s].label, columns, s, this.top - 8, style);
      }
      const width = lineWidth(share, columns.columnWidth) * (hasShares ? 1.5 : 1);
      drawLine(context, this.#line(layer, s, t), width, 0.35 + 0.6 * Math.sqrt(share), ink);
      if (hasShares && share >= 0.08 && columns.columnWidth >= 26)
        this.#paintShare(context, s, stageY[2 * layer], share);
    }
  }

  #paintShare(context, s, y, share) {
    const text = formatPercent(share, 0);
    context.font = labelFont(600, 11);
    const width = context.measureText(text).width + 8;
    context.fillStyle = color("--surface");
    context.beginPath();
    context.roundRect(this.columns.x(s) - width / 2, y - 8, width, 16, 5);
    context.fill();
    drawText(context, text, this.columns.x(s), y + 0.5, { ink: "--accent", align: "center", font: labelFont(600, 11) });
  }

  // ---- Motion

  // Beads at a height: one on every stream, and, between the stages of attention, one on every line that leads to the
  // chosen token.
  paintBeads(context, y, chosen) {
    const { flow, columns, stageY } = this;
    const alpha = Math.min(1, (y - this.top) / 20, (this.bottom - y) / 20);
    if (alpha <= 0) return;
    const [ink, mark] = [color("--accent"), color("--mark")];
    for (const t of columns.tokens) if (t !== chosen) drawDot(context, [columns.x(t), y], 2, 0.5 * alpha, ink);
    const layer = Math.floor((y - stageY[0]) / this.layerHeight);
    if (layer >= 0 && layer < flow.layerCount && y < stageY[2 * layer + 1]) {
      const progress = (y - stageY[2 * layer]) / (stageY[2 * layer + 1] - stageY[2 * layer]);
      for (const { s, share } of flow.sources(layer, chosen, MIN_CURSOR_SHARE))
        if (s !== chosen && s >= columns.first)
          drawDot(context, pointOnLine(this.#line(layer, s, chosen), progress), 1.5 + 5 * share, alpha, mark);
    }
    drawDot(context, [columns.x(chosen), y], 4.5, alpha, mark);
  }

  // ---- Cells

  find(x, y) {
    const t = this.columns.at(x);
    if (x < this.columns.left - 10 || x > this.columns.right + 10 || y < 0) return null;
    if (y > this.bottom) return { row: this.flow.stageCount, t };
    let row = 0;
    this.stageY.forEach((stage, k) => {
      if (Math.abs(stage - y) < Math.abs(this.stageY[row] - y)) row = k;
    });
    return { row, t };
  }

  // The cell that an arrow key leads to; `dx` and `dy` may be infinite.
  move({ row, t }, dx, dy) {
    const last = this.flow.tokens.length - 1;
    return {
      row: Math.max(0, Math.min(this.rowCount - 1, row + dy)),
      t: Math.max(this.columns.first, Math.min(last, t + dx)),
    };
  }

  // The layer of a cell; the first one for the embedding, the last one for the prediction.
  layerOf({ row }) {
    return Math.max(0, Math.min(this.flow.layerCount - 1, Math.floor((row - 1) / 2)));
  }

  // The part of the picture that a layer fills: [top, bottom].
  bandOf(layer) {
    return [this.stageY[2 * layer], this.stageY[2 * layer + 2]];
  }
}
