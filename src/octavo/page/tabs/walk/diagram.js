// The whole walk as a diagram: the residual stream runs through, branches leave it and come back.

import { still } from "octavo/pictures/bars";
import { AT, STAGES } from "octavo/tabs/walk/stages";
import { language, say, sayLabel, svg } from "octavo/dom";

const ROW = 37,
  HIGH = 26,
  STREAM = 30,
  LEFT = 78,
  RIGHT = 288,
  WIDE = 300;

// Where each stage stands: [left, top, width]; those of the stream are on it, those of a branch beside it.
function placed() {
  const places = {};
  let y = 6;
  const put = (id, left, right) => (places[id] = { x: left, y, w: right - left, middle: y + HIGH / 2 });
  const on = (...ids) =>
    ids.forEach((id) => {
      put(id, LEFT, RIGHT);
      y += ROW;
    });
  on("idx");
  put("wte", LEFT, LEFT + 100);
  put("wpe", RIGHT - 100, RIGHT);
  y += ROW;
  put("x", 6, WIDE - 6);
  y += ROW + 36;
  on("ln_1", "qkv", "scores", "softmax", "mix", "proj", "plus_attention");
  y += 6;
  on("ln_2", "fc", "mlp_proj", "plus_mlp");
  y += 14;
  for (const id of ["ln_f", "logits", "next"]) {
    put(id, 6, WIDE - 6);
    y += ROW;
  }
  return { places, high: y };
}

export function drawMap(holder, onPick) {
  const { places: p, high } = placed();
  const top = (id) => p[id].y,
    bottom = (id) => p[id].y + HIGH,
    mid = (id) => p[id].middle,
    centre = (id) => p[id].x + p[id].w / 2;
  const line = (d, name, from) => svg("path", { d, class: name, "data-from": from });
  const down = (from, to) => line(`M${centre(to)} ${bottom(from)}V${top(to)}`, "branch", to);
  const leaves = (id, y) => line(`M${STREAM} ${y}H${LEFT + 16}V${top(id)}`, "branch", id);
  const returns = (id, plus) => line(`M${LEFT + 16} ${bottom(id)}V${mid(plus)}H${STREAM + 12}`, "branch", plus);
  const streams = [
    ["x", bottom("x"), mid("plus_attention")],
    ["plus_attention", mid("plus_attention"), mid("plus_mlp")],
    ["plus_mlp", mid("plus_mlp"), top("ln_f")],
  ];
  const times = svg("text", { class: "times", x: RIGHT - 2, y: top("ln_1") - 25 });
  const boxes = STAGES.map((stage, i) => {
    const { x, y, w } = p[stage.id];
    const plus = stage.id.startsWith("plus_");
    const group = svg(
      "g",
      {
        class: plus ? "box plus" : "box",
        role: "button",
        tabindex: "-1",
        onclick: () => onPick(i),
        onkeydown: (event) => {
          if (event.key === "Enter" || event.key === " ") {
            event.preventDefault();
            onPick(i);
          }
        },
      },
      plus
        ? [
            svg("rect", { x: STREAM - 13, y: mid(stage.id) - 13, width: 26, height: 26, rx: 13 }),
            svg("text", { x: STREAM, y: mid(stage.id) + 5, "text-anchor": "middle" }, "+"),
            svg("text", { class: "axes", x: LEFT + 24, y: mid(stage.id) - 5 }, stage.short),
          ]
        : [
            svg("rect", { x, y, width: w, height: HIGH, rx: 7 }),
            svg("text", { x: x + 10, y: y + 18 }, stage.short),
            svg("text", { class: "axes", x: x + w - 8, y: y + 17.5, "text-anchor": "end" }, stage.axes),
          ],
    );
    sayLabel(group, `walk.${stage.id}.title`);
    return group;
  });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${WIDE} ${high}`, role: "group" },
    svg("rect", {
      class: "frame",
      x: 2,
      y: top("ln_1") - 41,
      width: WIDE - 4,
      height: bottom("plus_mlp") - top("ln_1") + 48,
      rx: 12,
    }),
    times,
    svg("path", { class: "branch", d: `M${centre("wte")} ${bottom("idx")}V${top("wte")}`, "data-from": "wte" }),
    svg("path", { class: "branch", d: `M${centre("wpe")} ${bottom("idx")}V${top("wpe")}`, "data-from": "wpe" }),
    svg("path", {
      class: "branch",
      d: `M${centre("wte")} ${bottom("wte")}V${top("x")}M${centre("wpe")} ${bottom("wpe")}V${top("x")}`,
      "data-from": "x",
    }),
    leaves("ln_1", top("ln_1") - 9),
    ["qkv", "scores", "softmax", "mix", "proj"].map((id, i, all) =>
      line(`M${LEFT + 16} ${bottom(all[i - 1] ?? "ln_1")}V${top(id)}`, "branch", id),
    ),
    returns("proj", "plus_attention"),
    leaves("ln_2", top("ln_2") - 9),
    ["fc", "mlp_proj"].map((id, i) => line(`M${LEFT + 16} ${bottom(["ln_2", "fc"][i])}V${top(id)}`, "branch", id)),
    returns("mlp_proj", "plus_mlp"),
    streams.map(([from, y1, y2]) => line(`M${STREAM} ${y1}V${y2}`, "stream", from)),
    line(`M${STREAM} ${bottom("ln_f")}V${top("logits")}`, "branch", "logits"),
    line(`M${STREAM} ${bottom("logits")}V${top("next")}`, "branch", "next"),
    boxes,
  );
  sayLabel(picture, "walk.map");
  holder.append(picture);
  const lines = [...picture.querySelectorAll("[data-from]")];
  const drop = svg("circle", { class: "drop", r: 5, cx: 0, cy: 0, opacity: 0 });
  picture.append(drop);
  let last = null;
  // A drop runs along the line that leads to the stage, for those who like things to move.
  const flow = (at) => {
    const way = lines.find((each) => each.dataset.from === STAGES[at].id && !each.classList.contains("stream"));
    if (at - 1 !== last || !way || still()) return;
    drop.style.offsetPath = `path("${way.getAttribute("d").split("M").slice(0, 2).join("M")}")`;
    drop.animate(
      [
        { offsetDistance: "0%", opacity: 1 },
        { offsetDistance: "100%", opacity: 1, offset: 0.9 },
        { offsetDistance: "100%", opacity: 0 },
      ],
      { duration: 480, easing: "ease-in-out" },
    );
  };
  return {
    show(at, layer, n_layer) {
      flow(at);
      last = at;
      say(times, "walk.block", { layer, L: n_layer });
      times.setAttribute("direction", language.dir);
      times.setAttribute("text-anchor", language.dir === "rtl" ? "start" : "end");
      boxes.forEach((box, i) => {
        box.classList.toggle("here", i === at);
        box.setAttribute("tabindex", i === at ? "0" : "-1");
        if (i === at) box.setAttribute("aria-current", "step");
        else box.removeAttribute("aria-current");
      });
      for (const each of lines)
        each.classList.toggle("lit", each.dataset.from === STAGES[at].id && !each.classList.contains("stream"));
      for (const each of lines)
        if (each.classList.contains("stream")) each.style.opacity = AT[each.dataset.from] <= at ? 1 : 0.25;
    },
    focus: (at) => boxes[at].focus(),
  };
}
