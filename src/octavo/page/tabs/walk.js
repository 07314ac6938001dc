// The walk: a text goes through the model, stage by stage, in the order of octavo/lens/stages.py. On one side the whole
// as a diagram, on the other the stage that is looked at: what it does, its shape, the corner of its numbers, and where
// each of them comes from.
//
// The axis letters: B texts, T tokens, C width, H heads of width D = C / H, V the vocabulary.

import { available, lens } from "octavo/api";
import { drawMap } from "octavo/tabs/walk/diagram";
import { bars, matrix } from "octavo/pictures/bars";
import { origin } from "octavo/tabs/walk/derivation";
import { AT, learned, NOTES, STAGES } from "octavo/tabs/walk/stages";
import {
  chip,
  choices,
  code,
  count,
  el,
  exact,
  field,
  language,
  lastWord,
  number,
  percent,
  said,
  short,
  t,
  tokenSpans,
} from "octavo/dom";

const IN_CODE = { B: "batch_size", T: "seq_len", C: "n_embd", H: "n_head", V: "vocab_size" };
const CORNER = 16;
const LIKELIEST = 12;
const GPT2 = { ...NOTES, block: 1024 };

export function mount(panel, app) {
  let at = stageAt(app.placeOf("walk")),
    layer = 0,
    head = 0;
  let data = null; // {shapes, groups, next, before, last}
  let cell = [0, 3]; // kept from stage to stage, so that one number can be followed
  let text = null; // whose token that is

  // ---- The frame

  const back = el("button", { type: "button", say: "walk.back", onclick: () => step(-1) });
  const onward = el("button", { type: "button", class: "main", say: "walk.next", onclick: () => step(1) });
  const where = el("span", { class: "mono", dir: "ltr" });
  const layers = el("select", { id: "walk-layer", onchange: () => choose({ layer: Number(layers.value) }) });
  const heads = el("select", { id: "walk-head", onchange: () => choose({ head: Number(heads.value) }) });
  const notes = el("input", { type: "checkbox", onchange: () => draw() });
  const diagram = el("div", { class: "map" });
  const content = el("div");
  const again = [
    el("button", { type: "button", say: "walk.back", onclick: () => step(-1) }),
    el("button", { type: "button", class: "main", say: "walk.next", onclick: () => step(1) }),
  ];
  const card = el("div", { class: "card" }, content, el("p", { class: "buttons again" }, again)); // where the first ones are out of sight
  panel.append(
    el(
      "div",
      { class: "steps" },
      el("div", { class: "buttons" }, back, where, onward),
      el(
        "div",
        { class: "buttons" },
        field(layers, "walk.layer"),
        field(heads, "walk.head"),
        el("label", { class: "check quiet" }, notes, el("span", { say: "walk.notes" })),
      ),
    ),
    el("div", { class: "together" }, diagram, card),
  );
  const map = drawMap(diagram, (to) => go(to));

  function step(by) {
    go(Math.max(0, Math.min(STAGES.length - 1, at + by)), true);
  }

  function go(to, spoken) {
    if (to === at) return;
    const inMap = diagram.contains(document.activeElement);
    at = to;
    draw();
    if (inMap) map.focus(at);
    if (spoken) app.announce(`${at + 1} / ${STAGES.length}: ${t(`walk.${STAGES[at].id}.title`)}`);
  }

  async function choose(changes) {
    ({ layer = layer, head = head } = changes);
    await app.trying(panel, load);
  }

  document.addEventListener("keydown", (event) => {
    if (panel.hidden || panel.inert || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target.closest("input, select, textarea, [role=tablist], [role=application], .scroll, .running, dialog"))
      return;
    const onwards = language.dir === "rtl" ? "ArrowLeft" : "ArrowRight",
      backwards = language.dir === "rtl" ? "ArrowRight" : "ArrowLeft";
    const inMap = diagram.contains(event.target);
    if (event.key === onwards || (inMap && event.key === "ArrowDown")) step(1);
    else if (event.key === backwards || (inMap && event.key === "ArrowUp")) step(-1);
    else return;
    event.preventDefault();
  });

  let touch = null;
  card.addEventListener(
    "touchstart",
    (event) => {
      touch = event.target.closest(".scroll, input, select") ? null : event.changedTouches[0];
    },
    { passive: true },
  );
  card.addEventListener(
    "touchend",
    (event) => {
      if (!touch) return;
      const end = event.changedTouches[0];
      const dx = (end.clientX - touch.clientX) * (language.dir === "rtl" ? -1 : 1),
        dy = end.clientY - touch.clientY;
      if (Math.abs(dx) > 56 && Math.abs(dx) > 2 * Math.abs(dy)) step(dx < 0 ? 1 : -1);
    },
    { passive: true },
  );

  // ---- Data

  async function load() {
    const { n_layer, n_head } = app.model.model;
    const there = available("shapes");
    layer = Math.min(layer, n_layer - 1);
    head = Math.min(head, n_head - 1);
    if (there && !there.some((each) => each.layer === layer && each.head === head))
      ({ layer, head } = there.find((each) => each.layer === layer) ?? there[0]);
    const some = (name, n) => (there ? [...new Set(there.map((each) => each[name]))] : [...Array(n).keys()]);
    choices(layers, some("layer", n_layer), layer);
    choices(heads, some("head", n_head), head);
    const read = { text: app.text, unknown: "skip" };
    const [shapes, { groups, left_out }, next] = await Promise.all([
      lens("shapes", { ...read, layer, head }, { instead: "walk" }),
      lens("tokens", read, { instead: "walk tokens" }),
      lens("next_token", read, { instead: "walk next" }).catch((error) => {
        if (there) return { logits: [], vocabulary: {} };
        throw error;
      }), // a saved page may be without
    ]);
    const here = (data = {
      layer,
      head,
      shapes,
      groups,
      next,
      left_out: left_out || next.left_out,
      stages: new Map(shapes.stages.map((stage) => [stage.name, stage])),
    });
    if (text !== app.text) cell[0] = lastWord(shapes.tokens.slice(0, CORNER));
    text = app.text;
    draw();
    // The stream before this layer and after the last one, for the sums: they are other layers' numbers.
    const other = async (i) =>
      new Map((await lens("shapes", { ...read, layer: i, head })).stages.map((stage) => [stage.name, stage]));
    try {
      if (layer > 0) here.before = (await other(layer - 1)).get("x + mlp").values;
      here.last =
        layer === n_layer - 1 ? here.stages.get("x + mlp").values : (await other(n_layer - 1)).get("x + mlp").values;
    } catch {
      // Then the sum's names stand without its numbers.
    }
  }

  // ---- The stage

  function draw() {
    if (!data) return;
    const stage = STAGES[at];
    app.place("walk", at ? at + 1 : "");
    map.show(at, layer, app.model.model.n_layer);
    where.textContent = `${at + 1} / ${STAGES.length}`;
    back.disabled = again[0].disabled = at === 0;
    onward.disabled = again[1].disabled = at === STAGES.length - 1;
    content.replaceChildren(
      el("h2", {}, el("span", { say: `walk.${stage.id}.title` }), code(inCode(stage, sizes()))),
      el("p", { class: "does", say: [`walk.${stage.id}.does`, { ...sizes(), ...beginning(stage) }] }),
      code(stage.formula(sizes()), { class: "formula" }),
      ...facts(stage).filter(Boolean),
      letters(stage),
      aside(stage) ?? "",
      ...(stage.id === "next" ? [likeliest()] : [numbers(stage)]),
      stage.id === "plus_mlp" && layer < app.model.model.n_layer - 1
        ? el(
            "p",
            { class: "buttons" },
            el("button", {
              type: "button",
              say: ["walk.deeper", { layer: layer + 1 }],
              onclick: async () => {
                at = AT.ln_1;
                await choose({ layer: layer + 1 });
              },
            }),
          )
        : "",
    );
  }

  // What else a stage's sentence says of the model: how its table began, and its dropout.
  function beginning({ id }) {
    const { dropout, wte_start: wte, wpe_start: wpe } = app.model;
    const { n_embd: C } = app.model.model;
    const values = { C, bound: number(1 / Math.sqrt(C), 3) };
    const start = {
      wte: wte && el("span", {}, " ", said(`walk.start.${wte}`, values)),
      wpe: wpe && el("span", {}, said(`walk.start.${wpe === "waves" ? "waves" : "random"}`)),
    };
    return { start: start[id] ?? "", dropout: exact(dropout) };
  }

  // h.0.mlp.c_fc = nn.Linear(128, 512); a model trained without biases has fewer numbers than that.
  function inCode({ lens, code, part }, s) {
    const { made, learned } = part?.(s) ?? {};
    const bare = made && data.stages.get(lens).parameters < learned;
    return [code.replace("{layer}", layer), bare ? made.replace(")", ", bias=False)") : made]
      .filter(Boolean)
      .join(" = ");
  }

  function sizes() {
    const { n_layer: L, n_head: H, n_embd: C, vocab_size: V, block_size } = app.model.model;
    return {
      B: 1,
      T: data.shapes.tokens.length,
      C,
      H,
      D: C / H,
      V,
      "4C": 4 * C,
      wide: 4 * C,
      L,
      block: block_size,
      layer,
      head,
    };
  }

  function facts(stage) {
    const own = data.stages.get(stage.lens),
      s = sizes(),
      part = stage.part?.(NOTES);
    const shape = own?.shape ?? [s.V];
    const letters = `[${stage.axes.split(" ").join(", ")}]`;
    const fact = (key, value) => el("div", {}, el("dt", { say: key }), el("dd", {}, value));
    const times = (n) => (stage.layered ? t("walk.times", { n }) : null);
    const line = (...words) => words.filter(Boolean).join(" · ");
    const inNotes = `[${stage.axes
      .split(" ")
      .map((axis) => NOTES[axis])
      .join(", ")}]`;
    return [
      el(
        "dl",
        { class: "facts" },
        fact(
          "walk.shape",
          el(
            "code",
            { dir: "ltr", class: "big shape" },
            el("span", {}, letters),
            " ",
            el("span", {}, `= [${shape.join(", ")}]`),
          ),
        ),
        stage.part?.(s).tied && fact("walk.parameters", said("walk.tied")),
        own?.parameters ? fact("walk.parameters", line(count(own.parameters), times(own.times))) : null,
        own?.flops ? fact("walk.flops", line(short(own.flops), times(own.times))) : null,
      ),
      notes.checked &&
        el(
          "dl",
          { class: "facts other" },
          fact("walk.shape.notes", code(inNotes, { class: "big" })),
          part &&
            fact("walk.parameters", [
              part.tied ? said("walk.tied") : line(count(part.learned), times(NOTES.L)),
              " ",
              code(part.made),
            ]),
          stage.formula(NOTES) !== stage.formula(s) && fact("walk.formula", code(stage.formula(NOTES))),
          fact("walk.total", [
            count(learned(NOTES)),
            " ",
            el("small", {}, said("walk.total.full", { positions: GPT2.block, n: learned(GPT2) })),
          ]),
        ),
    ];
  }

  function letters(stage) {
    const s = sizes();
    const inside = stage.axes.split(" ").filter((axis, i, all) => all.indexOf(axis) === i);
    if (stage.axes.includes("D")) inside.push("C");
    return el(
      "ul",
      { class: "letters" },
      inside.map((axis) =>
        el(
          "li",
          {},
          el(
            "b",
            { dir: "ltr" },
            `${axis} = ${axis === "D" ? `${s.C} / ${s.H} = ${s.D}` : axis === "4C" ? `4 · ${s.C} = ${s["4C"]}` : `${IN_CODE[axis]} = ${s[axis]}`}`,
          ),
          " ",
          el("span", { say: `axis.${axis}` }),
        ),
      ),
    );
  }

  function aside(stage) {
    const s = sizes();
    if (stage.id === "idx") {
      const spans = tokenSpans(
        data.shapes.tokens,
        data.groups.filter((group) => group.first < s.T),
        {
          each: (span, group) =>
            span.style.setProperty("background-color", group.first % 2 ? "var(--soft)" : "var(--raised)"),
        },
      );
      return el(
        "div",
        { class: "aside" },
        spans,
        data.groups.some((group) => group.count > 1) && el("p", { class: "quiet", say: "text.shared" }),
        data.left_out > 0 && el("p", { class: "quiet", say: ["walk.left", { n: data.left_out, T: s.T }] }),
      );
    }
    if (["qkv", "mix", "proj"].includes(stage.id))
      return splitPicture(notes.checked ? { ...NOTES, head: Math.min(head, NOTES.H - 1) } : s, notes.checked);
    if (["fc", "mlp_proj"].includes(stage.id)) return widthPicture(notes.checked ? NOTES : s, stage.id, notes.checked);
    return null;
  }

  function numbers(stage) {
    const { values, shape, columns: which } = data.stages.get(stage.lens);
    const { tokens } = data.shapes;
    const square = ["scores", "softmax"].includes(stage.id);
    const ids = stage.id === "idx";
    const name = (i) => `${i} ${tokens[i].label}`;
    const future = (r, c) => square && c > r;
    const all = { rows: ids ? 1 : shape.at(-2), columns: shape.at(-1) };
    const whole = all.rows <= CORNER && all.columns <= CORNER;
    return matrix(values, {
      rows: ids ? () => "id" : name,
      columns:
        square || ids ? name : which ? (c) => data.next.vocabulary[which[c]] ?? `#${which[c]}` : (c) => String(c),
      scale: ids ? "plain" : stage.id === "softmax" ? "share" : "signed",
      max: stage.id === "softmax" ? 1 : undefined,
      totals: stage.id === "softmax" ? values.map((row) => row.reduce((a, b) => a + b, 0)) : undefined,
      totalsOf: tokens.length > CORNER ? CORNER : undefined,
      numbers: true,
      hidden: square ? future : undefined,
      at: ids ? [0, cell[0]] : square ? [cell[0], Math.min(...cell)] : which ? [cell[0], 0] : cell,
      onHover: (r, c) => (cell = ids ? [c, cell[1]] : [r, c]),
      caption: () =>
        said(which ? "walk.likeliest" : whole ? "walk.all" : "walk.corner", {
          rows: Math.min(CORNER, all.rows),
          columns: Math.min(CORNER, all.columns),
          all_rows: all.rows,
          all_columns: all.columns,
        }).concat(
          stage.axes.includes("H")
            ? [" ", ...said("walk.of_head", { layer, head })]
            : stage.layered
              ? [" ", ...said("walk.of_layer", { layer })]
              : [],
        ),
      label: t(`walk.${stage.id}.title`),
      tell: (r, c, value) => origin(stage.id, r, c, value, data, sizes()),
    });
  }

  function likeliest() {
    const { logits, vocabulary } = data.next;
    if (!logits.length) return el("p", { class: "quiet", say: "error.offline" });
    const most = Math.max(...logits);
    const total = logits.reduce((sum, logit) => sum + Math.exp(logit - most), 0);
    const best = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, LIKELIEST);
    const items = best.map((v) => {
      const share = Math.exp(logits[v] - most) / total;
      return {
        label: vocabulary[v] ?? `#${v}`,
        value: share,
        text: percent(share),
        title: `logits[${v}] = ${exact(logits[v])}`,
      };
    });
    const last = data.shapes.tokens.at(-1);
    return el(
      "div",
      {},
      el("p", {}, said("walk.next.after", { token: chip(last) })),
      bars(items, {
        max: items[0].value,
        caption: () =>
          said("walk.next.caption", {
            n: best.length,
            V: logits.length,
            covered: percent(items.reduce((sum, each) => sum + each.value, 0)),
          }),
        columns: [t("draw.token"), t("draw.share")],
      }),
    );
  }

  return { update: () => app.trying(panel, load), place: (stage) => go(stageAt(stage)) };
}

// The stage of an address: "6" is the sixth, and nothing is the first.
const stageAt = (place) => Math.max(0, Math.min(STAGES.length - 1, (Number(place) || 1) - 1));

// ---- Small pictures of sizes

// Of which size they are, where it isn't the model's own, and what they show.
const sizeNote = (notes, key, values) =>
  el("p", { class: "quiet" }, notes && [el("b", { say: "walk.notes.at" }), " "], el("span", { say: [key, values] }));

// The width, cut into heads, of which one is looked at.
function splitPicture({ C, H, D, head }, notes) {
  return el(
    "div",
    { class: "aside" },
    sizeNote(notes, "walk.split", { head, H, D }),
    el(
      "div",
      { class: "sizes", "aria-hidden": "true" },
      el(
        "div",
        { class: "split" },
        [...Array(H).keys()].map((h) => el("span", { class: h === head ? "on" : null })),
      ),
      el("code", {}, `C = H · D = ${H} · ${D} = ${C}`),
    ),
  );
}

// C -> 4C -> C, by length.
function widthPicture({ C }, id, notes) {
  const bar = (share, text, on) =>
    el(
      "div",
      { class: "width" },
      el("span", { class: on ? "on" : null, style: { "inline-size": `${100 * share}%` } }),
      el("code", {}, text),
    );
  return el(
    "div",
    { class: "aside" },
    sizeNote(notes, "walk.width", { C, wide: 4 * C }),
    el(
      "div",
      { class: "sizes", "aria-hidden": "true" },
      bar(0.25, `C = ${C}`),
      bar(1, `4C = ${4 * C}`, id === "fc"),
      bar(0.25, `C = ${C}`, id === "mlp_proj"),
    ),
  );
}
