// Where a number of the walk comes from: a sentence, and the formula with its numbers as far as the corner has them.

import { chip, code, el, exact, said } from "octavo/dom";

// For the cell of row r and column c of a stage. `data` is what walk.js has loaded, `s` the sizes of the model.
export function origin(id, r, c, value, data, s) {
  const { layer, head } = data;
  const { tokens } = data.shapes;
  const of = (name) => data.stages.get(name).values;
  const before = layer === 0 ? of("x") : data.before; // the stream that came into this layer
  const token = tokens[r],
    to = tokens[c];
  const column = head * s.D + c;
  const v = data.stages.get("logits").columns?.[c]; // of the logits the likeliest tokens are seen

  const sum = (name, first, second, x, y) => [
    `${name}[${r}, ${c}] = ${first}[${r}, ${c}] + ${second}[${r}, ${c}]`,
    ...(x === undefined ? [] : [`= ${exact(x)} + ${bracketed(y)}`]),
    `= ${exact(value)}`,
  ];
  const norm = (name, x) => [
    `${name}(x)[${r}, ${c}] = (x[${r}, ${c}] − mean(x[${r}])) / deviation(x[${r}]) · weight[${c}] + bias[${c}]`,
    ...(x === undefined ? [] : [`x[${r}, ${c}] = ${exact(x)}`]),
    `${name}(x)[${r}, ${c}] = ${exact(value)}`,
  ];
  // A row of the input times a row of the weights: more numbers than anyone would read, so they are named.
  const product = (name, row, weights, at = c) => [
    `${name}[${r}, ${c}] = ${row}[${r}] · ${weights}.weight[${at}] + ${weights}.bias[${at}]`,
    `= ${exact(value)}`,
  ];
  const lines = {
    idx: () => [`idx[0, ${c}] = ${value}`],
    wte: () => [`wte[${token.id}, ${c}] = ${exact(value)}`],
    wpe: () => [`wpe[${r}, ${c}] = ${exact(value)}`],
    x: () => [
      `x[${r}, ${c}] = wte[${token.id}, ${c}] + wpe[${r}, ${c}]`,
      `= ${exact(of("wte")[r][c])} + ${bracketed(of("wpe")[r][c])}`,
      `= ${exact(value)}`,
    ],
    ln_1: () => norm("ln_1", before?.[r][c]),
    qkv: () => product("q", "ln_1(x)", "c_attn", column),
    scores: () => [`q[${r}] · k[${c}] / √${s.D} = ${exact(value)}`, ...(c > r ? ["mask: −∞"] : [])],
    softmax: () => softmaxed(of("h.attn: q kT / sqrt(D)")[r], r, c, value),
    mix: () => mixed(of("h.attn: softmax")[r], r, c, value),
    proj: () => product("attention", "heads", "c_proj"),
    plus_attention: () => sum("x", "x", "attention", before?.[r][c], of("h.attn.c_proj")[r][c]),
    ln_2: () => norm("ln_2", of("x + attention")[r][c]),
    fc: () => [`hidden[${r}, ${c}] = gelu(ln_2(x)[${r}] · c_fc.weight[${c}] + c_fc.bias[${c}])`, `= ${exact(value)}`],
    mlp_proj: () => product("mlp", "hidden", "c_proj"),
    plus_mlp: () => sum("x", "x", "mlp", of("x + attention")[r][c], of("h.mlp.c_proj")[r][c]),
    ln_f: () => norm("ln_f", data.last?.[r][c]),
    logits: () => [`logits[${r}, ${v}] = ln_f(x)[${r}] · wte[${v}] = ${exact(value)}`],
  }[id]();

  const values = {
    t: r,
    s: c,
    layer,
    head,
    column,
    id: token?.id,
    C: s.C,
    D: s.D,
    wide: s.wide,
    token: token && chip(token),
    of: to && chip(to),
  };
  if (id === "idx") Object.assign(values, { t: c, token: chip(to), id: value });
  if (id === "logits")
    Object.assign(values, { s: v, of: chip({ label: data.next.vocabulary[v] ?? `#${v}`, bytes: null }) });
  const masked = ["scores", "softmax"].includes(id) && c > r;
  return [
    el("span", {}, said(`walk.${id}.${masked ? "masked" : "from"}`, values)),
    code(lines.join("\n"), { class: "origin" }),
  ];
}

const bracketed = (x) => (x < 0 ? `(${exact(x)})` : exact(x));
const short = (x) => exact(Number(x.toPrecision(4)));

function softmaxed(scores, r, c, value) {
  if (c > r) return [`share[${r}, ${c}] = exp(−∞) / Σ = 0`];
  const seen = scores.slice(0, r + 1);
  const most = Math.max(...seen),
    far = most > 30 ? most : 0; // beyond e^30 nobody reads it
  const powers = seen.map((score) => Math.exp(score - far)),
    total = powers.reduce((a, b) => a + b, 0);
  const terms = powers.length > 7 ? [...powers.slice(0, 5).map(short), "…", short(powers.at(-1))] : powers.map(short);
  const less = far ? ` − ${short(far)}` : "";
  return [
    `share[${r}, ${c}] = exp(${exact(scores[c])}${less}) / Σ exp(score[${r}, 0…${r}]${less})`,
    `= ${short(powers[c])} / (${terms.join(" + ")}) = ${short(powers[c])} / ${short(total)}`,
    `= ${exact(value)}`,
  ];
}

function mixed(shares, r, c, value) {
  const terms = shares.slice(0, Math.min(r + 1, 5)).map((share, s) => `${exact(share)} · v[${s}, ${c}]`);
  return [`Σ share[${r}, s] · v[s, ${c}]`, `= ${terms.join(" + ")}${r >= 5 ? " + …" : ""}`, `= ${exact(value)}`];
}
