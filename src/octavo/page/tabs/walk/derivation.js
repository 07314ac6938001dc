// How a value of the walk was computed: a sentence and the formula, filled with the numbers that the page has.

import { code, el, tNodes } from "octavo/dom";
import { exactNumber } from "octavo/i18n";
import { chip } from "octavo/tokens";

const MAX_EXPONENT = 30; // if a score is above it, the formula of softmax subtracts the maximum from all scores
const MAX_TERMS = 5; // of a sum

// The derivation of the value in cell [r, c] of a stage, as nodes. `loaded` and `sizes` are those of walk.js.
export function deriveCell(id, r, c, value, loaded, sizes) {
  const isMasked = ["scores", "softmax"].includes(id) && c > r;
  const key = `walk.${id}.${isMasked ? "masked" : "from"}`;
  const formula = formulas(r, c, value, loaded, sizes)[id]();
  return [
    el("span", {}, tNodes(key, sentenceValues(id, r, c, value, loaded, sizes))),
    code(formula.join("\n"), { class: "origin" }),
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
    column: head * D + c,
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
    ...(x === undefined ? [] : [`= ${exactNumber(x)} + ${inBrackets(y)}`]),
    `= ${exactNumber(value)}`,
  ];
  const norm = (name, x) => [
    `${name}(x)[${r}, ${c}] = (x[${r}, ${c}] − mean(x[${r}])) / std(x[${r}]) · weight[${c}] + bias[${c}]`,
    ...(x === undefined ? [] : [`x[${r}, ${c}] = ${exactNumber(x)}`]),
    `${name}(x)[${r}, ${c}] = ${exactNumber(value)}`,
  ];
  // The products are too many to print, so the formula names them.
  const product = (name, row, weights, column = c) => [
    `${name}[${r}, ${c}] = ${row}[${r}] · ${weights}.weight[${column}] + ${weights}.bias[${column}]`,
    `= ${exactNumber(value)}`,
  ];
  return {
    idx: () => [`idx[0, ${c}] = ${value}`],
    wte: () => [`wte[${tokenId}, ${c}] = ${exactNumber(value)}`],
    wpe: () => [`wpe[${r}, ${c}] = ${exactNumber(value)}`],
    x: () => [
      `x[${r}, ${c}] = wte[${tokenId}, ${c}] + wpe[${r}, ${c}]`,
      `= ${exactNumber(valuesOf("wte")[r][c])} + ${inBrackets(valuesOf("wpe")[r][c])}`,
      `= ${exactNumber(value)}`,
    ],
    ln_1: () => norm("ln_1", layerInput?.[r][c]),
    qkv: () => product("q", "ln_1(x)", "c_attn", head * D + c),
    scores: () => [`q[${r}] · k[${c}] / √${D} = ${exactNumber(value)}`, ...(c > r ? ["mask: −∞"] : [])],
    softmax: () => softmaxFormula(valuesOf("h.attn: q kT / sqrt(D)")[r], r, c, value),
    mix: () => mixFormula(valuesOf("h.attn: softmax")[r], r, c, value),
    proj: () => product("attention", "heads", "c_proj"),
    plus_attention: () => sum("x", "x", "attention", layerInput?.[r][c], valuesOf("h.attn.c_proj")[r][c]),
    ln_2: () => norm("ln_2", valuesOf("x + attention")[r][c]),
    fc: () => [
      `hidden[${r}, ${c}] = gelu(ln_2(x)[${r}] · c_fc.weight[${c}] + c_fc.bias[${c}])`,
      `= ${exactNumber(value)}`,
    ],
    mlp_proj: () => product("mlp", "hidden", "c_proj"),
    plus_mlp: () => sum("x", "x", "mlp", valuesOf("x + attention")[r][c], valuesOf("h.mlp.c_proj")[r][c]),
    ln_f: () => norm("ln_f", loaded.lastStream?.[r][c]),
    logits: () => {
      const v = stages.get("logits").columns?.[c];
      return [`logits[${r}, ${v}] = ln_f(x)[${r}] · wte[${v}] = ${exactNumber(value)}`];
    },
  };
}

const inBrackets = (x) => (x < 0 ? `(${exactNumber(x)})` : exactNumber(x));
const rounded = (x) => exactNumber(Number(x.toPrecision(4)));

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
    `share[${r}, ${c}] = exp(${exactNumber(scores[c])}${shiftText}) / Σ exp(score[${r}, 0…${r}]${shiftText})`,
    `= ${rounded(exponentials[c])} / (${terms.join(" + ")}) = ${rounded(exponentials[c])} / ${rounded(total)}`,
    `= ${exactNumber(value)}`,
  ];
}

function mixFormula(shares, r, c, value) {
  const terms = shares.slice(0, Math.min(r + 1, MAX_TERMS)).map((share, s) => `${exactNumber(share)} · v[${s}, ${c}]`);
  return [
    `Σ share[${r}, s] · v[s, ${c}]`,
    `= ${terms.join(" + ")}${r >= MAX_TERMS ? " + …" : ""}`,
    `= ${exactNumber(value)}`,
  ];
}
