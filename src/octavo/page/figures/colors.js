// The theme's colors as a canvas takes them, and color scales for numbers.

import { el } from "octavo/dom";
import { formatNumber, formatSignificant } from "octavo/i18n";

const probe = el("span", { hidden: true });
document.head.after(probe);

// A color of style.css, resolved: color("--accent").
export function color(name) {
  probe.style.color = `var(${name})`;
  return getComputedStyle(probe).color;
}

// A font of style.css: fontFamily("mono").
export const fontFamily = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

// Colors the background of a token in running text by a number between 0 and 1. The text stays readable.
export function shadeSpan(span, ratio) {
  const strength = Math.round(6 + 38 * Math.sqrt(Math.min(1, ratio)));
  span.style.backgroundColor = ratio > 0.01 ? `color-mix(in srgb, var(--accent) ${strength}%, transparent)` : "";
}

// ---- Scales

const STOPS = {
  plain: ["--sequential-0", "--sequential-0"],
  sequential: ["--sequential-0", "--sequential-1", "--sequential-2", "--sequential-3"],
  signed: ["--minus-2", "--minus-1", "--sequential-0", "--plus-1", "--plus-2"],
};
let ramps = {};

// Call this after a change of theme.
export function clearColorRamps() {
  ramps = {};
}

// 256 colors from the least to the greatest, [red, green, blue] each.
function colorRamp(kind) {
  if (ramps[kind]) return ramps[kind];
  const context = el("canvas", { width: 256, height: 1 }).getContext("2d", { willReadFrequently: true });
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  STOPS[kind].forEach((name, i, all) => gradient.addColorStop(i / (all.length - 1), color(name)));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  const bytes = context.getImageData(0, 0, 256, 1).data;
  return (ramps[kind] = Array.from({ length: 256 }, (_, i) => [bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2]]));
}

// Colors for numbers. Kind "sequential" goes from 0 to `max` by the square root, so that small values are visible;
// "signed" goes from -max to max; "plain" has no colors.
export class Scale {
  constructor(kind, max) {
    Object.assign(this, { kind, max: max || 1, ramp: colorRamp(kind) });
  }

  rgb(value) {
    const ratio = Math.max(-1, Math.min(1, value / this.max));
    const position = this.kind === "sequential" ? Math.sqrt(Math.max(0, ratio)) : (ratio + 1) / 2;
    return this.ramp[Math.round(255 * position)];
  }

  css(value) {
    return `rgb(${this.rgb(value).join(" ")})`;
  }

  // The color of text on that background.
  ink(value) {
    const [r, g, b] = this.rgb(value).map((channel) => (channel / 255) ** 2.2);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#15161a" : "#ffffff";
  }

  get ticks() {
    return this.kind === "sequential" ? [0, this.max / 4, this.max] : [-this.max, 0, this.max];
  }
}

// A scale's color bar with its ticks. `isCapped`: some values are beyond the last tick.
export function legend(scale, isCapped) {
  const bar = el("canvas", { width: 128, height: 1, class: "ramp", "aria-hidden": "true" });
  const context = bar.getContext("2d");
  for (let i = 0; i < 128; i++) {
    context.fillStyle = `rgb(${scale.ramp[2 * i].join(" ")})`;
    context.fillRect(i, 0, 1, 1);
  }
  const format = (tick) =>
    tick && Math.abs(tick) < 0.01
      ? formatSignificant(Number(tick.toPrecision(2)))
      : formatNumber(tick, tick && Math.abs(tick) < 10 ? 2 : 0);
  const ticks = scale.ticks.map((tick, i, all) =>
    el("span", {}, (isCapped && i === all.length - 1 ? "≥ " : "") + format(tick)),
  );
  return el("div", { class: "legend", dir: "ltr" }, bar, el("div", { class: "ticks" }, ticks));
}
