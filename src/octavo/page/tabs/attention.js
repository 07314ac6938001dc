// Attention: one head's pattern over the text, as a matrix and as arcs, and all heads by a habit of theirs.
//
// Row t is what token t gives to each token up to itself. Rows sum to 1, and the sums stand beside them.

import { available, lens } from "octavo/api";
import { arcs, matrix } from "octavo/pictures/bars";
import { chip, choices, el, exact, field, lastWord, number, said, say, t } from "octavo/dom";

const HABITS = ["entropy", "distance", "previous", "first", "itself"];

export function mount(panel, app) {
  let layer = 0,
    head = 0,
    seen = null; // seen: the answer on screen
  let at = null, // the token that is looked from: at first the last, which sees them all
    text = null;

  const layers = el("select", { id: "attention-layer", onchange: () => choose(Number(layers.value), head) });
  const heads = el("select", { id: "attention-head", onchange: () => choose(layer, Number(heads.value)) });
  const habit = el(
    "select",
    { id: "attention-habit", onchange: () => drawHeads() },
    HABITS.map((value) => el("option", { value, say: `attention.habit.${value}` })),
  );
  const title = el("h2");
  const grid = matrix([], { table: true });
  const pattern = matrix([], {});
  const picture = el("div");
  const notes = el("p", { class: "quiet" });
  panel.append(
    el(
      "div",
      { class: "together" },
      el(
        "div",
        { class: "side" },
        el(
          "div",
          { class: "card" },
          el("h2", { say: "attention.which" }),
          el(
            "div",
            { class: "row" },
            field(layers, "walk.layer"),
            field(heads, "walk.head"),
            field(habit, "attention.habit"),
          ),
          grid,
        ),
        el("p", { class: "caveat", say: "attention.caveat" }),
      ),
      el(
        "div",
        {},
        el("div", { class: "card" }, title, notes, picture),
        el("div", { class: "card" }, el("h2", { say: "attention.all" }), pattern),
      ),
    ),
  );
  let curves = null;

  async function choose(newLayer, newHead) {
    [layer, head] = [newLayer, newHead];
    await app.trying(panel, load);
  }

  async function load() {
    const { n_layer, n_head } = app.model.model;
    const there = available("attention");
    [layer, head] = [Math.min(layer, n_layer - 1), Math.min(head, n_head - 1)];
    if (there && !there.some((each) => each.layer === layer && each.head === head))
      ({ layer, head } = there.find((each) => each.layer === layer) ?? there[0]);
    choices(layers, there ? [...new Set(there.map((each) => each.layer))] : [...Array(n_layer).keys()], layer);
    choices(
      heads,
      there ? there.filter((each) => each.layer === layer).map((each) => each.head) : [...Array(n_head).keys()],
      head,
    );
    const read = { text: app.text, unknown: "skip" };
    const [answer, { groups }] = await Promise.all([
      lens("attention", { ...read, layer, head }, { instead: "attention" }),
      lens("tokens", read, { instead: "attention tokens" }),
    ]);
    const T = answer.tokens.length;
    seen = {
      ...answer,
      T,
      groups: groups.filter((group) => group.first + group.count <= T),
      sums: answer.weights.map((row) => row.reduce((a, b) => a + b, 0)),
    };
    if (text !== app.text || at >= T) at = lastWord(answer.tokens);
    const anew = text !== app.text;
    text = app.text;
    say(title, "attention.title", { layer, head });
    notes.hidden = !answer.left_out;
    say(notes, "attention.left", { n: answer.left_out });
    drawHeads();
    drawPattern(anew);
    drawArcs();
  }

  // ---- All heads

  function drawHeads() {
    if (!seen) return;
    const { n_layer, n_head } = app.model.model;
    const values = Array.from({ length: n_layer }, () => Array(n_head).fill(0));
    for (const each of seen.heads) values[each.layer][each.head] = each[habit.value];
    grid.show(values, {
      scale: "share",
      max: ["entropy", "distance"].includes(habit.value) ? undefined : 1,
      maxCell: 44,
      numbers: true,
      at: [layer, head],
      rows: (l) => `h.${l}`,
      caption: () => said("attention.heads"),
      label: t("attention.which"),
      tell: (l, h, value) =>
        t("attention.heads.cell", {
          layer: l,
          head: h,
          habit: t(`attention.habit.${habit.value}`),
          value: number(value, 3),
        }),
      onPick: (l, h) => choose(l, h),
    });
  }

  // ---- The chosen one

  const name = (i) => `${i} ${seen.tokens[i].label}`;
  // A token that is a part of a character is named with the whole of it.
  const token = (i) => {
    const group = seen.groups.find((each) => i >= each.first && i < each.first + each.count);
    return el(
      "span",
      {},
      group?.count > 1 && el("bdi", {}, group.text),
      chip(seen.tokens[i]),
      el("sub", {}, String(i)),
    );
  };

  // Of a long text most shares are small: then the strongest colour is for what 1 of 100 exceeds.
  function drawPattern(anew) {
    const max =
      seen.T <= 64
        ? 1
        : Math.max(
            0.02,
            seen.weights
              .flat()
              .sort((a, b) => a - b)
              .at(-Math.ceil((seen.T * seen.T) / 200)),
          );
    pattern.show(seen.weights, {
      scale: "share",
      max,
      capped: max < 1,
      totals: seen.sums,
      rows: name,
      columns: name,
      hidden: (t, s) => s > t,
      maxCell: 40,
      at: [at, anew ? strongest(at) : Math.min(at, pattern.cursor[1])],
      caption: () => said("attention.matrix"),
      label: t("attention.title", { layer, head }),
      tell: (t, s, value) => [
        s > t
          ? el("span", {}, said("attention.future", { from: token(t), to: token(s) }))
          : el(
              "span",
              { class: "pair" },
              said("attention.cell", {
                from: token(t),
                to: token(s),
                share: el("b", { class: "exact" }, exact(value)),
              }),
            ),
        el(
          "span",
          { class: "pair quiet" },
          said("attention.sum", { t, sum: el("b", { class: "sum" }, number(seen.sums[t], 3)) }),
        ),
      ],
      onHover: (t) => mark(t),
    });
  }

  function drawArcs() {
    const options = {
      at,
      caption: () => said("attention.arcs"),
      onPick: (t) => {
        mark(t);
        pattern.moveTo(t, strongest(t));
      },
      tell: (t) => [
        el("span", { class: "pair" }, said("attention.arcs.at", { token: token(t) })),
        ...best(t).flatMap((s) => [
          el("span", { class: "pair" }, token(s), " ", el("b", {}, number(seen.weights[t][s], 3))),
        ]),
      ],
    };
    if (curves) curves.show(seen.tokens, seen.groups, seen.weights, options);
    else picture.append((curves = arcs(seen.tokens, seen.groups, seen.weights, options)));
  }

  const best = (t) =>
    [...seen.weights[t].keys()]
      .sort((a, b) => seen.weights[t][b] - seen.weights[t][a])
      .filter((s) => seen.weights[t][s] > 0)
      .slice(0, 6);
  const strongest = (t) => best(t)[0] ?? 0;

  function mark(t) {
    at = t;
    curves?.mark(t);
  }

  return { update: () => app.trying(panel, load) };
}
