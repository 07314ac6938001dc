// The card of a stage of the walk: what the stage does, its formula, its sizes, and its values as a matrix or as bars.
//
// The axis letters: B texts, T tokens, C width, H heads of width D = C / H, V the vocabulary.

import { code, el, tNodes } from "octavo/dom";
import { bars } from "octavo/figures/bars";
import { matrix } from "octavo/figures/matrix";
import { formatCompact, formatCount, formatNumber, formatPercent, formatSignificant, t } from "octavo/i18n";
import { TokenDistribution } from "octavo/sampling";
import { deriveCell } from "octavo/tabs/walk/derivation";
import { axisList, fact, gpt2Facts, headsPicture, modelSizes, widthsPicture } from "octavo/tabs/walk/sizes";
import { GPT2_SIZES } from "octavo/tabs/walk/stages";
import { chip, tokenSpans } from "octavo/tokens";

export const MAX_SHOWN = 16; // rows and columns of a stage's values: the server sends the first ones
const MAX_BARS = 12;

// The content of the card, as nodes. `loaded` is that of tabs/walk.js. Options:
//   showsGpt2           adds the sizes of GPT-2
//   cell, onCell(cell)  [token, column], where the cursor is; the cursor moved
//   onContinue(layer)   the user continues with that layer
export function cardContent(stage, loaded, options) {
  const { model, layer } = loaded;
  const sizes = modelSizes(loaded);
  const isEndOfLayer = stage.id === "plus_mlp" && layer < model.model.n_layer - 1;
  return [
    el("h2", {}, el("span", { textKey: `walk.${stage.id}.title` }), code(codeName(stage, loaded, sizes))),
    el("p", { class: "does", textKey: [`walk.${stage.id}.does`, { ...sizes, ...sentenceValues(stage, model) }] }),
    code(stage.formula(sizes), { class: "formula" }),
    stageFacts(stage, loaded, sizes),
    options.showsGpt2 && gpt2Facts(stage, sizes),
    axisList(stage.axes, sizes),
    stage.id === "idx" ? textByToken(loaded) : sizePicture(stage, sizes, options.showsGpt2),
    stage.id === "next" ? nextTokenBars(loaded) : valuesMatrix(stage, loaded, sizes, options),
    isEndOfLayer && continueButton(layer + 1, options.onContinue),
  ].filter(Boolean);
}

// ---- Text and sizes

// The name of the stage's module and how it is created, such as "h.0.mlp.c_fc = nn.Linear(128, 512)". The stage's
// definition has a bias; bias=False is added if the served module has fewer parameters.
function codeName({ shapesName, nameInModel, module }, { layer, stages }, sizes) {
  const name = nameInModel.replace("{layer}", layer);
  if (!module) return name;
  const { definition, parameters } = module(sizes);
  const hasBias = stages.get(shapesName).parameters >= parameters;
  return `${name} = ${hasBias ? definition : definition.replace(")", ", bias=False)")}`;
}

// The values in the stages' sentences that depend on the model: how its embeddings were initialized, its dropout.
function sentenceValues({ id }, model) {
  const { dropout, wte_init: wte, wpe_init: wpe } = model;
  const { n_embd: C } = model.model;
  const values = { C, bound: formatNumber(1 / Math.sqrt(C), 3) };
  const init = {
    wte: wte && el("span", {}, " ", tNodes(`walk.init.${wte}`, values)),
    wpe: wpe && el("span", {}, tNodes(`walk.init.${wpe === "sinusoidal" ? "sinusoidal" : "random"}`)),
  };
  return { init: init[id] ?? "", dropout: formatSignificant(dropout) };
}

// The shape, the parameters and the operations of the stage in the served model.
function stageFacts({ shapesName, axes, module, isPerLayer }, { stages }, sizes) {
  const { shape = [sizes.V], parameters = 0, flops = 0, times } = stages.get(shapesName) ?? {};
  const perLayer = (text) => (isPerLayer ? `${text} · ${t("walk.times", { n: times })}` : text);
  const shapeText = el(
    "code",
    { dir: "ltr", class: "big shape" },
    el("span", {}, `[${axes.split(" ").join(", ")}]`),
    " ",
    el("span", {}, `= [${shape.join(", ")}]`),
  );
  return el(
    "dl",
    { class: "facts" },
    fact("walk.shape", shapeText),
    module?.(sizes).isTied && fact("walk.parameters", tNodes("walk.tied")),
    parameters > 0 && fact("walk.parameters", perLayer(formatCount(parameters))),
    flops > 0 && fact("walk.flops", perLayer(formatCompact(flops))),
  );
}

function sizePicture({ id }, sizes, isGpt2) {
  const pictureSizes = isGpt2 ? { ...GPT2_SIZES, head: Math.min(sizes.head, GPT2_SIZES.H - 1) } : sizes;
  if (["qkv", "mix", "proj"].includes(id)) return headsPicture(pictureSizes, isGpt2);
  if (["fc", "mlp_proj"].includes(id)) return widthsPicture(pictureSizes, id, isGpt2);
  return null;
}

function textByToken({ groups, left_out, shapes: { tokens } }) {
  const T = tokens.length;
  const decorate = (span, { first }) =>
    span.style.setProperty("background-color", first % 2 ? "var(--soft)" : "var(--raised)");
  const visible = groups.filter((group) => group.first < T);
  return el(
    "div",
    { class: "aside" },
    tokenSpans(tokens, visible, { decorate }),
    groups.some((group) => group.count > 1) && el("p", { class: "quiet", textKey: "text.shared" }),
    left_out > 0 && el("p", { class: "quiet", textKey: ["walk.left", { n: left_out, T }] }),
  );
}

function continueButton(layer, onContinue) {
  const onclick = () => onContinue(layer);
  return el("p", { class: "buttons" }, el("button", { type: "button", textKey: ["walk.deeper", { layer }], onclick }));
}

// ---- Values

function valuesMatrix(stage, loaded, sizes, { cell, onCell }) {
  const { shapes, vocabulary, stages } = loaded;
  const { values, shape, columns: tokenIds } = stages.get(stage.shapesName);
  const isSquare = ["scores", "softmax"].includes(stage.id); // tokens by tokens
  const isTokenIds = stage.id === "idx";
  const isSoftmax = stage.id === "softmax";
  const tokenName = (i) => `${i} ${shapes.tokens[i].label}`;
  const columnName = (c) => (tokenIds ? (vocabulary[tokenIds[c]] ?? `#${tokenIds[c]}`) : String(c));
  let cursor = cell;
  if (isTokenIds) cursor = [0, cell[0]];
  else if (isSquare) cursor = [cell[0], Math.min(...cell)]; // a later token has no score
  else if (tokenIds) cursor = [cell[0], 0];
  return matrix(values, {
    rows: isTokenIds ? () => "id" : tokenName,
    columns: isSquare || isTokenIds ? tokenName : columnName,
    scale: isTokenIds ? "plain" : isSoftmax ? "sequential" : "signed",
    max: isSoftmax ? 1 : undefined,
    totals: isSoftmax ? values.map((row) => row.reduce((a, b) => a + b, 0)) : undefined,
    numbers: true,
    isHidden: isSquare ? (r, c) => c > r : undefined, // the future
    cursor,
    onCursorMove: (r, c) => onCell(isTokenIds ? [c, cell[1]] : [r, c]),
    caption: () => valuesCaption(stage, loaded, isTokenIds ? 1 : shape.at(-2), shape.at(-1), Boolean(tokenIds)),
    label: t(`walk.${stage.id}.title`),
    readout: (r, c, value) => deriveCell(stage.id, r, c, value, loaded, sizes),
  });
}

function valuesCaption(stage, { layer, head }, allRows, allColumns, hasTokenColumns) {
  const isWhole = allRows <= MAX_SHOWN && allColumns <= MAX_SHOWN;
  const key = hasTokenColumns ? "walk.most_likely" : isWhole ? "walk.all" : "walk.corner";
  const counts = {
    rows: Math.min(MAX_SHOWN, allRows),
    columns: Math.min(MAX_SHOWN, allColumns),
    all_rows: allRows,
    all_columns: allColumns,
  };
  const place = stage.axes.includes("H")
    ? [" ", ...tNodes("walk.of_head", { layer, head })]
    : stage.isPerLayer
      ? [" ", ...tNodes("walk.of_layer", { layer })]
      : [];
  return [...tNodes(key, counts), ...place];
}

function nextTokenBars({ logits, vocabulary, shapes }) {
  if (!logits.length) return el("p", { class: "quiet", textKey: "error.offline" });
  const { order, probabilities } = new TokenDistribution(logits);
  const items = Array.from(order.subarray(0, MAX_BARS), (id, i) => ({
    label: vocabulary[id] ?? `#${id}`,
    value: probabilities[i],
    title: `logits[${id}] = ${formatSignificant(logits[id])}`,
  }));
  const covered = items.reduce((sum, { value }) => sum + value, 0);
  const caption = { n: items.length, V: logits.length };
  return el(
    "div",
    {},
    el("p", {}, tNodes("walk.next.after", { token: chip(shapes.tokens.at(-1)) })),
    bars(items, {
      caption: () => tNodes("walk.next.caption", { ...caption, covered: formatPercent(covered) }),
      columns: [t("figure.token"), t("figure.probability")],
    }),
  );
}
