// The stages of the walk as a diagram: the residual stream runs through the layer, branches leave it and return.

import { setLabel, setSentence, svg } from "octavo/dom";
import { prefersReducedMotion } from "octavo/figures/figure";
import { language } from "octavo/i18n";
import { STAGE_INDEX, STAGES } from "octavo/tabs/walk/stages";

// In units of the SVG.
const WIDTH = 300;
const ROW = 37;
const BOX = 26; // height
const STREAM = 30; // x of the residual stream
const LEFT = 78; // the boxes of a branch go from LEFT to RIGHT
const RIGHT = 288;
const BRANCH = LEFT + 16; // x of the line between the boxes of a branch

// Adds a diagram of the stages to `holder`. `onPick(i)` is called when a stage is chosen. Returns
// {show(i, layer, n_layer), focus(i)}.
export function createDiagram(holder, onPick) {
  const { places, height } = placeBoxes();
  const boxes = STAGES.map((stage, i) => stageBox(stage, places[stage.id], () => onPick(i)));
  const blockTop = places.ln_1.top;
  const layerName = svg("text", { class: "layer-name", x: RIGHT - 2, y: blockTop - 25 });
  const block = { x: 2, y: blockTop - 41, width: WIDTH - 4, height: places.plus_mlp.bottom - blockTop + 48, rx: 12 };
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${height}`, role: "group" },
    svg("rect", { class: "frame", ...block }),
    layerName,
    embeddingLines(places),
    layerLines(places),
    boxes,
  );
  setLabel(picture, "walk.diagram");
  const dot = svg("circle", { class: "dot", r: 5, cx: 0, cy: 0, opacity: 0 });
  picture.append(dot);
  holder.append(picture);

  const lines = [...picture.querySelectorAll("[data-stage]")];
  let previous = null; // the stage that was shown last
  return {
    show(current, layer, n_layer) {
      if (current - 1 === previous) animateDot(dot, lines, STAGES[current].id);
      previous = current;
      setSentence(layerName, "walk.block", { layer, L: n_layer });
      layerName.setAttribute("direction", language.dir);
      layerName.setAttribute("text-anchor", language.dir === "rtl" ? "start" : "end");
      boxes.forEach((box, i) => markBox(box, i === current));
      for (const line of lines) {
        const { stage } = line.dataset;
        const isStream = line.classList.contains("stream");
        line.classList.toggle("current", stage === STAGES[current].id && !isStream);
        if (isStream) line.style.opacity = STAGE_INDEX[stage] <= current ? 1 : 0.25;
      }
    },
    focus: (i) => boxes[i].focus(),
  };
}

// The places of the boxes by stage: {left, width, top, bottom, middle, center}. Those of a branch are to the right of
// the stream.
function placeBoxes() {
  const places = {};
  let y = 6;
  const place = (id, left = LEFT, right = RIGHT) => {
    const width = right - left;
    places[id] = { left, width, top: y, bottom: y + BOX, middle: y + BOX / 2, center: left + width / 2 };
  };
  const placeColumn = (ids, left, right) =>
    ids.forEach((id) => {
      place(id, left, right);
      y += ROW;
    });
  placeColumn(["idx"]);
  place("wte", LEFT, LEFT + 100);
  place("wpe", RIGHT - 100, RIGHT);
  y += ROW;
  placeColumn(["x"], 6, WIDTH - 6);
  y += 36;
  placeColumn(["ln_1", "qkv", "scores", "softmax", "mix", "proj", "plus_attention"]);
  y += 6;
  placeColumn(["ln_2", "fc", "mlp_proj", "plus_mlp"]);
  y += 14;
  placeColumn(["ln_f", "logits", "next"], 6, WIDTH - 6);
  return { places, height: y };
}

function stageBox(stage, { left, width, top, middle }, onPick) {
  const isSum = stage.id.startsWith("plus_");
  const onkeydown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    onPick();
  };
  const box = svg(
    "g",
    { class: isSum ? "box plus" : "box", role: "button", tabindex: "-1", onclick: onPick, onkeydown },
    isSum
      ? [
          svg("rect", { x: STREAM - 13, y: middle - 13, width: 26, height: 26, rx: 13 }),
          svg("text", { x: STREAM, y: middle + 5, "text-anchor": "middle" }, "+"),
          svg("text", { class: "axes", x: LEFT + 24, y: middle - 5 }, stage.short),
        ]
      : [
          svg("rect", { x: left, y: top, width, height: BOX, rx: 7 }),
          svg("text", { x: left + 10, y: top + 18 }, stage.short),
          svg("text", { class: "axes", x: left + width - 8, y: top + 17.5, "text-anchor": "end" }, stage.axes),
        ],
  );
  setLabel(box, `walk.${stage.id}.title`);
  return box;
}

// A line of a stage: a branch leads to its stage, a segment of the residual stream begins at its stage.
const line = (path, stage, kind = "branch") => svg("path", { d: path, class: kind, "data-stage": stage });

function embeddingLines({ idx, wte, wpe, x }) {
  return [
    line(`M${wte.center} ${idx.bottom}V${wte.top}`, "wte"),
    line(`M${wpe.center} ${idx.bottom}V${wpe.top}`, "wpe"),
    line(`M${wte.center} ${wte.bottom}V${x.top}M${wpe.center} ${wpe.bottom}V${x.top}`, "x"),
  ];
}

function layerLines(places) {
  const leave = (id) => line(`M${STREAM} ${places[id].top - 9}H${BRANCH}V${places[id].top}`, id);
  const follow = (from, to) => line(`M${BRANCH} ${places[from].bottom}V${places[to].top}`, to);
  const chain = (...ids) => ids.slice(1).map((id, i) => follow(ids[i], id));
  const rejoin = (from, sum) => line(`M${BRANCH} ${places[from].bottom}V${places[sum].middle}H${STREAM + 12}`, sum);
  const stream = (y1, y2, from) => line(`M${STREAM} ${y1}V${y2}`, from, "stream");
  const { x, plus_attention, plus_mlp, ln_f, logits, next } = places;
  return [
    leave("ln_1"),
    chain("ln_1", "qkv", "scores", "softmax", "mix", "proj"),
    rejoin("proj", "plus_attention"),
    leave("ln_2"),
    chain("ln_2", "fc", "mlp_proj"),
    rejoin("mlp_proj", "plus_mlp"),
    // `show` makes a segment of the stream bright once the walk has reached the stage that the segment begins at.
    stream(x.bottom, plus_attention.middle, "x"),
    stream(plus_attention.middle, plus_mlp.middle, "plus_attention"),
    stream(plus_mlp.middle, ln_f.top, "plus_mlp"),
    line(`M${STREAM} ${ln_f.bottom}V${logits.top}`, "logits"),
    line(`M${STREAM} ${logits.bottom}V${next.top}`, "next"),
  ];
}

function markBox(box, isCurrent) {
  box.classList.toggle("current", isCurrent);
  box.setAttribute("tabindex", isCurrent ? "0" : "-1");
  if (isCurrent) box.setAttribute("aria-current", "step");
  else box.removeAttribute("aria-current");
}

// After a step forward, a dot moves along the line that leads to the stage.
function animateDot(dot, lines, id) {
  const line = lines.find(({ dataset, classList }) => dataset.stage === id && !classList.contains("stream"));
  if (!line || prefersReducedMotion()) return;
  const [, firstPart] = line.getAttribute("d").split("M"); // a path of two parts would make the dot jump
  dot.style.offsetPath = `path("M${firstPart}")`;
  dot.animate(
    [
      { offsetDistance: "0%", opacity: 1 },
      { offsetDistance: "100%", opacity: 1, offset: 0.9 },
      { offsetDistance: "100%", opacity: 0 },
    ],
    { duration: 480, easing: "ease-in-out" },
  );
}
