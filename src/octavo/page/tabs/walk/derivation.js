// How a value of the walk was computed: a sentence and the formula, filled with the numbers that the page has.

import { code, el, tNodes } from "octavo/dom";
import { formatSignificant } from "octavo/i18n";
import { chip } from "octavo/tokens";

const MAX_EXPONENT = 30; // if a score is above it, the formula of softmax subtracts the maximum from all scores
const MAX_TERMS = 5; // of a sum

// The derivation of the value in cell [r, c] of a stage, as nodes. `loaded` is that of tabs/walk.js, and
// `sizes` is `modelSizes(loaded)`.
export function deriveCell(id, r, c, value, loaded, sizes) {
  const isMasked = ["scores", "softmax"].includes(id) && c > r;
  const key = `walk.${id}.${isMasked ? "masked" : "derivation"}`;
  const formula = formulas(r, c, value, loaded, sizes)[id]();
  return [
    el("span", {}, tNodes(key, sentenceValues(id, r, c, value, loaded, sizes))),
    code(formula.join("\n"), { class: "derivation" }),
  ];
}

function sentenceValues(id, r, c, value, { layer, head, shapes, stages, vocabulary }, { C, D, mlp_width }) {
  const { tokens } = shapes;
  const [token, other] = [tokens[r], tokens[c]];
  const values = {
    t: r,
    s: c,
    layer,
    head,
    C,
    D,
    mlp_width,
    weight_row: head * D + c,
    id: token?.id,
    token: token && chip(token),
    other: other && chip(other),
  };
  if (id === "idx") Object.assign(values, { t: c, token: chip(other), id: value });
  if (id === "logits") {
    const tokenId = stages.get("logits").columns?.[c]; // the columns are the most likely tokens
    const label = vocabulary[tokenId] ?? `#${tokenId}`;
    Object.assign(values, { s: tokenId, other: chip({ label, bytes: null }) });
  }
  return values;
}

// The formula of each stage, as lines of text.
function formulas(r, c, value, loaded, { D }) {
  const { layer, head, shapes, stages } = loaded;
  const valuesOf = (name) => stages.get(name).values;
  const layerInput = layer === 0 ? valuesOf("x") : loaded.layerInput;
  const tokenId = shapes.tokens[r]?.id;

  const sum = (name, first, second, x, y) => [
    `${name}[${r}, ${c}] = ${first}[${r}, ${c}] + ${second}[${r}, ${c}]`,
    ...(x === undefined ? [] : [`= ${formatSignificant(x)} + ${inParentheses(y)}`]),
    `= ${formatSignificant(value)}`,
  ];
  const norm = (name, x) => [
    `${name}(x)[${r}, ${c}] = (x[${r}, ${c}] − mean(x[${r}])) / std(x[${r}]) · weight[${c}] + bias[${c}]`,
    ...(x === undefined ? [] : [`x[${r}, ${c}] = ${formatSignificant(x)}`]),
    `${name}(x)[${r}, ${c}] = ${formatSignificant(value)}`,
  ];
  // The products are too many to print, so the formula names them.
  const product = (name, row, weights, weightRow = c) => [
    `${name}[${r}, ${c}] = ${row}[${r}] · ${weights}.weight[${weightRow}] + ${weights}.bias[${weightRow}]`,
    `= ${formatSignificant(value)}`,
  ];
  return {
    idx: () => [`idx[0, ${c}] = ${value}`],
    wte: () => [`wte[${tokenId}, ${c}] = ${formatSignificant(value)}`],
    wpe: () => [`wpe[${r}, ${c}] = ${formatSignificant(value)}`],
    x: () => [
      `x[${r}, ${c}] = wte[${tokenId}, ${c}] + wpe[${r}, ${c}]`,
      `= ${formatSignificant(valuesOf("wte")[r][c])} + ${inParentheses(valuesOf("wpe")[r][c])}`,
      `= ${formatSignificant(value)}`,
    ],
    ln_1: () => norm("ln_1", layerInput?.[r][c]),
    qkv: () => product("q", "ln_1(x)", "c_attn", head * D + c),
    scores: () => [`q[${r}] · k[${c}] / √${D} = ${formatSignificant(value)}`, ...(c > r ? ["mask: −∞"] : [])],
    softmax: () => softmaxFormula(valuesOf("h.attn: q kT / sqrt(D)")[r], r, c, value),
    mix: () => mixFormula(valuesOf("h.attn: softmax")[r], r, c, value),
    proj: () => product("attention", "heads", "c_proj"),
    plus_attention: () => sum("x", "x", "attention", layerInput?.[r][c], valuesOf("h.attn.c_proj")[r][c]),
    ln_2: () => norm("ln_2", valuesOf("x + attention")[r][c]),
    fc: () => [
      `hidden[${r}, ${c}] = gelu(ln_2(x)[${r}] · c_fc.weight[${c}] + c_fc.bias[${c}])`,
      `= ${formatSignificant(value)}`,
    ],
    mlp_proj: () => product("mlp", "hidden", "c_proj"),
    plus_mlp: () => sum("x", "x", "mlp", valuesOf("x + attention")[r][c], valuesOf("h.mlp.c_proj")[r][c]),
    ln_f: () => norm("ln_f", loaded.lastStream?.[r][c]),
    logits: () => {
      const v = stages.get("logits").columns?.[c];
      return [`logits[${r}, ${v}] = ln_f(x)[${r}] · wte[${v}] = ${formatSignificant(value)}`];
    },
  };
}

const inParentheses = (x) => (x < 0 ? `(${formatSignificant(x)})` : formatSignificant(x));
const rounded = (x) => formatSignificant(Number(x.toPrecision(4)));

function softmaxFormula(scores, r, c, value) {
  if (c > r) return [`share[${r}, ${c}] = exp(−∞) / Σ = 0`];
  const visible = scores.slice(0, r + 1);
  const max = Math.max(...visible);
  const shift = max > MAX_EXPONENT ? max : 0;
  const exponentials = visible.map((score) => Math.exp(score - shift));
  const total = exponentials.reduce((a, b) => a + b, 0);
  const terms =
    exponentials.length > MAX_TERMS + 2
      ? [...exponentials.slice(0, MAX_TERMS).map(rounded), "…", rounded(exponentials.at(-1))]
      : exponentials.map(rounded);
  const shiftText = shift ? ` − ${rounded(shift)}` : "";
  return [
    `share[${r}, ${c}] = exp(${formatSignificant(scores[c])}${shiftText}) / Σ exp(score[${r}, 0…${r}]${shiftText})`,
    `= ${rounded(exponentials[c])} / (${terms.join(" + ")}) = ${rounded(exponentials[c])} / ${rounded(total)}`,
    `= ${formatSignificant(value)}`,
  ];
}

function mixFormula(weights, r, c, value) {
  const term = (weight, s) => `${formatSignificant(weight)} · v[${s}, ${c}]`;
  const terms = weights.slice(0, Math.min(r + 1, MAX_TERMS)).map(term);
  return [
    `Σ share[${r}, s] · v[s, ${c}]`,
    `= ${terms.join(" + ")}${r >= MAX_TERMS ? " + …" : ""}`,
    `= ${formatSignificant(value)}`,
  ];
}
