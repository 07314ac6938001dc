// A picture of the page as an SVG or PNG file. Text stays text, and what a figure draws on a canvas is drawn again as
// SVG.

import { download } from "octavo/dom";
import { color } from "octavo/figures/colors";
import { element, escapeXml, SvgContext } from "octavo/figures/svg_context";

const MARGIN = 16; // pixels
const GAP = 10; // between the parts of a picture
const PNG_DENSITY = 2; // pixels of a PNG for a CSS pixel

// Saves a picture under a name. `kind` is "svg" or "png"; `parts` are its elements from top to bottom; `figure` is the
// figure that they belong to, or null.
export async function savePicture(kind, parts, figure, name) {
  const picture = drawSvg(parts, figure);
  const file = new Blob([picture.svg], { type: "image/svg+xml" });
  const fileName = `octavo-${name.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "")}`.slice(0, 60);
  download(kind === "svg" ? file : await toPng(file, picture), `${fileName}.${kind}`);
}

async function toPng(file, { width, height }) {
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    Object.assign(canvas, { width: width * PNG_DENSITY, height: height * PNG_DENSITY });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

// {svg, width, height} of the visible parts, one below the other.
function drawSvg(parts, figure) {
  const visible = parts.filter((part) => part?.checkVisibility() && part.getBoundingClientRect().height);
  const content = [];
  let y = MARGIN;
  let width = 0;
  for (const part of visible) {
    const box = part.getBoundingClientRect();
    content.push(...drawNode(part, { x: MARGIN - box.left, y: y - box.top }, figure));
    y += box.height + GAP;
    width = Math.max(width, box.width);
  }
  const size = { width: Math.ceil(width) + 2 * MARGIN, height: Math.ceil(y - GAP + MARGIN) };
  const background = element("rect", { ...size, fill: color("--surface") });
  const attributes = { xmlns: "http://www.w3.org/2000/svg", ...size, viewBox: `0 0 ${size.width} ${size.height}` };
  return { svg: element("svg", attributes, [background, ...content].join("\n")), ...size };
}

// The SVG of a node and those in it. `offset` is added to places in the window.
function drawNode(node, offset, figure) {
  if (node.nodeType === Node.TEXT_NODE) return drawText(node, offset);
  if (node.nodeType !== Node.ELEMENT_NODE) return [];
  const style = getComputedStyle(node);
  if (!node.checkVisibility() || node.matches(".visually-hidden, .zoom") || style.opacity === "0") return [];
  const box = node.getBoundingClientRect();
  const place = `translate(${(box.left + offset.x).toFixed(2)} ${(box.top + offset.y).toFixed(2)})`;
  if (node === figure?.plot?.root) return [element("g", { transform: place }, drawPlot(figure.plot, box))];
  if (node === figure?.canvas) return [element("g", { transform: place }, redrawCanvas(figure))];
  if (node instanceof HTMLCanvasElement) {
    const { width, height } = box;
    return [element("image", { href: node.toDataURL(), x: box.left + offset.x, y: box.top + offset.y, width, height })];
  }
  if (node instanceof SVGSVGElement)
    return [element("g", { transform: place }, [...node.children].map(copySvg).join(""))];
  const content = [...drawBox(node, style, offset)];
  for (const child of node.childNodes) content.push(...drawNode(child, offset, figure));
  return content;
}

const isTransparent = (text) => text === "transparent" || /[,/] ?0\)$/.test(text);

// The background and the outline of an element, for each line of text that it is on.
function drawBox(node, { backgroundColor, borderTopLeftRadius, outlineStyle, outlineColor, outlineWidth }, offset) {
  const hasFill = !isTransparent(backgroundColor);
  const hasOutline = outlineStyle !== "none";
  if (!hasFill && !hasOutline) return [];
  const paint = {
    fill: hasFill ? backgroundColor : "none",
    stroke: hasOutline ? outlineColor : null,
    "stroke-width": hasOutline ? parseFloat(outlineWidth) : null,
    rx: Math.min(parseFloat(borderTopLeftRadius) || 0, 12) || null,
  };
  return [...node.getClientRects()].map(({ left, top, width, height }) =>
    element("rect", { x: left + offset.x, y: top + offset.y, width, height, ...paint }),
  );
}

// A text node, line by line.
function drawText(node, offset) {
  const { parentElement: parent, data } = node;
  if (!data.trim()) return [];
  const { color: fill, fontStyle, fontWeight, fontSize, fontFamily, direction } = getComputedStyle(parent);
  const range = document.createRange();
  const lines = []; // {text, box}
  for (let i = 0; i < data.length; i += [...data.slice(i)][0].length) {
    const character = [...data.slice(i)][0];
    range.setStart(node, i);
    range.setEnd(node, i + character.length);
    const box = range.getBoundingClientRect();
    if (!box.height) continue;
    const line = lines.at(-1);
    if (line && Math.abs(line.top - box.top) < 3) {
      Object.assign(line, { left: Math.min(line.left, box.left), right: Math.max(line.right, box.right) });
      line.text += character;
    } else lines.push({ text: character, left: box.left, right: box.right, top: box.top, bottom: box.bottom });
  }
  const isRtl = direction === "rtl";
  return lines
    .filter((line) => line.text.trim())
    .map(({ text, left, right, top, bottom }) =>
      element(
        "text",
        {
          x: (isRtl ? right : left) + offset.x,
          y: (top + bottom) / 2 + offset.y,
          dy: "0.34em",
          direction: isRtl ? "rtl" : null,
          fill,
          style: `font:${fontStyle} ${fontWeight} ${fontSize} ${fontFamily};white-space:pre`,
        },
        escapeXml(text),
      ),
    );
}

const COPIED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linecap", "opacity", "font"];

// An SVG element with the styles that a style sheet gives it.
function copySvg(node) {
  const computed = getComputedStyle(node);
  const style = COPIED.map((name) => `${name}:${computed.getPropertyValue(name)}`).join(";");
  const attributes = Object.fromEntries([...node.attributes].map(({ name, value }) => [name, value]));
  const children = [...node.childNodes].map((child) =>
    child.nodeType === Node.TEXT_NODE ? escapeXml(child.data) : child instanceof SVGElement ? copySvg(child) : "",
  );
  return element(node.tagName, { ...attributes, style }, children.join(""));
}

// What a figure draws on its canvas.
function redrawCanvas(figure) {
  const context = new SvgContext();
  figure.canvas.recorder = context;
  figure.draw();
  delete figure.canvas.recorder;
  figure.draw();
  return context.svg;
}

// ---- Curves, which uPlot draws

function drawPlot(plot, rootBox) {
  const over = plot.over.getBoundingClientRect(); // the plotting area
  const context = new SvgContext();
  context.translate(over.left - rootBox.left, over.top - rootBox.top);
  const [x, y] = [(value) => plot.valToPos(value, "x"), (value) => plot.valToPos(value, "y")];
  drawAxis(context, plot.axes[0], (value, label) => [
    [x(value), 0, x(value), over.height],
    [label, x(value), over.height + 16, "center"],
  ]);
  drawAxis(context, plot.axes[1], (value, label) => [
    [0, y(value), over.width, y(value)],
    [label, -8, y(value), "right"],
  ]);
  plot.bands.forEach(({ series: [high, low], fill }) => {
    const points = (column) => plot.data[0].map((value, i) => [x(value), plot.data[column][i]]);
    const edge = (column) => points(column).filter(([, value]) => value !== null);
    context.fillStyle = typeof fill === "function" ? fill(plot) : fill;
    context.beginPath();
    for (const [left, value] of [...edge(high), ...edge(low).reverse()]) context.lineTo(left, y(value));
    context.closePath();
    context.fill();
  });
  plot.series.slice(1).forEach((series, i) => drawSeries(context, series, plot.data[0].map(x), plot.data[i + 1], y));
  return context.svg;
}

function drawAxis(context, { _splits: values, _values: labels }, place) {
  Object.assign(context, { font: "12px sans-serif", textBaseline: "middle", lineWidth: 1 });
  values?.forEach((value, i) => {
    if (value === null || !labels[i]) return;
    const [[x1, y1, x2, y2], [label, x, y, align]] = place(value, labels[i]);
    context.strokeStyle = color("--border");
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2);
    context.stroke();
    Object.assign(context, { fillStyle: color("--quiet"), textAlign: align });
    context.fillText(label, x, y);
  });
}

function drawSeries(context, { stroke, width, dash, points }, xs, values, y) {
  const paint = typeof stroke === "function" ? stroke() : stroke;
  if (paint === "transparent") return;
  Object.assign(context, { strokeStyle: paint, fillStyle: paint, lineWidth: width });
  context.setLineDash(dash ?? []);
  context.beginPath();
  const places = xs.map((x, i) => [x, values[i]]).filter(([, value]) => value !== null && value !== undefined);
  for (const [x, value] of places) context.lineTo(x, y(value));
  context.stroke();
  const hasPoints = typeof points.show === "function" ? false : points.show;
  context.setLineDash([]);
  for (const [x, value] of hasPoints ? places : []) {
    context.beginPath();
    context.arc(x, y(value), 3);
    context.fill();
  }
}
