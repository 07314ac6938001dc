// Curves. uPlot draws the plot; this file adds keyboard control, axis names, a legend, the readout and the table.

import { el, svg } from "octavo/dom";
import { color, fontFamily } from "octavo/figures/colors";
import { createFigure, figureLabel, redraw, setReadout } from "octavo/figures/figure";
import { formatNumber, formatSignificant, language, t } from "octavo/i18n";
import { fileUrl } from "octavo/urls";

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4]];
const INTEGER_STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6];
const [LINEAR, LOGARITHMIC] = [1, 3]; // uPlot's numbers for the distribution of a scale

// uPlot is a sixth of the page and no module, so it is loaded with the first curve, which many users never see.
let loading = null;
const loadUPlot = () =>
  (loading ??= new Promise((resolve) =>
    document.head.append(
      el("script", { src: fileUrl("vendor/uPlot.iife.min.js"), onload: resolve, onerror: () => (loading = null) }),
    ),
  ));

// data: {x: [...], series: [{label, values, color, dash, width, points: true, band: [low, high]}]}; values may be null.
// Lines differ by dash as well as by color (by default --series-1 to --series-6). Options besides a figure's:
//   xName, yName; logX, logY; height; digits of the readout
//   yRange: [min, max]; integerX: ticks of x at whole numbers only
export function lineChart(data, options = {}) {
  const figure = createFigure("lines", drawLines, ({ data, options }) => ({
    columns: [options.xName ?? "x", ...data.series.map((series) => series.label)],
    rows: data.x.map((x, i) => [formatSignificant(x), ...data.series.map((series) => series.values[i] ?? null)]),
  }));
  figure.focusTarget = el("div", { class: "focus-target", tabindex: "0", role: "application" });
  figure.body.append(figure.focusTarget);
  addKeys(figure);
  figure.show = (newData, newOptions = {}) => {
    const oldLast = (figure.data?.x.length ?? 0) - 1;
    const isAtEnd = figure.cursor === undefined || figure.cursor === oldLast;
    const canKeepPlot = figure.plot && figure.data && hasSameLines(figure.data, newData);
    if (isAtEnd) figure.cursor = newData.x.length - 1;
    figure.data = newData;
    if (canKeepPlot && !Object.keys(newOptions).length && figure.body.clientWidth) {
      figure.plot.setData(plotColumns(newData)); // cheap, for curves that grow
      updateReadout(figure);
      figure.table.fill();
    } else figure.setOptions(newOptions);
  };
  figure.show(data, options);
  return figure;
}

function hasSameLines(data, other) {
  const lines = ({ series }) => series.map(({ values, band, ...rest }) => ({ ...rest, hasBand: Boolean(band) }));
  return JSON.stringify(lines(data)) === JSON.stringify(lines(other));
}

function addKeys(figure) {
  figure.focusTarget.addEventListener("keydown", (event) => {
    const last = figure.data.x.length - 1;
    const current = figure.cursor ?? last;
    const step = event.ctrlKey || event.metaKey ? 10 : 1;
    const target = { ArrowRight: current + step, ArrowLeft: current - step, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    moveTo(figure, Math.max(0, Math.min(last, target)));
    event.preventDefault();
    event.stopPropagation();
  });
}

// Moves the cursor of uPlot; its hook `setCursor` then updates the readout.
function moveTo({ plot, data }, i) {
  if (!plot || !data.x.length) return;
  const middle = plot.bbox.height / 2 / devicePixelRatio; // bbox is in device pixels
  plot.setCursor({ left: plot.valToPos(data.x[i], "x"), top: middle });
}

function updateReadout(figure) {
  const { data, options, cursor } = figure;
  if (cursor === undefined || cursor < 0 || !data.x.length) return setReadout(figure, "");
  const pair = (name, value) => el("span", { class: "pair" }, name, " ", el("b", {}, value));
  const values = data.series
    .filter((series) => series.values[cursor] !== null && series.values[cursor] !== undefined)
    .map((series) => pair(el("bdi", {}, series.label), formatNumber(series.values[cursor], options.digits ?? 3)));
  setReadout(figure, [pair(options.xName ?? "x", formatSignificant(data.x[cursor])), ...values]);
}

// ---- Drawing

function drawLines(figure) {
  const { data, options, focusTarget } = figure;
  figure.plot?.destroy();
  figure.plot = null;
  const names = data.series.map((series) => series.label).join(", ");
  focusTarget.setAttribute("aria-label", t("figure.lines", { label: figureLabel(figure), names }));
  if (!globalThis.uPlot) return void loadUPlot().then(() => redraw(figure));
  const strokes = data.series.map((series, i) => color(series.color ?? `--series-${(i % 6) + 1}`));
  figure.plot = new uPlot(plotSettings(figure, strokes), plotColumns(data), focusTarget);
  const axisNames = [
    ["x", options.xName],
    ["y", options.yName],
  ];
  figure.foot.replaceChildren(
    lineLegend(data, strokes),
    ...axisNames
      .filter(([, name]) => name)
      .map(([axis, name]) => el("span", { class: "quiet axis" }, `${axis} · ${name}`)),
  );
  if (figure.cursor === undefined || figure.cursor >= data.x.length) figure.cursor = data.x.length - 1;
  updateReadout(figure);
}

const dashOf = (series, i) => series.dash ?? DASHES[i % DASHES.length];

// The columns as uPlot takes them: x, the lines, then the two edges of each band.
function plotColumns({ x, series }) {
  return [x, ...series.map((line) => line.values), ...series.flatMap((line) => line.band ?? [])];
}

function plotSettings(figure, strokes) {
  const { data, options } = figure;
  const bands = plotBands(data, strokes);
  const edge = { stroke: "transparent", points: { show: false }, width: 0 };
  const axis = {
    stroke: color("--quiet"),
    font: "12px " + fontFamily("sans"),
    grid: { stroke: color("--border"), width: 1 },
    ticks: { show: false },
    gap: 6,
    values: (_, ticks) => ticks.map(formatTick),
  };
  return {
    width: figure.body.clientWidth,
    height: options.height ?? 240,
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
    scales: {
      x: {
        time: false,
        distr: options.logX ? LOGARITHMIC : LINEAR,
        range: (_, min, max) => (min === max ? [min * 0.9, max * 1.1 + 1e-9] : [min, max]),
      },
      y: { distr: options.logY ? LOGARITHMIC : LINEAR, ...(options.yRange && { range: options.yRange }) },
    },
    axes: [
      { ...axis, size: 34, ...(options.integerX && { incrs: INTEGER_STEPS }) },
      { ...axis, size: 58 },
    ],
    series: [
      {},
      ...data.series.map((series, i) => ({
        label: series.label,
        stroke: strokes[i],
        width: series.width ?? 2,
        dash: dashOf(series, i),
        spanGaps: true,
        points: { show: series.points ?? data.x.length < 2, size: 6 },
      })),
      ...Array.from({ length: 2 * bands.length }, () => edge),
    ],
    bands,
    hooks: {
      setCursor: [
        ({ cursor }) => {
          if (cursor.idx === null || cursor.idx === undefined) return;
          figure.cursor = cursor.idx;
          updateReadout(figure);
        },
      ],
    },
  };
}

// The fill between the two edges of each band, which follow the lines in `plotColumns`.
function plotBands({ series }, strokes) {
  const bands = [];
  let column = series.length + 1;
  series.forEach(({ band }, i) => {
    if (!band) return;
    const fill = strokes[i].replace("rgb(", "rgba(").replace(")", ", 0.16)");
    bands.push({ series: [column + 1, column], fill });
    column += 2;
  });
  return bands;
}

function formatTick(value) {
  if (value === null) return "";
  const size = Math.abs(value);
  const isExtreme = size >= 1e4 || (value && size < 1e-3);
  const options = isExtreme ? { notation: size < 1 ? "scientific" : "compact" } : { maximumFractionDigits: 4 };
  return new Intl.NumberFormat(`${language.code}-u-nu-latn`, options).format(value);
}

// The legend: the names of the lines, each beside a sample of its line.
function lineLegend({ series }, strokes) {
  const item = (line, i) => {
    const properties = {
      x1: 0,
      x2: 28,
      y1: 4,
      y2: 4,
      stroke: strokes[i],
      "stroke-width": line.width ?? 2,
      "stroke-dasharray": dashOf(line, i).join(" ") || null,
    };
    const sample = svg("svg", { width: 28, height: 8, "aria-hidden": "true" }, svg("line", properties));
    return el("li", {}, sample, el("bdi", {}, line.label));
  };
  return el("ul", { class: "line-legend" }, series.map(item));
}
