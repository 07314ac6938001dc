// One head: every token at the bottom attends to tokens at the top; the thicker a line, the larger its share.
//
// A cell is {t, s}: the token that attends, and the token that it attends to.

import { color, fontFamily } from "octavo/figures/colors";
import { formatPercent, t as sentence } from "octavo/i18n";
import {
  drawDot,
  drawLabel,
  drawLine,
  drawText,
  drawVeil,
  labelFont,
  linePoints,
  placeColumns,
  pointOnLine,
} from "octavo/tabs/model/scene";

const MIN_SHARE = 0.02;
const LINES_HEIGHT = 320; // pixels

export class HeadScene {
  constructor(flow, context, width, { layer, head }) {
    Object.assign(this, { flow, width, layer, head });
    this.columns = placeColumns(context, flow, width, { leftMargin: 8, rightMargin: 8 });
    this.top = this.columns.top + 44;
    this.bottom = this.top + LINES_HEIGHT;
    this.height = Math.ceil(this.bottom + this.columns.top + 30);
  }

  prepare() {}

  #line(s, t) {
    return linePoints(this.columns.x(s), this.top, this.columns.x(t), this.bottom);
  }

  #width(share) {
    return 0.7 + Math.min(26, this.columns.columnWidth * 0.5) * share;
  }

  #sources(t) {
    const { flow, layer, head, columns } = this;
    return flow.sources(layer, t, MIN_SHARE, head).filter(({ s }) => s >= columns.first);
  }

  paint(context) {
    const { columns } = this;
    this.#paintTitles(context);
    for (const t of columns.tokens)
      for (const { s, share } of this.#sources(t))
        drawLine(context, this.#line(s, t), this.#width(share), 0.12 + 0.4 * share, color("--accent"));
    for (const t of columns.tokens) this.#paintEnds(context, t);
  }

  #paintTitles(context) {
    const style = { font: `12px ${fontFamily("sans")}`, align: "center" };
    drawText(context, sentence("model.attended"), this.width / 2, 10, style);
    drawText(context, sentence("model.attending"), this.width / 2, this.height - 10, style);
  }

  #paintEnds(context, t) {
    const { flow, columns } = this;
    drawLabel(context, flow.tokens[t].label, columns, t, this.top - 24);
    drawLabel(context, flow.tokens[t].label, columns, t, this.bottom + 8, { isBelow: true });
  }

  highlight(context, { t, s: chosen }) {
    const { flow, columns } = this;
    drawVeil(context, this.width, this.height, 0.82);
    this.#paintTitles(context);
    for (const { s, share } of this.#sources(t).reverse()) {
      const isChosen = s === chosen;
      const ink = color(isChosen ? "--mark" : "--accent");
      drawLine(context, this.#line(s, t), this.#width(share), 0.4 + 0.5 * share, ink);
      const style = isChosen ? { weight: 700, ink: "--mark" } : {};
      drawLabel(context, flow.tokens[s].label, columns, s, this.top - 24, style);
      if (columns.columnWidth >= 24 || isChosen) this.#paintShare(context, s, share, isChosen);
    }
    const attendingStyle = { isBelow: true, weight: 700, ink: "--mark" };
    drawLabel(context, flow.tokens[t].label, columns, t, this.bottom + 8, attendingStyle);
    if (!this.#sources(t).some(({ s }) => s === chosen)) {
      drawLabel(context, flow.tokens[chosen].label, columns, chosen, this.top - 24, { weight: 700, ink: "--mark" });
      this.#paintShare(context, chosen, flow.share(this.layer, t, chosen, this.head), true);
    }
  }

  #paintShare(context, s, share, isChosen) {
    const style = { ink: isChosen ? "--mark" : "--accent", align: "center", font: labelFont(600, 11) };
    drawText(context, formatPercent(share, 0), this.columns.x(s), this.top - 12, style);
  }

  paintBeads(context, y, chosen) {
    const progress = (y - this.top) / LINES_HEIGHT;
    if (progress < 0 || progress > 1) return;
    for (const { s, share } of this.#sources(chosen))
      drawDot(context, pointOnLine(this.#line(s, chosen), progress), 2 + 7 * share, 0.9, color("--mark"));
  }

  // ---- Cells

  find(x, y, cell) {
    if (x < this.columns.left || x > this.columns.right) return null;
    const at = this.columns.at(x);
    return y > (this.top + this.bottom) / 2 ? this.#withSource(at) : { t: cell.t, s: Math.min(at, cell.t) };
  }

  // Left and right choose the token that attends, up and down the token that it attends to.
  move({ t, s }, dx, dy) {
    const { columns, flow } = this;
    if (dy) return { t, s: Math.max(columns.first, Math.min(t, s + dy)) };
    return this.#withSource(Math.max(columns.first, Math.min(flow.tokens.length - 1, t + dx)));
  }

  // A token, and the one that it attends to most.
  #withSource(t) {
    return { t, s: this.#sources(t)[0]?.s ?? t };
  }
}
