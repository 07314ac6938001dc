// The stages of the walk, in the order of octavo/lens/shapes.py.
//
// The axis letters: B texts, T tokens, C width, H heads of width D = C / H, V the vocabulary.

// GPT-2 at sequence length 512, with block_size cut to 512; the batch size B is left as a letter. Shapes and parameter
// counts follow from these.
export const GPT2_SIZES = { B: "B", T: 512, C: 768, H: 12, D: 64, V: 50257, "4C": 3072, L: 12, block: 512 };

// Modules of the model at a size: their PyTorch code, and their number of parameters.
const embedding = (rows, C) => ({ definition: `nn.Embedding(${rows}, ${C})`, parameters: rows * C });
const norm = (C) => ({ definition: `nn.LayerNorm(${C})`, parameters: 2 * C });
const linear = (from, to) => ({ definition: `nn.Linear(${from}, ${to})`, parameters: (from + 1) * to });
const tiedHead = (from, to) => ({
  definition: `nn.Linear(${from}, ${to}, bias=False)`,
  parameters: 0,
  isTied: true, // its weight is that of wte
});

const normFormula = (name) => () => `${name}(x) = (x − mean) / √(variance + ε) · weight + bias`;

// One row per stage: id, which is in the keys of its sentences; shapesName, its name in the view `shapes`; nameInModel,
// its name in model.py; short, its name in the diagram; axes; module(sizes), the module that computes it;
// formula(sizes).
// prettier-ignore
const TABLE = [
  ["idx", "idx", "idx", "idx", "B T", null, () => "idx = tokenizer.encode(text)"],
  ["wte", "wte", "transformer.wte", "wte", "B T C", (s) => embedding(s.V, s.C), () => "tok = wte(idx)"],
  ["wpe", "wpe", "transformer.wpe", "wpe", "T C", (s) => embedding(s.block, s.C), () => "pos = wpe(arange(T))"],
  ["x", "x", "x", "x = wte + wpe", "B T C", null, () => "x = tok + pos"],
  ["ln_1", "h.ln_1", "h.{layer}.ln_1", "ln_1", "B T C", (s) => norm(s.C), normFormula("ln_1")],
  ["qkv", "h.attn.c_attn", "h.{layer}.attn.c_attn", "q, k, v", "B H T D", (s) => linear(s.C, 3 * s.C), () => "q, k, v = c_attn(ln_1(x))"],
  ["scores", "h.attn: q kT / sqrt(D)", "h.{layer}.attn", "q kᵀ / √D", "B H T T", null, (s) => `q kᵀ / √D = q kᵀ / √${s.D}`],
  ["softmax", "h.attn: softmax", "h.{layer}.attn", "softmax", "B H T T", null, (s) => `softmax(q kᵀ / √D) = softmax(q kᵀ / √${s.D})`],
  ["mix", "h.attn: weights v", "h.{layer}.attn", "softmax(…) v", "B H T D", null, (s) => `softmax(q kᵀ / √D) v = softmax(q kᵀ / √${s.D}) v`],
  ["proj", "h.attn.c_proj", "h.{layer}.attn.c_proj", "c_proj", "B T C", (s) => linear(s.C, s.C), () => "attention = c_proj(concat(heads))"],
  ["plus_attention", "x + attention", "x", "x + attention", "B T C", null, () => "x = x + attn(ln_1(x))"],
  ["ln_2", "h.ln_2", "h.{layer}.ln_2", "ln_2", "B T C", (s) => norm(s.C), normFormula("ln_2")],
  ["fc", "h.mlp.c_fc, GELU", "h.{layer}.mlp.c_fc", "c_fc, GELU", "B T 4C", (s) => linear(s.C, s["4C"]), () => "hidden = gelu(c_fc(ln_2(x)))"],
  ["mlp_proj", "h.mlp.c_proj", "h.{layer}.mlp.c_proj", "c_proj", "B T C", (s) => linear(s["4C"], s.C), () => "mlp = c_proj(hidden)"],
  ["plus_mlp", "x + mlp", "x", "x + mlp", "B T C", null, () => "x = x + mlp(ln_2(x))"],
  ["ln_f", "ln_f", "transformer.ln_f", "ln_f", "B T C", (s) => norm(s.C), normFormula("ln_f")],
  ["logits", "logits", "lm_head", "logits", "B T V", (s) => tiedHead(s.C, s.V), () => "logits = ln_f(x) wteᵀ"],
  ["next", null, "softmax", "softmax", "V", null, () => "softmax(logits[0, T − 1])"],
];

export const STAGES = TABLE.map(([id, shapesName, nameInModel, short, axes, module, formula]) => {
  const isPerLayer = /^h\.|^x \+/.test(shapesName); // the modules of a block, and the two sums of the stream
  return { id, shapesName, nameInModel, short, axes, module, formula, isPerLayer };
});

export const STAGE_INDEX = Object.fromEntries(STAGES.map((stage, i) => [stage.id, i]));

// The number of parameters of a whole model of a size.
export const countParameters = (sizes) =>
  STAGES.reduce((sum, { module, isPerLayer }) => {
    const parameters = module?.(sizes).parameters ?? 0;
    return sum + (isPerLayer ? sizes.L : 1) * parameters;
  }, 0);
