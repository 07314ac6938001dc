// A matrix of numbers as a heat map, with a cursor that the pointer and the arrow keys move from cell to cell.

import { code, el } from "octavo/dom";
import { color, fontFamily, legend, Scale } from "octavo/figures/colors";
import { createFigure, ellipsize, figureLabel, redraw, setReadout, sizeCanvas } from "octavo/figures/figure";
import { formatNumber, formatSignificant, t } from "octavo/i18n";

const MAX_TABLE_CELLS = 4096; // the table of a larger matrix shows one row at a time
const FONT_SIZE = "12px";

// A heat map of `values`, rows of numbers. Rows may differ in length: the server sends those of an attention pattern
// only up to the diagonal. Options besides a figure's:
//   rows, columns          (i) => name; null for `columns`: no names
//   scale                  "signed" (default), "sequential" or "plain" (no colors)
//   max, isCapped          the value of the strongest color; whether some values are greater
//   numbers, digits        print the numbers into cells with room for them
//   isHidden(r, c)         true for cells without a value, such as the future
//   totals                 sums, printed beside the rows
//   readout(r, c, value)   the readout, text or nodes
//   onCursorMove(r, c)     the pointer or an arrow key moved the cursor
//   onPick(r, c)           a cell was clicked, or Enter pressed
//   cursor                 [r, c], where to move the cursor
//   cellHeight, maxCell    in pixels
//   gaps                   the rows before which there is a gap
export function matrix(values, options = {}) {
  const figure = createFigure("matrix", drawMatrix, matrixTable);
  figure.canvas = el("canvas");
  figure.focusTarget = el("div", { class: "focus-target", tabindex: "0", role: "application" }, figure.canvas);
  figure.body.append(figure.focusTarget);
  figure.cursor = [0, 0];
  figure.show = (newValues, newOptions = {}) => {
    figure.values = newValues;
    figure.columnCount = Math.max(0, ...newValues.map((row) => row.length));
    figure.cursor = clampCell(figure, newOptions.cursor ?? figure.cursor);
    figure.setOptions(newOptions);
    updateReadout(figure);
  };
  figure.moveTo = (r, c, trigger = "move") => {
    if (r < 0 || c < 0 || r >= figure.values.length || c >= figure.columnCount) return;
    const [oldRow, oldColumn] = figure.cursor;
    if (r === oldRow && c === oldColumn && trigger !== "pick") return;
    figure.cursor = [r, c];
    redraw(figure);
    updateReadout(figure);
    if (r !== oldRow && !fitsInTable(figure)) figure.table.fill();
    figure.options.onCursorMove?.(r, c);
    if (trigger === "pick") figure.options.onPick?.(r, c);
  };
  addPointer(figure);
  addKeys(figure);
  figure.show(values, options);
  return figure;
}

const clamp = (value, max) => Math.max(0, Math.min(value, max));
const clampCell = ({ values, columnCount }, [r, c]) => [clamp(r, values.length - 1), clamp(c, columnCount - 1)];
const fitsInTable = (figure) => figure.values.length * figure.columnCount <= MAX_TABLE_CELLS;
const nameOf = (names, i) => (typeof names === "function" ? names(i) : names?.[i]) ?? String(i);

function addPointer(figure) {
  const { canvas } = figure;
  const cellAt = (event) => {
    const box = canvas.getBoundingClientRect();
    return figure.layout && findCell(figure.layout, event.clientX - box.left, event.clientY - box.top);
  };
  canvas.addEventListener("pointermove", (event) => {
    const cell = event.pointerType === "touch" ? null : cellAt(event);
    if (cell) figure.moveTo(...cell);
  });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) figure.moveTo(...cell, "pick");
  });
}

function addKeys(figure) {
  figure.focusTarget.addEventListener("keydown", (event) => {
    const [r, c] = figure.cursor;
    const step = event.ctrlKey || event.metaKey ? 10 : 1;
    const target = {
      ArrowRight: [r, c + step],
      ArrowLeft: [r, c - step],
      ArrowDown: [r + step, c],
      ArrowUp: [r - step, c],
      Home: [r, 0],
      End: [r, Infinity],
      PageUp: [0, c],
      PageDown: [Infinity, c],
    }[event.key];
    if (target) figure.moveTo(...clampCell(figure, target));
    else if (event.key === "Enter" || event.key === " ") figure.moveTo(r, c, "pick");
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

function updateReadout(figure) {
  const { options, values } = figure;
  const [r, c] = figure.cursor;
  if (!values.length || !figure.columnCount) return setReadout(figure, "");
  const value = values[r][c];
  const defaultReadout = () => code(`[${r}, ${c}] = ${formatSignificant(value)}`);
  setReadout(figure, options.readout ? options.readout(r, c, value) : defaultReadout());
}

// ---- Drawing

function drawMatrix(figure) {
  const { options, canvas, values, columnCount } = figure;
  const isEmpty = !values.length || !columnCount;
  canvas.toggleAttribute("hidden", isEmpty);
  if (isEmpty) return;
  const label = t("figure.matrix", { label: figureLabel(figure), rows: values.length, columns: columnCount });
  figure.focusTarget.setAttribute("aria-label", label);
  const layout = (figure.layout = measureLayout(figure));
  const context = sizeCanvas(canvas, layout.canvasWidth, layout.canvasHeight);
  const scale = new Scale(options.scale ?? "signed", options.max ?? largestValue(figure));
  if (layout.cellWidth < 4 || layout.cellHeight < 3) drawPixels(context, figure, layout, scale);
  else drawCells(context, figure, layout, scale);
  context.font = `${FONT_SIZE} ${fontFamily("mono")}`;
  context.textBaseline = "middle";
  drawRowNames(context, figure, layout);
  if (options.columns !== null) drawColumnNames(context, figure, layout);
  if (options.totals) drawTotals(context, figure, layout);
  drawCursor(context, figure, layout);
  const step = largestNameStep(options, layout);
  figure.foot.replaceChildren(
    ...(scale.kind === "plain" ? [] : [legend(scale, options.isCapped)]),
    ...(step > 1 ? [el("span", { class: "quiet" }, t("figure.every_nth", { n: step }))] : []),
  );
}

// The names of rows and columns, and the places of names and cells in pixels.
function measureLayout({ options, values, canvas, body, columnCount }) {
  const rowCount = values.length;
  const context = canvas.getContext("2d");
  context.font = `${FONT_SIZE} ${fontFamily("mono")}`;
  const rowNames = Array.from({ length: rowCount }, (_, r) => nameOf(options.rows, r));
  const columnNames = Array.from({ length: columnCount }, (_, c) => nameOf(options.columns, c));
  const widest = (names) => Math.max(...names.slice(0, 200).map((name) => context.measureText(name).width));

  const available = body.clientWidth;
  const left = Math.ceil(Math.min(available < 480 ? 64 : 150, widest(rowNames))) + 10;
  const totalsWidth = options.totals ? 52 : 0;
  const cellWidth = Math.min(options.maxCell ?? 56, (available - left - totalsWidth - 2) / columnCount);
  const minHeight = rowCount <= 40 ? 15 : rowCount <= 80 ? 8 : 0;
  const cellHeight = options.cellHeight ?? Math.max(Math.min(cellWidth, options.numbers ? 28 : 40), minHeight);

  // Column names that are numbers are never rotated, and every 1st, 2nd, 5th, 10th, ... is printed. In such a matrix
  // the row names, numbers or not, are printed at such steps too.
  const hasNumberedColumns = columnNames.every((name) => /^\d+$/.test(name));
  const isRotated = !hasNumberedColumns && widest(columnNames) > cellWidth - 4;
  const columnStep = hasNumberedColumns
    ? roundStep((widest(columnNames) + 8) / cellWidth)
    : Math.max(1, Math.ceil((isRotated ? 14 : 4) / cellWidth));
  const rowStep = hasNumberedColumns ? roundStep(13 / cellHeight) : Math.max(1, Math.ceil(13 / cellHeight));
  const rotatedHeight = () => Math.min(72, widest(columnNames.filter((_, c) => c % columnStep === 0))) + 10;
  const top = options.columns === null ? 4 : Math.ceil(isRotated ? rotatedHeight() : 20);

  const gaps = options.gaps ?? [];
  const gapsAbove = (r) => 12 * gaps.filter((row) => row <= r).length;
  return {
    rowCount,
    columnCount,
    rowNames,
    columnNames,
    rowStep,
    columnStep,
    hasNumberedColumns,
    isRotated,
    left,
    top,
    cellWidth,
    cellHeight,
    gaps,
    x: (c) => left + c * cellWidth,
    y: (r) => top + r * cellHeight + gapsAbove(r),
    canvasWidth: left + cellWidth * columnCount + totalsWidth + 2,
    canvasHeight: top + cellHeight * rowCount + gapsAbove(rowCount) + 2,
  };
}

// The n of "every nth name is printed", for rows or columns. Numbers don't count: the names between them are plain.
function largestNameStep(options, { rowNames, rowStep, columnStep, hasNumberedColumns }) {
  const hasNumberedRows = rowNames.every((name) => /^\d+$/.test(name));
  const ofColumns = hasNumberedColumns || options.columns === null ? 1 : columnStep;
  return Math.max(hasNumberedRows ? 1 : rowStep, ofColumns);
}

// The next of 1, 2, 5, 10, 20, ... that is large enough.
function roundStep(least) {
  for (let power = 1; ; power *= 10) for (const step of [1, 2, 5]) if (step * power >= least) return step * power;
}

function findCell({ rowCount, columnCount, left, cellWidth, cellHeight, y }, pointerX, pointerY) {
  const c = Math.floor((pointerX - left) / cellWidth);
  if (c < 0 || c >= columnCount) return null;
  for (let r = 0; r < rowCount; r++) if (pointerY >= y(r) && pointerY < y(r) + cellHeight) return [r, c];
  return null;
}

const isEmptyCell = ({ values, options }, r, c) =>
  c >= values[r].length || values[r][c] === null || options.isHidden?.(r, c);

function largestValue({ values, options }) {
  let max = 0;
  values.forEach((row, r) =>
    row.forEach((value, c) => {
      if (!options.isHidden?.(r, c)) max = Math.max(max, Math.abs(value));
    }),
  );
  return max;
}

// Draws one pixel per cell on a second canvas and scales that up: for cells too small to be drawn one by one.
function drawPixels(context, figure, layout, scale) {
  const { rowCount, columnCount, left, cellWidth, cellHeight, gaps, y } = layout;
  const pixels = new ImageData(columnCount, rowCount);
  const surface = color("--surface").match(/\d+/g).map(Number).slice(0, 3);
  figure.values.forEach((row, r) => {
    for (let c = 0; c < columnCount; c++) {
      const rgb = isEmptyCell(figure, r, c) ? surface : scale.rgb(row[c]);
      pixels.data.set([...rgb, 255], 4 * (r * columnCount + c));
    }
  });
  const pixelCanvas = el("canvas", { width: columnCount, height: rowCount });
  pixelCanvas.getContext("2d").putImageData(pixels, 0, 0);
  context.imageSmoothingEnabled = cellWidth * (window.devicePixelRatio || 1) < 1;
  const edges = [0, ...gaps.filter((r) => r > 0 && r < rowCount), rowCount];
  for (let i = 1; i < edges.length; i++) {
    const [first, count] = [edges[i - 1], edges[i] - edges[i - 1]]; // the rows between two gaps
    const [width, height] = [cellWidth * columnCount, cellHeight * count];
    context.drawImage(pixelCanvas, 0, first, columnCount, count, left, y(first), width, height);
  }
}

function drawCells(context, figure, { rowCount, columnCount, cellWidth, cellHeight, x, y }, scale) {
  const { values, options } = figure;
  const border = Math.min(cellWidth, cellHeight) >= 12 ? 1 : 0;
  const hatching = hatchPattern(context);
  const digits = scale.kind === "plain" ? 0 : (options.digits ?? (scale.max < 0.5 ? 3 : 2));
  const hasNumbers = options.numbers && cellWidth >= 38 && cellHeight >= 14;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.font = `${cellWidth >= (digits > 2 ? 54 : 46) ? FONT_SIZE : "11px"} ${fontFamily("mono")}`;
  for (let r = 0; r < rowCount; r++) {
    for (let c = 0; c < columnCount; c++) {
      const isEmpty = isEmptyCell(figure, r, c);
      context.fillStyle = isEmpty ? hatching : scale.css(values[r][c]);
      context.fillRect(x(c), y(r), cellWidth - border, cellHeight - border);
      if (!hasNumbers || isEmpty) continue;
      context.fillStyle = scale.ink(values[r][c]);
      const text = fitNumber(context, values[r][c], digits, cellWidth - 3);
      context.fillText(text, x(c) + cellWidth / 2, y(r) + cellHeight / 2 + 0.5);
    }
  }
}

// A number for a small cell: -0.03, 12.4, 128; without its leading 0 if that is too wide.
function fitNumber(context, value, digits, width) {
  const size = Math.abs(value);
  const text = formatNumber(value, size >= 100 ? 0 : size >= 10 ? Math.min(1, digits) : digits);
  return context.measureText(text).width <= width ? text : text.replace(/^(\W*)0(?=[.,])/, "$1");
}

function hatchPattern(context) {
  const tile = el("canvas", { width: 6, height: 6 });
  const tileContext = tile.getContext("2d");
  tileContext.strokeStyle = color("--border");
  tileContext.beginPath();
  tileContext.moveTo(-1, 7);
  tileContext.lineTo(7, -1);
  tileContext.stroke();
  return context.createPattern(tile, "repeat");
}

// The name at the cursor is always printed; of the others every step-th one, unless it is within `minDistance` of the
// cursor's.
function isNamePrinted(i, cursor, step, minDistance) {
  if (i === cursor) return true;
  return i % step === 0 && !(step > 1 && Math.abs(i - cursor) < minDistance);
}

function drawRowNames(context, { cursor }, { rowCount, rowNames, rowStep, left, cellHeight, y }) {
  context.textAlign = "right";
  for (let r = 0; r < rowCount; r++) {
    if (!isNamePrinted(r, cursor[0], rowStep, rowStep)) continue;
    context.fillStyle = color(r === cursor[0] ? "--ink" : "--quiet");
    context.fillText(ellipsize(context, rowNames[r], left - 8), left - 7, y(r) + 0.5 * cellHeight);
  }
}

function drawColumnNames(context, { cursor }, layout) {
  const { columnCount, columnNames, columnStep, hasNumberedColumns, isRotated, top, cellWidth, x } = layout;
  for (let c = 0; c < columnCount; c++) {
    if (!isNamePrinted(c, cursor[1], columnStep, Math.min(columnStep, 60 / cellWidth))) continue;
    const width = isRotated ? 70 : cellWidth + 8;
    const name = hasNumberedColumns ? columnNames[c] : ellipsize(context, columnNames[c], width);
    context.fillStyle = color(c === cursor[1] ? "--ink" : "--quiet");
    context.save();
    context.translate(x(c + 0.5), top - 6);
    if (isRotated) context.rotate(-Math.PI / 2);
    context.textAlign = isRotated ? "left" : "center";
    context.fillText(name, 0, isRotated ? 0 : -4);
    context.restore();
  }
}

function drawTotals(context, { options, cursor }, { rowCount, rowStep, top, cellHeight, canvasWidth, y }) {
  context.textAlign = "right";
  context.fillStyle = color("--quiet");
  context.fillText("Σ", canvasWidth - 4, top - 10);
  for (let r = 0; r < rowCount; r++) {
    if (!isNamePrinted(r, cursor[0], rowStep, rowStep)) continue;
    context.fillStyle = color(r === cursor[0] ? "--ink" : "--quiet");
    context.fillText(formatNumber(options.totals[r], 3), canvasWidth - 4, y(r) + 0.5 * cellHeight);
  }
}

// Draws a frame around the cell at the cursor; around its row and its column if the cell is very small.
function drawCursor(context, { cursor: [r, c] }, layout) {
  const { rowCount, columnCount, left, top, cellWidth, cellHeight, x, y } = layout;
  context.strokeStyle = color("--mark");
  if (Math.min(cellWidth, cellHeight) < 6) {
    context.lineWidth = 1;
    context.globalAlpha = 0.6;
    context.strokeRect(left, y(r) - 0.5, cellWidth * columnCount, cellHeight + 1);
    context.strokeRect(x(c) - 0.5, top, cellWidth + 1, y(rowCount) - top);
    context.globalAlpha = 1;
  } else {
    context.lineWidth = 2;
    context.strokeRect(x(c) - 0.5, y(r) - 0.5, cellWidth, cellHeight);
  }
}

// ---- The table

function matrixTable(figure) {
  const { values, options, columnCount } = figure;
  const columnNames = Array.from({ length: columnCount }, (_, c) => nameOf(options.columns, c));
  const value = (r, c) => (c >= values[r].length || options.isHidden?.(r, c) ? "" : values[r][c]);
  const total = (r) => formatNumber(options.totals[r], 3);
  if (!fitsInTable(figure)) {
    const [r, column] = figure.cursor;
    return {
      before: rowChooser(figure, r, column, options.totals && ` Σ = ${total(r)}`),
      columns: [t("figure.column"), nameOf(options.rows, r)],
      rows: columnNames.map((name, c) => [name, value(r, c)]),
    };
  }
  return {
    columns: [t("figure.row"), ...columnNames, ...(options.totals ? ["Σ"] : [])],
    rows: values.map((_, r) => [
      nameOf(options.rows, r),
      ...columnNames.map((_, c) => value(r, c)),
      ...(options.totals ? [total(r)] : []),
    ]),
  };
}

function rowChooser(figure, row, column, total) {
  const last = figure.values.length - 1;
  const onchange = () => figure.moveTo(clamp(input.valueAsNumber || 0, last), column);
  const input = el("input", { type: "number", min: 0, max: last, value: row, onchange });
  const label = el("label", { class: "field" }, el("span", {}, t("figure.row")), input);
  return el("p", {}, label, total && el("span", { class: "quiet" }, total));
}
