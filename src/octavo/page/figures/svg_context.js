// A canvas context that records what is drawn as SVG: the part of CanvasRenderingContext2D that the page's figures use.

const XML = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
export const escapeXml = (text) => String(text).replace(/[&<>"]/g, (character) => XML[character]);

// An element as text: element("rect", {x: 1}). Attributes that are null are left out.
export function element(tag, attributes = {}, content = "") {
  const pairs = Object.entries(attributes)
    .filter(([, value]) => value !== null && value !== undefined)
    .map(([name, value]) => ` ${name}="${escapeXml(typeof value === "number" ? round(value) : value)}"`);
  return content ? `<${tag}${pairs.join("")}>${content}</${tag}>` : `<${tag}${pairs.join("")}/>`;
}

const round = (value) => Number(value.toFixed(2));

export class SvgContext {
  constructor() {
    this.content = [];
    this.measuring = document.createElement("canvas").getContext("2d");
    this.saved = [];
    this.path = "";
    this.state = {
      fillStyle: "#000",
      strokeStyle: "#000",
      lineWidth: 1,
      lineCap: "butt",
      dash: [],
      font: "10px sans-serif",
      textAlign: "start",
      textBaseline: "alphabetic",
      globalAlpha: 1,
      transform: new DOMMatrix(),
    };
  }

  get svg() {
    return this.content.join("\n");
  }

  // ---- State

  save() {
    this.saved.push({ ...this.state });
  }

  restore() {
    this.state = this.saved.pop() ?? this.state;
  }

  translate(x, y) {
    this.state.transform = this.state.transform.translate(x, y);
  }

  rotate(angle) {
    this.state.transform = this.state.transform.rotate((angle * 180) / Math.PI);
  }

  scale(x, y) {
    this.state.transform = this.state.transform.scale(x, y);
  }

  setLineDash(dash) {
    this.state.dash = dash;
  }

  createPattern(tile) {
    return { id: `pattern-${tile.width}-${tile.height}`, tile };
  }

  measureText(text) {
    this.measuring.font = this.state.font;
    return this.measuring.measureText(text);
  }

  // ---- Shapes

  clearRect() {}

  fillRect(x, y, width, height) {
    this.#add("rect", { x, y, width, height, fill: this.#paint(this.state.fillStyle) });
  }

  strokeRect(x, y, width, height) {
    this.#add("rect", { x, y, width, height, ...this.#stroke() });
  }

  beginPath() {
    this.path = "";
  }

  moveTo(x, y) {
    this.path += `M${round(x)} ${round(y)}`;
  }

  lineTo(x, y) {
    this.path += `${this.path ? "L" : "M"}${round(x)} ${round(y)}`;
  }

  bezierCurveTo(...numbers) {
    this.path += `C${numbers.map(round).join(" ")}`;
  }

  // A whole circle.
  arc(x, y, r) {
    this.path += `M${round(x - r)} ${round(y)}a${round(r)} ${round(r)} 0 1 0 ${round(2 * r)} 0`;
    this.path += `a${round(r)} ${round(r)} 0 1 0 ${round(-2 * r)} 0Z`;
  }

  roundRect(x, y, width, height, r) {
    const [w, h] = [width - 2 * r, height - 2 * r].map(round);
    this.path += `M${round(x + r)} ${round(y)}h${w}a${r} ${r} 0 0 1 ${r} ${r}v${h}a${r} ${r} 0 0 1 ${-r} ${r}`;
    this.path += `h${-w}a${r} ${r} 0 0 1 ${-r} ${-r}v${-h}a${r} ${r} 0 0 1 ${r} ${-r}Z`;
  }

  closePath() {
    this.path += "Z";
  }

  fill() {
    this.#add("path", { d: this.path, fill: this.#paint(this.state.fillStyle) });
  }

  stroke() {
    this.#add("path", { d: this.path, ...this.#stroke() });
  }

  // ---- Text and images

  fillText(text, x, y) {
    this.#addText(text, x, y, { fill: this.#paint(this.state.fillStyle) });
  }

  strokeText(text, x, y) {
    this.#addText(text, x, y, this.#stroke());
  }

  // drawImage(image, x, y, width, height), or with a part of the image first: (image, sx, sy, sw, sh, x, y, w, h).
  drawImage(image, ...numbers) {
    const [x, y, width, height] = numbers.slice(-4);
    const [sx, sy, sw, sh] = numbers.length > 4 ? numbers : [0, 0, image.width, image.height];
    const picture = element("image", {
      href: image.toDataURL(),
      width: image.width,
      height: image.height,
      style: this.imageSmoothingEnabled === false ? "image-rendering:pixelated" : null,
    });
    const viewBox = `${sx} ${sy} ${sw} ${sh}`;
    this.#add("svg", { x, y, width, height, viewBox, preserveAspectRatio: "none" }, picture);
  }

  // ---- Output

  #add(tag, attributes, content) {
    const { transform, globalAlpha } = this.state;
    const { a, b, c, d, e, f } = transform;
    const numbers = [a, b, c, d, e, f].map((number) => Number(number.toFixed(4)));
    const matrix = transform.isIdentity ? null : `matrix(${numbers.join(" ")})`;
    const opacity = globalAlpha < 1 ? Number(globalAlpha.toFixed(3)) : null;
    const shape = element(tag, { ...attributes, opacity }, content);
    this.content.push(matrix ? element("g", { transform: matrix }, shape) : shape);
  }

  #addText(text, x, y, paint) {
    const { font, textAlign, textBaseline } = this.state;
    const anchor = { left: "start", start: "start", center: "middle", right: "end", end: "end" }[textAlign];
    const dy = { middle: "0.35em", top: "0.8em", bottom: "-0.2em" }[textBaseline] ?? null;
    this.#add("text", { x, y, dy, "text-anchor": anchor, style: `font:${font}`, ...paint }, escapeXml(text));
  }

  #stroke() {
    const { strokeStyle, lineWidth, lineCap, dash } = this.state;
    return {
      fill: "none",
      stroke: strokeStyle,
      "stroke-width": lineWidth,
      "stroke-linecap": lineCap === "butt" ? null : lineCap,
      "stroke-dasharray": dash.length ? dash.join(" ") : null,
    };
  }

  #paint(style) {
    if (typeof style === "string") return style;
    const { id, tile } = style;
    const { width, height } = tile;
    if (!this.content.some((part) => part.includes(`id="${id}"`))) {
      const image = element("image", { href: tile.toDataURL(), width, height });
      this.content.push(element("pattern", { id, width, height, patternUnits: "userSpaceOnUse" }, image));
    }
    return `url(#${id})`;
  }
}

// The properties of a canvas context that are assigned.
const ASSIGNED = [
  "fillStyle",
  "strokeStyle",
  "lineWidth",
  "lineCap",
  "font",
  "textAlign",
  "textBaseline",
  "globalAlpha",
];
for (const name of ASSIGNED)
  Object.defineProperty(SvgContext.prototype, name, {
    get() {
      return this.state[name];
    },
    set(value) {
      this.state[name] = value;
    },
  });
