// The sizes of a stage of the served model or of GPT-2: facts, the meaning of the axis letters, and small pictures
// of how the width is split and widened.

import { code, el, tNodes } from "octavo/dom";
import { formatCount, t } from "octavo/i18n";
import { countParameters, GPT2_SIZES } from "octavo/tabs/walk/stages";

const AXIS_NAMES = { B: "batch_size", T: "seq_len", C: "n_embd", H: "n_head", V: "vocab_size" };
const GPT2_POSITIONS = 1024; // the block_size of GPT-2 itself; GPT2_SIZES has 512

// The served model's sizes by axis letter, and the other numbers that sentences and formulas of the walk name.
export function modelSizes({ model, layer, head, shapes }) {
  const { n_layer: L, n_head: H, n_embd: C, vocab_size: V, block_size: block } = model.model;
  const T = shapes.tokens.length;
  return { B: 1, T, C, H, D: C / H, V, "4C": 4 * C, mlp_width: 4 * C, L, block, layer, head };
}

// ---- Facts

export const fact = (key, value) => el("div", {}, el("dt", { textKey: key }), el("dd", {}, value));

// The same stage in GPT-2.
export function gpt2Facts({ axes, module, formula, isPerLayer }, sizes) {
  const shape = axes.split(" ").map((axis) => GPT2_SIZES[axis]);
  const gpt2Module = module?.(GPT2_SIZES);
  const perLayer = (text) => (isPerLayer ? `${text} · ${t("walk.times", { n: GPT2_SIZES.L })}` : text);
  const parameters = ({ isTied, parameters: n }) => (isTied ? tNodes("walk.tied") : perLayer(formatCount(n)));
  const isOtherFormula = formula(GPT2_SIZES) !== formula(sizes);
  const fullCount = countParameters({ ...GPT2_SIZES, block: GPT2_POSITIONS });
  const total = el("small", {}, tNodes("walk.total.full", { positions: GPT2_POSITIONS, n: fullCount }));
  return el(
    "dl",
    { class: "facts other" },
    fact("walk.gpt2.shape", code(`[${shape.join(", ")}]`, { class: "big" })),
    gpt2Module && fact("walk.parameters", [parameters(gpt2Module), " ", code(gpt2Module.definition)]),
    isOtherFormula && fact("walk.formula", code(formula(GPT2_SIZES))),
    fact("walk.total", [formatCount(countParameters(GPT2_SIZES)), " ", total]),
  );
}

// The meaning of the axis letters of a shape.
export function axisList(axes, sizes) {
  const letters = [...new Set(axes.split(" "))];
  if (letters.includes("D")) letters.push("C");
  const meaning = (axis) => {
    if (axis === "D") return `${sizes.C} / ${sizes.H} = ${sizes.D}`;
    if (axis === "4C") return `4 · ${sizes.C} = ${sizes["4C"]}`;
    return `${AXIS_NAMES[axis]} = ${sizes[axis]}`;
  };
  const item = (axis) =>
    el("li", {}, el("b", { dir: "ltr" }, `${axis} = ${meaning(axis)}`), " ", el("span", { textKey: `axis.${axis}` }));
  return el("ul", { class: "letters" }, letters.map(item));
}

// ---- Small pictures of sizes

// The caption of a picture. It says so if the picture shows GPT-2.
const pictureCaption = (isGpt2, key, values) =>
  el(
    "p",
    { class: "quiet" },
    isGpt2 && [el("b", { textKey: "walk.gpt2.prefix" }), " "],
    el("span", { textKey: [key, values] }),
  );

const sizesPicture = (caption, ...children) =>
  el("div", { class: "aside" }, caption, el("div", { class: "sizes", "aria-hidden": "true" }, children));

// The width, split into heads; the head with index `head` is marked.
export function headsPicture({ C, H, D, head }, isGpt2) {
  const heads = [...Array(H).keys()].map((h) => el("span", { class: h === head ? "current" : null }));
  return sizesPicture(
    pictureCaption(isGpt2, "walk.split", { head, H, D }),
    el("div", { class: "split" }, heads),
    el("code", {}, `C = H · D = ${H} · ${D} = ${C}`),
  );
}

// C -> 4C -> C as bars; the width of the stage with that id is marked.
export function widthsPicture({ C }, id, isGpt2) {
  const bar = (ratio, text, isMarked = false) => {
    const length = { "inline-size": `${100 * ratio}%` };
    return el(
      "div",
      { class: "width" },
      el("span", { class: isMarked ? "current" : null, style: length }),
      el("code", {}, text),
    );
  };
  return sizesPicture(
    pictureCaption(isGpt2, "walk.width", { C, mlp_width: 4 * C }),
    bar(0.25, `C = ${C}`),
    bar(1, `4C = ${4 * C}`, id === "fc"),
    bar(0.25, `C = ${C}`, id === "mlp_proj"),
  );
}
