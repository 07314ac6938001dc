// Walk: a text goes through the model, stage by stage, in the order of octavo/lens/shapes.py. A diagram shows the
// whole; a card shows the stage: what it does, its shape, the first rows and columns of its values, and how each value
// was computed.
//
// The axis letters: B texts, T tokens, C width, H heads of width D = C / H, V the vocabulary.

import { fetchView, savedOptions } from "octavo/api";
import { arrowDirection, code, el, tNodes } from "octavo/dom";
import { HeadSelector } from "octavo/head_selector";
import { compactNumber, count, exactNumber, language, number, percent, t } from "octavo/i18n";
import { bars } from "octavo/pictures/bars";
import { matrix } from "octavo/pictures/matrix";
import { TokenDistribution } from "octavo/sampling";
import { deriveCell } from "octavo/tabs/walk/derivation";
import { createDiagram } from "octavo/tabs/walk/diagram";
import { axisList, fact, gpt2Facts, headsPicture, widthsPicture } from "octavo/tabs/walk/sizes";
import { GPT2_SIZES, STAGE_INDEX, STAGES } from "octavo/tabs/walk/stages";
import { chip, lastWordIndex, tokenSpans } from "octavo/tokens";

const MAX_SHOWN = 16; // rows and columns of a stage's values: the server sends the first ones
const MAX_BARS = 12;
const MIN_SWIPE = 56; // pixels; a shorter one is none

export function mount(panel, app) {
  let stageIndex = stageOfSubpath(app.getSubpath("walk"));
  let loaded = null; // see fetchStages()
  let cell = [0, 3]; // [token, column]: kept from stage to stage, so that one number can be followed
  let cellText = null; // the text that the token belongs to

  // ---- Elements

  const load = () => app.runTask(panel, fetchStages);
  const selector = new HeadSelector("walk", load);
  const gpt2Checkbox = el("input", { type: "checkbox", onchange: () => draw() });
  const counter = el("span", { class: "mono", dir: "ltr" });
  const backButton = () => el("button", { type: "button", say: "walk.back", onclick: () => moveBy(-1) });
  const nextButton = () => el("button", { type: "button", class: "main", say: "walk.next", onclick: () => moveBy(1) });
  const backButtons = [backButton(), backButton()]; // above the card, and below it on narrow screens
  const nextButtons = [nextButton(), nextButton()];
  const diagramHolder = el("div", { class: "map" });
  const content = el("div");
  const card = el(
    "div",
    { class: "card" },
    content,
    el("p", { class: "buttons below" }, backButtons[1], nextButtons[1]),
  );
  const gpt2Label = el("label", { class: "check quiet" }, gpt2Checkbox, el("span", { say: "walk.gpt2" }));
  panel.append(
    el(
      "div",
      { class: "steps" },
      el("div", { class: "buttons" }, backButtons[0], counter, nextButtons[0]),
      el("div", { class: "buttons" }, selector.fields, gpt2Label),
    ),
    el("div", { class: "together" }, diagramHolder, card),
  );
  const diagram = createDiagram(diagramHolder, (i) => goTo(i));

  // ---- From stage to stage

  function moveBy(count) {
    goTo(Math.max(0, Math.min(STAGES.length - 1, stageIndex + count)), true);
  }

  function goTo(index, announce = false) {
    if (index === stageIndex) return;
    const focusIsInDiagram = diagramHolder.contains(document.activeElement);
    stageIndex = index;
    draw();
    if (focusIsInDiagram) diagram.focus(stageIndex);
    if (announce) app.announce(`${stageIndex + 1} / ${STAGES.length}: ${t(`walk.${STAGES[stageIndex].id}.title`)}`);
  }

  document.addEventListener("keydown", (event) => {
    if (panel.hidden || panel.inert || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, [role=tablist], [role=application], .scroll, .running, dialog"))
      return;
    const vertical = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const count = (diagramHolder.contains(event.target) && vertical) || arrowDirection(event.key);
    if (!count) return;
    moveBy(count);
    event.preventDefault();
  });
  addSwipe(card, moveBy);

  // ---- Data

  // loaded: {layer, head, shapes, stages, groups, left_out, logits, vocabulary, layerInput, lastStream}. The last two,
  // the residual stream before this layer and after the last one, arrive later; only formulas use them.
  async function fetchStages() {
    const { n_layer } = app.model.model;
    selector.update(app.model.model, "shapes");
    const { layer, head } = selector;
    const text = { text: app.text, unknown: "skip" };
    const [shapes, { groups, left_out }, nextToken] = await Promise.all([
      fetchView("shapes", { ...text, layer, head }, { replaces: "walk" }),
      fetchView("tokens", text, { replaces: "walk tokens" }),
      fetchNextToken(text),
    ]);
    const answers = {
      layer,
      head,
      shapes,
      stages: stagesByName(shapes),
      groups,
      left_out: left_out || nextToken.left_out,
      logits: nextToken.logits,
      vocabulary: nextToken.vocabulary,
    };
    loaded = answers;
    if (cellText !== app.text) cell[0] = lastWordIndex(shapes.tokens.slice(0, MAX_SHOWN));
    cellText = app.text;
    draw();
    const fetchStreamAfter = async (i) => {
      const answer = i === layer ? shapes : await fetchView("shapes", { ...text, layer: i, head });
      return stagesByName(answer).get("x + mlp").values;
    };
    try {
      if (layer > 0) answers.layerInput = await fetchStreamAfter(layer - 1);
      answers.lastStream = await fetchStreamAfter(n_layer - 1);
    } catch {
      // A saved page may lack that layer.
    }
  }

  // A saved page may lack this view.
  const fetchNextToken = (text) =>
    fetchView("next_token", text, { replaces: "walk next_token" }).catch((error) => {
      if (savedOptions("shapes")) return { logits: [], vocabulary: {} };
      throw error;
    });

  function sizes() {
    const { n_layer: L, n_head: H, n_embd: C, vocab_size: V, block_size: block } = app.model.model;
    const { layer, head } = loaded;
    const T = loaded.shapes.tokens.length;
    return { B: 1, T, C, H, D: C / H, V, "4C": 4 * C, mlp_width: 4 * C, L, block, layer, head };
  }

  // ---- The stage

  function draw() {
    if (!loaded) return;
    const stage = STAGES[stageIndex];
    app.setSubpath("walk", stageIndex ? stageIndex + 1 : "");
    diagram.show(stageIndex, loaded.layer, app.model.model.n_layer);
    counter.textContent = `${stageIndex + 1} / ${STAGES.length}`;
    for (const button of backButtons) button.disabled = stageIndex === 0;
    for (const button of nextButtons) button.disabled = stageIndex === STAGES.length - 1;
    const sentence = [`walk.${stage.id}.does`, { ...sizes(), ...modelFacts(stage) }];
    content.replaceChildren(
      el("h2", {}, el("span", { say: `walk.${stage.id}.title` }), code(codeName(stage))),
      el("p", { class: "does", say: sentence }),
      code(stage.formula(sizes()), { class: "formula" }),
      stageFacts(stage),
      ...(gpt2Checkbox.checked ? [gpt2Facts(stage, sizes())] : []),
      axisList(stage.axes, sizes()),
      ...[sizePicture(stage) ?? []].flat(),
      stage.id === "next" ? nextTokenBars() : valuesMatrix(stage),
      ...(stage.id === "plus_mlp" && loaded.layer < app.model.model.n_layer - 1 ? [nextLayerButton()] : []),
    );
  }

  function nextLayerButton() {
    const layer = loaded.layer + 1;
    const onclick = async () => {
      stageIndex = STAGE_INDEX.ln_1;
      selector.choose(layer);
      await load();
    };
    return el("p", { class: "buttons" }, el("button", { type: "button", say: ["walk.deeper", { layer }], onclick }));
  }

  // The values in the stages' sentences that depend on the model: how its embeddings were initialized, its dropout.
  function modelFacts({ id }) {
    const { dropout, wte_start: wte, wpe_start: wpe } = app.model;
    const { n_embd: C } = app.model.model;
    const values = { C, bound: number(1 / Math.sqrt(C), 3) };
    const start = {
      wte: wte && el("span", {}, " ", tNodes(`walk.start.${wte}`, values)),
      wpe: wpe && el("span", {}, tNodes(`walk.start.${wpe === "waves" ? "waves" : "random"}`)),
    };
    return { start: start[id] ?? "", dropout: exactNumber(dropout) };
  }

  // h.0.mlp.c_fc = nn.Linear(128, 512); a model that was trained without biases has fewer parameters than that.
  function codeName({ lens, code, module }) {
    const name = code.replace("{layer}", loaded.layer);
    if (!module) return name;
    const { definition, parameters } = module(sizes());
    const hasBias = loaded.stages.get(lens).parameters >= parameters;
    return `${name} = ${hasBias ? definition : definition.replace(")", ", bias=False)")}`;
  }

  function stageFacts({ lens, axes, module, isPerLayer }) {
    const answer = loaded.stages.get(lens);
    const shape = answer?.shape ?? [sizes().V];
    const perLayer = (text) => (isPerLayer ? `${text} · ${t("walk.times", { n: answer.times })}` : text);
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
      module?.(sizes()).isTied && fact("walk.parameters", tNodes("walk.tied")),
      answer?.parameters > 0 && fact("walk.parameters", perLayer(count(answer.parameters))),
      answer?.flops > 0 && fact("walk.flops", perLayer(compactNumber(answer.flops))),
    );
  }

  // ---- The stage's pictures

  function sizePicture(stage) {
    if (stage.id === "idx") return textByToken();
    const isGpt2 = gpt2Checkbox.checked;
    const { head } = loaded;
    const pictureSizes = isGpt2 ? { ...GPT2_SIZES, head: Math.min(head, GPT2_SIZES.H - 1) } : sizes();
    if (["qkv", "mix", "proj"].includes(stage.id)) return headsPicture(pictureSizes, isGpt2);
    if (["fc", "mlp_proj"].includes(stage.id)) return widthsPicture(pictureSizes, stage.id, isGpt2);
    return null;
  }

  function textByToken() {
    const { T } = sizes();
    const { groups, left_out, shapes } = loaded;
    const decorate = (span, { first }) =>
      span.style.setProperty("background-color", first % 2 ? "var(--soft)" : "var(--raised)");
    const visible = groups.filter((group) => group.first < T);
    return el(
      "div",
      { class: "aside" },
      tokenSpans(shapes.tokens, visible, { decorate }),
      groups.some((group) => group.count > 1) && el("p", { class: "quiet", say: "text.shared" }),
      left_out > 0 && el("p", { class: "quiet", say: ["walk.left", { n: left_out, T }] }),
    );
  }

  function valuesMatrix(stage) {
    const { values, shape, columns: tokenIds } = loaded.stages.get(stage.lens);
    const { shapes, vocabulary } = loaded;
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
      scale: isTokenIds ? "plain" : isSoftmax ? "share" : "signed",
      max: isSoftmax ? 1 : undefined,
      totals: isSoftmax ? values.map((row) => row.reduce((a, b) => a + b, 0)) : undefined,
      numbers: true,
      isHidden: isSquare ? (r, c) => c > r : undefined, // the future
      cursor,
      onHover: (r, c) => (cell = isTokenIds ? [c, cell[1]] : [r, c]),
      caption: () => valuesCaption(stage, isTokenIds ? 1 : shape.at(-2), shape.at(-1), Boolean(tokenIds)),
      label: t(`walk.${stage.id}.title`),
      readout: (r, c, value) => deriveCell(stage.id, r, c, value, loaded, sizes()),
    });
  }

  function valuesCaption(stage, allRows, allColumns, isByToken) {
    const isWhole = allRows <= MAX_SHOWN && allColumns <= MAX_SHOWN;
    const key = isByToken ? "walk.most_likely" : isWhole ? "walk.all" : "walk.corner";
    const counts = {
      rows: Math.min(MAX_SHOWN, allRows),
      columns: Math.min(MAX_SHOWN, allColumns),
      all_rows: allRows,
      all_columns: allColumns,
    };
    const { layer, head } = loaded;
    const place = stage.axes.includes("H")
      ? [" ", ...tNodes("walk.of_head", { layer, head })]
      : stage.isPerLayer
        ? [" ", ...tNodes("walk.of_layer", { layer })]
        : [];
    return [...tNodes(key, counts), ...place];
  }

  function nextTokenBars() {
    const { logits, vocabulary, shapes } = loaded;
    if (!logits.length) return el("p", { class: "quiet", say: "error.offline" });
    const { order, probabilities } = new TokenDistribution(logits);
    const items = Array.from(order.subarray(0, MAX_BARS), (id, i) => ({
      label: vocabulary[id] ?? `#${id}`,
      value: probabilities[i],
      title: `logits[${id}] = ${exactNumber(logits[id])}`,
    }));
    const covered = items.reduce((sum, { value }) => sum + value, 0);
    const caption = { n: items.length, V: logits.length };
    return el(
      "div",
      {},
      el("p", {}, tNodes("walk.next.after", { token: chip(shapes.tokens.at(-1)) })),
      bars(items, {
        max: items[0].value,
        caption: () => tNodes("walk.next.caption", { ...caption, covered: percent(covered) }),
        columns: [t("draw.token"), t("draw.share")],
      }),
    );
  }

  return { update: load, onSubpath: (subpath) => goTo(stageOfSubpath(subpath)) };
}

// The stage of an address: "6" is the sixth, "" the first.
const stageOfSubpath = (subpath) => Math.max(0, Math.min(STAGES.length - 1, (Number(subpath) || 1) - 1));

const stagesByName = ({ stages }) => new Map(stages.map((stage) => [stage.name, stage]));

// A horizontal swipe goes to the next stage or to the one before.
function addSwipe(card, moveBy) {
  let start = null;
  const onStart = (event) => {
    start = event.target.closest(".scroll, input, select") ? null : event.changedTouches[0];
  };
  const onEnd = (event) => {
    if (!start) return;
    const end = event.changedTouches[0];
    const dx = (end.clientX - start.clientX) * (language.dir === "rtl" ? -1 : 1);
    const dy = end.clientY - start.clientY;
    if (Math.abs(dx) > MIN_SWIPE && Math.abs(dx) > 2 * Math.abs(dy)) moveBy(dx < 0 ? 1 : -1);
  };
  card.addEventListener("touchstart", onStart, { passive: true });
  card.addEventListener("touchend", onEnd, { passive: true });
}
