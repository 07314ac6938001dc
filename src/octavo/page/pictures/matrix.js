// A matrix of numbers as a heat map, with a cursor that the pointer and the arrow keys move from cell to cell.

import { colour, cut, fillTable, fontOf, frame, legend, redraw, Scale, tell } from "octavo/pictures/figure";
import { code, el, exact, number, t } from "octavo/dom";

const BIG = 4096; // cells; of a larger matrix the table shows a row at a time

// A heat map of `values`, rows of numbers; rows of a lower triangle may end early. Options:
//   rows, columns      (i) => name; sayRow, sayColumn: what a row and a column are ("t", "s")
//   scale              "signed" (default), "share" or "plain", without colours; max: the value of the strongest colour;
//                      capped: there are larger ones
//   numbers            print them into cells with room for them, with so many `digits`
//   hidden(r, c)       true where there is nothing, as in the future
//   totals             row sums, printed beside the rows
//   tell(r, c, value)  the readout, text or nodes
//   onHover(r, c), onPick(r, c), at: [r, c] the cursor's first place, label: the picture's name for screen readers
//   cellHeight, maxCell, gaps: rows before which there is a gap
export function matrix(values, options = {}) {
  const figure = frame("matrix", options, drawMatrix, matrixTable);
  const canvas = el("canvas");
  figure.stage = el("div", { class: "stage", tabindex: "0", role: "application" }, canvas);
  figure.canvas = canvas;
  figure.body.append(figure.stage);
  figure.cursor = [0, 0];
  figure.show = (newValues, more = {}) => {
    figure.values = newValues;
    figure.width = Math.max(0, ...newValues.map((row) => row.length));
    if (more.at) figure.cursor = [...more.at];
    figure.cursor = [
      Math.min(figure.cursor[0], Math.max(0, newValues.length - 1)),
      Math.min(figure.cursor[1], Math.max(0, figure.width - 1)),
    ];
    figure.set(more);
    sayCell(figure);
  };
  figure.moveTo = (r, c, how = "") => {
    if (r < 0 || c < 0 || r >= figure.values.length || c >= figure.width) return;
    if (r === figure.cursor[0] && c === figure.cursor[1] && how !== "pick") return;
    const rowChanged = r !== figure.cursor[0];
    figure.cursor = [r, c];
    redraw(figure);
    sayCell(figure);
    if (rowChanged && isBig(figure)) fillTable(figure);
    figure.options.onHover?.(r, c);
    if (how === "pick") figure.options.onPick?.(r, c);
  };
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return figure.cellAt?.(event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = event.pointerType === "touch" ? null : at(event);
    if (cell) figure.moveTo(...cell);
  });
  canvas.addEventListener("click", (event) => {
    const cell = at(event);
    if (cell) figure.moveTo(...cell, "pick");
  });
  figure.stage.addEventListener("keydown", (event) => {
    const [r, c] = figure.cursor;
    const far = event.ctrlKey || event.metaKey ? 10 : 1;
    const clampR = (x) => Math.max(0, Math.min(figure.values.length - 1, x));
    const clampC = (x) => Math.max(0, Math.min(figure.width - 1, x));
    const to = {
      ArrowRight: [r, clampC(c + far)],
      ArrowLeft: [r, clampC(c - far)],
      ArrowDown: [clampR(r + far), c],
      ArrowUp: [clampR(r - far), c],
      Home: [r, 0],
      End: [r, figure.width - 1],
      PageUp: [0, c],
      PageDown: [figure.values.length - 1, c],
    }[event.key];
    if (to) figure.moveTo(...to);
    else if (event.key === "Enter" || event.key === " ") figure.moveTo(r, c, "pick");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  figure.show(values, options);
  return figure;
}

const isBig = (figure) => figure.values.length * figure.width > BIG;
const nameOf = (names, at) => (typeof names === "function" ? names(at) : names?.[at]) ?? String(at);

function sayCell(figure) {
  const { options, values } = figure;
  const [r, c] = figure.cursor;
  if (!values.length || !figure.width) return tell(figure, "");
  const value = values[r][c];
  tell(figure, options.tell ? options.tell(r, c, value) : code(`[${r}, ${c}] = ${exact(value)}`));
}

function drawMatrix(figure) {
  const { options, values, canvas, body, width: columns } = figure;
  const rows = values.length;
  if (!rows || !columns) return void canvas.setAttribute("hidden", "");
  canvas.removeAttribute("hidden");
  figure.stage.setAttribute(
    "aria-label",
    t("draw.matrix", { label: options.label ?? figure.caption.textContent, rows, columns }),
  );
  const pen = canvas.getContext("2d");
  const font = "12px " + fontOf("mono");
  pen.font = font;
  const room = body.clientWidth;
  const rowNames = Array.from({ length: rows }, (_, r) => nameOf(options.rows, r));
  const columnNames = Array.from({ length: columns }, (_, c) => nameOf(options.columns, c));
  const widest = (names) => Math.max(...names.slice(0, 200).map((name) => pen.measureText(name).width));
  const narrow = room < 480;
  const left = Math.ceil(Math.min(narrow ? 64 : 150, widest(rowNames))) + 10;
  const totals = options.totals ? 52 : 0;
  const cw = Math.min(options.maxCell ?? 56, (room - left - totals - 2) / columns);
  const ch =
    options.cellHeight ?? Math.max(Math.min(cw, options.numbers ? 28 : 40), rows <= 40 ? 15 : rows <= 80 ? 8 : 0);
  const gap = (r) => 12 * (options.gaps ?? []).filter((each) => each <= r).length;
  const counted = columnNames.every((name) => /^\d+$/.test(name)); // numbers stand upright only where they must
  const upright = !counted && widest(columnNames) > cw - 4;
  const everyColumn = counted ? tidy((widest(columnNames) + 8) / cw) : Math.max(1, Math.ceil((upright ? 14 : 4) / cw));
  const everyRow = counted ? tidy(13 / ch) : Math.max(1, Math.ceil(13 / ch));
  const top =
    options.columns === null
      ? 4
      : Math.ceil(upright ? Math.min(72, widest(columnNames.filter((_, c) => c % everyColumn === 0))) + 10 : 20);
  const wide = left + cw * columns + totals + 2;
  const high = top + ch * rows + gap(rows) + 2;
  const dots = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: Math.round(wide * dots), height: Math.round(high * dots) });
  Object.assign(canvas.style, { width: `${wide}px`, height: `${high}px` });
  pen.setTransform(dots, 0, 0, dots, 0, 0);

  let max = options.max;
  if (max === undefined) {
    max = 0;
    values.forEach((row, r) =>
      row.forEach((value, c) => {
        if (!options.hidden?.(r, c)) max = Math.max(max, Math.abs(value));
      }),
    );
  }
  const scale = new Scale(options.scale ?? "signed", max);
  const nothing = (r, c) => c >= values[r].length || values[r][c] === null || options.hidden?.(r, c);

  if (cw < 4 || ch < 3) {
    const pixels = new ImageData(columns, rows);
    const [er, eg, eb] = colour("--surface").match(/\d+/g).map(Number);
    values.forEach((row, r) => {
      for (let c = 0; c < columns; c++) {
        const [red, green, blue] = nothing(r, c) ? [er, eg, eb] : scale.rgb(row[c]);
        pixels.data.set([red, green, blue, 255], 4 * (r * columns + c));
      }
    });
    const small = el("canvas", { width: columns, height: rows });
    small.getContext("2d").putImageData(pixels, 0, 0);
    pen.imageSmoothingEnabled = cw * dots < 1;
    for (let r = 0, from = 0; r <= rows; r++) {
      if (r < rows && !(options.gaps ?? []).includes(r)) continue; // a band of rows between two gaps at a time
      if (r > from)
        pen.drawImage(
          small,
          0,
          from,
          columns,
          r - from,
          left,
          top + from * ch + gap(from),
          cw * columns,
          ch * (r - from),
        );
      from = r;
    }
  } else {
    const between = Math.min(cw, ch) >= 12 ? 1 : 0;
    const hatch = hatching(pen);
    const digits = scale.kind === "plain" ? 0 : (options.digits ?? (scale.max < 0.5 ? 3 : 2));
    const fits = options.numbers && cw >= 38 && ch >= 14;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.font = font.replace("12px", cw >= (digits > 2 ? 54 : 46) ? "12px" : "11px");
    for (let r = 0; r < rows; r++) {
      for (let c = 0; c < columns; c++) {
        const x = left + c * cw,
          y = top + r * ch + gap(r);
        const none = nothing(r, c);
        pen.fillStyle = none ? hatch : scale.css(values[r][c]);
        pen.fillRect(x, y, cw - between, ch - between);
        if (!fits || none) continue;
        pen.fillStyle = scale.ink(values[r][c]);
        pen.fillText(figureIn(pen, values[r][c], digits, cw - 3), x + cw / 2, y + ch / 2 + 0.5);
      }
    }
  }

  const [atR, atC] = figure.cursor;
  pen.font = font;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (let r = 0; r < rows; r++) {
    if (r % everyRow && r !== atR) continue;
    if (r !== atR && everyRow > 1 && Math.abs(r - atR) < everyRow) continue;
    pen.fillStyle = colour(r === atR ? "--ink" : "--quiet");
    pen.fillText(cut(pen, rowNames[r], left - 8), left - 7, top + (r + 0.5) * ch + gap(r));
  }
  if (options.columns !== null)
    for (let c = 0; c < columns; c++) {
      if (c % everyColumn && c !== atC) continue;
      if (c !== atC && everyColumn > 1 && Math.abs(c - atC) < Math.min(everyColumn, 60 / cw)) continue;
      pen.fillStyle = colour(c === atC ? "--ink" : "--quiet");
      pen.save();
      pen.translate(left + (c + 0.5) * cw, top - 6);
      if (upright) pen.rotate(-Math.PI / 2);
      pen.textAlign = upright ? "left" : "center";
      pen.fillText(counted ? columnNames[c] : cut(pen, columnNames[c], upright ? 70 : cw + 8), 0, upright ? 0 : -4);
      pen.restore();
    }
  if (totals) {
    pen.textAlign = "right";
    pen.fillStyle = colour("--quiet");
    pen.fillText("Σ", wide - 4, top - 10);
    for (let r = 0; r < rows; r++) {
      if ((r % everyRow && r !== atR) || (r !== atR && everyRow > 1 && Math.abs(r - atR) < everyRow)) continue;
      pen.fillStyle = colour(r === atR ? "--ink" : "--quiet");
      pen.fillText(number(options.totals[r], 3), wide - 4, top + (r + 0.5) * ch + gap(r));
    }
  }
  pen.strokeStyle = colour("--mark");
  pen.lineWidth = 2;
  if (Math.min(cw, ch) < 6) {
    // a cell that small is found by its row and column
    pen.lineWidth = 1;
    pen.globalAlpha = 0.6;
    pen.strokeRect(left, top + atR * ch + gap(atR) - 0.5, cw * columns, ch + 1);
    pen.strokeRect(left + atC * cw - 0.5, top, cw + 1, ch * rows + gap(rows));
    pen.globalAlpha = 1;
  } else pen.strokeRect(left + atC * cw - 0.5, top + atR * ch + gap(atR) - 0.5, cw, ch);
  figure.cellAt = (x, y) => {
    const c = Math.floor((x - left) / cw);
    if (c < 0 || c >= columns) return null;
    for (let r = 0; r < rows; r++) {
      const from = top + r * ch + gap(r);
      if (y >= from && y < from + ch) return [r, c];
    }
    return null;
  };
  figure.foot.replaceChildren(...(scale.kind === "plain" ? [] : [legend(scale, options.capped)]));
}

// A number for a small cell: -0.03, 12.4, 128; without its first 0 where that is too wide.
function figureIn(pen, value, digits, room) {
  const size = Math.abs(value);
  const text = number(value, size >= 100 ? 0 : size >= 10 ? Math.min(1, digits) : digits);
  return pen.measureText(text).width <= room ? text : text.replace(/^(\W*)0(?=[.,])/, "$1");
}

// 1, 2, 5, 10, 20, ...: the next that is large enough.
function tidy(least) {
  for (let ten = 1; ; ten *= 10) for (const step of [1, 2, 5]) if (step * ten >= least) return step * ten;
}

function hatching(pen) {
  const tile = el("canvas", { width: 6, height: 6 });
  const own = tile.getContext("2d");
  own.strokeStyle = colour("--line");
  own.beginPath();
  own.moveTo(-1, 7);
  own.lineTo(7, -1);
  own.stroke();
  return pen.createPattern(tile, "repeat");
}

function matrixTable(figure) {
  const { values, options, width } = figure;
  const columnNames = Array.from({ length: width }, (_, c) => nameOf(options.columns, c));
  const value = (r, c) => (c >= values[r].length || options.hidden?.(r, c) ? "" : values[r][c]);
  if (isBig(figure)) {
    const r = figure.cursor[0];
    const field = el("input", {
      type: "number",
      min: 0,
      max: values.length - 1,
      value: r,
      onchange: () =>
        figure.moveTo(Math.max(0, Math.min(values.length - 1, field.valueAsNumber || 0)), figure.cursor[1]),
    });
    const before = el(
      "p",
      {},
      el("label", { class: "field" }, el("span", {}, t("draw.row")), field),
      options.totals && el("span", { class: "quiet" }, ` Σ = ${number(options.totals[r], 3)}`),
    );
    return {
      before,
      columns: [t("draw.column"), nameOf(options.rows, r)],
      rows: columnNames.map((name, c) => [name, value(r, c)]),
    };
  }
  return {
    columns: [t("draw.row"), ...columnNames, ...(options.totals ? ["Σ"] : [])],
    rows: values.map((_, r) => [
      nameOf(options.rows, r),
      ...columnNames.map((_, c) => value(r, c)),
      ...(options.totals ? [number(options.totals[r], 3)] : []),
    ]),
  };
}
