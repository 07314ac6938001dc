// Curves, by uPlot. It draws; keys, names, readout and table are ours.

import { colour, fillTable, fontOf, frame, redraw, tell } from "octavo/pictures/figure";
import { el, exact, language, number, svg, t } from "octavo/dom";

const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [4, 2], [12, 4]];

// uPlot is a sixth of the page and no module: it is asked for with the first curve, which many a reader never draws.
let coming = null;
const uPlotThere = () =>
  (coming ??= new Promise((done) =>
    document.head.append(
      el("script", { src: "/page/vendor/uPlot.iife.min.js", onload: done, onerror: () => (coming = null) }),
    ),
  ));

// {x: [...], series: [{label, values, colour, dash, width, points: true, band: [low, high]}]}; values may be null. Options:
//   xName, yName; logX, logY; height; digits; marker: an x that is marked; onCursor(at) where the cursor stands
//   yRange: [least, most]; whole: x has whole numbers only
// Lines differ by dash as well as by colour. Colours go --line-1 to --line-6 unless they are given.
export function lineChart(data, options = {}) {
  const figure = frame("lines", options, drawLines, ({ data, options }) => ({
    columns: [options.xName ?? "x", ...data.series.map((each) => each.label)],
    rows: [...data.x.keys()].map((i) => [exact(data.x[i]), ...data.series.map((each) => each.values[i] ?? null)]),
  }));
  figure.stage = el("div", { class: "stage", tabindex: "0", role: "application" });
  figure.body.append(figure.stage);
  figure.stage.addEventListener("keydown", (event) => {
    const last = figure.data.x.length - 1;
    const at = figure.at ?? last;
    const far = event.ctrlKey || event.metaKey ? 10 : 1;
    const to = { ArrowRight: at + far, ArrowLeft: at - far, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    figure.moveTo(Math.max(0, Math.min(last, to)));
    event.preventDefault();
    event.stopPropagation();
  });
  figure.moveTo = (at) => {
    const { plot, data } = figure;
    if (!plot || !data.x.length) return;
    plot.setCursor({ left: plot.valToPos(data.x[at], "x"), top: plot.bbox.height / 2 / devicePixelRatio });
  };
  figure.show = (newData, more = {}) => {
    const sameLines =
      figure.plot &&
      figure.data &&
      JSON.stringify(figure.data.series.map(bare)) === JSON.stringify(newData.series.map(bare));
    const follows = figure.at === undefined || figure.at === (figure.data?.x.length ?? 0) - 1;
    if (follows) figure.at = newData.x.length - 1;
    figure.data = newData;
    if (sameLines && !Object.keys(more).length && figure.body.clientWidth) {
      figure.plot.setData(columnsOf(newData)); // the cheap way, for curves that grow
      sayLine(figure);
      fillTable(figure);
    } else figure.set(more);
  };
  figure.show(data, options);
  return figure;
}

const bare = ({ values, band, ...rest }) => ({ ...rest, banded: !!band });

function columnsOf({ x, series }) {
  return [x, ...series.map((each) => each.values), ...series.flatMap((each) => each.band ?? [])];
}

function drawLines(figure) {
  const { data, options, stage } = figure;
  figure.plot?.destroy();
  figure.plot = null;
  stage.setAttribute(
    "aria-label",
    t("draw.lines", {
      label: options.label ?? figure.caption.textContent,
      names: data.series.map((each) => each.label).join(", "),
    }),
  );
  if (!globalThis.uPlot) return void uPlotThere().then(() => redraw(figure));
  const strokes = data.series.map((each, i) => colour(each.colour ?? `--line-${(i % 6) + 1}`));
  const ink = colour("--quiet");
  const axis = {
    stroke: ink,
    font: "12px " + fontOf("sans"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { show: false },
    gap: 6,
    values: (_, splits) =>
      splits.map((each) =>
        each === null
          ? ""
          : Math.abs(each) >= 1e4 || (each && Math.abs(each) < 1e-3)
            ? new Intl.NumberFormat(`${language.code}-u-nu-latn`, {
                notation: Math.abs(each) < 1 ? "scientific" : "compact",
              }).format(each)
            : new Intl.NumberFormat(`${language.code}-u-nu-latn`, { maximumFractionDigits: 4 }).format(each),
      ),
  };
  const count = data.series.length;
  const bands = [];
  let next = count + 1;
  data.series.forEach((each, i) => {
    if (!each.band) return;
    bands.push({ series: [next + 1, next], fill: strokes[i].replace("rgb(", "rgba(").replace(")", ", 0.16)") });
    next += 2;
  });
  const hidden = { stroke: "transparent", points: { show: false }, width: 0 };
  figure.plot = new uPlot(
    {
      width: figure.body.clientWidth,
      height: options.height ?? 240,
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: {
          time: false,
          distr: options.logX ? 3 : 1,
          range: (_, least, most) => (least === most ? [least * 0.9, most * 1.1 + 1e-9] : [least, most]),
        },
        y: { distr: options.logY ? 3 : 1, ...(options.yRange && { range: options.yRange }) },
      },
      axes: [
        {
          ...axis,
          size: 34,
          ...(options.whole && { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6] }),
        },
        { ...axis, size: 58 },
      ],
      series: [
        {},
        ...data.series.map((each, i) => ({
          label: each.label,
          stroke: strokes[i],
          width: each.width ?? 2,
          dash: each.dash ?? DASHES[i % DASHES.length],
          spanGaps: true,
          points: { show: each.points ?? data.x.length < 2, size: 6 },
        })),
        ...Array.from({ length: 2 * bands.length }, () => hidden),
      ],
      bands,
      hooks: {
        setCursor: [
          (plot) => {
            if (plot.cursor.idx === null || plot.cursor.idx === undefined) return;
            figure.at = plot.cursor.idx;
            sayLine(figure);
            options.onCursor?.(figure.at);
          },
        ],
        draw: [
          (plot) => {
            if (options.marker === undefined || options.marker === null) return;
            const x = plot.valToPos(options.marker, "x", true);
            plot.ctx.strokeStyle = colour("--mark");
            plot.ctx.lineWidth = devicePixelRatio;
            plot.ctx.beginPath();
            plot.ctx.moveTo(x, plot.bbox.top);
            plot.ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
            plot.ctx.stroke();
          },
        ],
      },
    },
    columnsOf(data),
    stage,
  );
  figure.foot.replaceChildren(
    el(
      "ul",
      { class: "keys" },
      data.series.map((each, i) => {
        const dash = each.dash ?? DASHES[i % DASHES.length];
        const line = svg(
          "svg",
          { width: 28, height: 8, "aria-hidden": "true" },
          svg("line", {
            x1: 0,
            x2: 28,
            y1: 4,
            y2: 4,
            stroke: strokes[i],
            "stroke-width": each.width ?? 2,
            "stroke-dasharray": dash.join(" ") || null,
          }),
        );
        return el("li", {}, line, el("bdi", {}, each.label));
      }),
    ),
    ...[
      ["x", options.xName],
      ["y", options.yName],
    ]
      .filter(([, name]) => name)
      .map(([axis, name]) => el("span", { class: "quiet axis" }, `${axis} · ${name}`)),
  );
  if (figure.at === undefined || figure.at >= data.x.length) figure.at = data.x.length - 1;
  sayLine(figure);
}

function sayLine(figure) {
  const { data, options, at } = figure;
  if (at === undefined || at < 0 || !data.x.length) return tell(figure, "");
  const values = data.series
    .filter((each) => each.values[at] !== null && each.values[at] !== undefined)
    .map((each) =>
      el(
        "span",
        { class: "pair" },
        el("bdi", {}, each.label),
        " ",
        el("b", {}, options.format ? options.format(each.values[at]) : number(each.values[at], options.digits ?? 3)),
      ),
    );
  tell(figure, [el("span", { class: "pair" }, options.xName ?? "x", " ", el("b", {}, exact(data.x[at]))), ...values]);
}
