// Attention: one head's pattern over the text, as arcs and as a matrix, and all heads by one of their statistics.
//
// Row t is how token t spreads its attention over the tokens up to itself. Rows sum to 1, and the sums are beside them.

import { fetchView } from "octavo/api";
import { el, field, say, tNodes } from "octavo/dom";
import { HeadSelector } from "octavo/head_selector";
import { exactNumber, number, t } from "octavo/i18n";
import { arcs, strongest } from "octavo/pictures/arcs";
import { matrix } from "octavo/pictures/matrix";
import { chip, lastWordIndex } from "octavo/tokens";

const STATISTICS = ["entropy", "distance", "previous", "first", "itself"];
const SHARES = ["previous", "first", "itself"]; // the statistics between 0 and 1
const FULL_SCALE_TOKENS = 64; // up to this length the strongest color is a share of 1; see patternScale()
const MIN_SCALE = 0.02;

export function mount(panel, app) {
  let answer = null; // {tokens, weights, heads, layer, head, left_out, groups, sums}
  let chosenRow = null; // the token whose attention is shown; at first that of the last word
  let chosenText = null; // the text that this token belongs to

  const load = () => app.runTask(panel, fetchAttention);
  const selector = new HeadSelector("attention", load);
  const statistic = el(
    "select",
    { id: "attention-statistic", onchange: () => drawHeads() },
    STATISTICS.map((value) => el("option", { value, say: `attention.statistic.${value}` })),
  );
  const title = el("h2");
  const leftOut = el("p", { class: "quiet" });
  const headsMatrix = matrix([]);
  const pattern = matrix([]);
  const arcsHolder = el("div");
  let arcsFigure = null;
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
          el("div", { class: "row" }, selector.fields, field(statistic, "attention.statistic")),
          headsMatrix,
        ),
        el("p", { class: "caveat", say: "common.attention_caveat" }),
      ),
      el(
        "div",
        {},
        el("div", { class: "card" }, title, leftOut, arcsHolder),
        el("div", { class: "card" }, el("h2", { say: "attention.all" }), pattern),
      ),
    ),
  );

  async function fetchAttention() {
    selector.update(app.model.model, "attention");
    const { layer, head } = selector;
    const text = { text: app.text, unknown: "skip" };
    const [attention, { groups }] = await Promise.all([
      fetchView("attention", { ...text, layer, head }, { replaces: "attention" }),
      fetchView("tokens", text, { replaces: "attention tokens" }),
    ]);
    const T = attention.tokens.length;
    answer = {
      ...attention,
      groups: groups.filter((group) => group.first + group.count <= T),
      sums: attention.weights.map((row) => row.reduce((a, b) => a + b, 0)),
    };
    const isNewText = chosenText !== app.text;
    if (isNewText || chosenRow >= T) chosenRow = lastWordIndex(attention.tokens);
    chosenText = app.text;
    say(title, "attention.title", { layer, head });
    leftOut.hidden = !answer.left_out;
    say(leftOut, "common.left_out", { n: answer.left_out });
    drawHeads();
    drawPattern(isNewText);
    drawArcs();
  }

  // ---- All heads

  function drawHeads() {
    if (!answer) return;
    const { n_layer, n_head } = app.model.model;
    const name = statistic.value;
    const values = Array.from({ length: n_layer }, () => Array(n_head).fill(0));
    for (const statistics of answer.heads) values[statistics.layer][statistics.head] = statistics[name];
    headsMatrix.show(values, {
      scale: "share",
      max: SHARES.includes(name) ? 1 : undefined,
      maxCell: 44,
      numbers: true,
      cursor: [answer.layer, answer.head],
      rows: (layer) => `h.${layer}`,
      caption: () => tNodes("attention.heads"),
      label: t("attention.which"),
      readout: (layer, head, value) =>
        t("attention.heads.cell", {
          layer,
          head,
          value: number(value, 3),
          statistic: t(`attention.statistic.${name}`),
        }),
      onPick: (layer, head) => {
        selector.choose(layer, head);
        load();
      },
    });
  }

  // ---- The chosen head

  const tokenName = (i) => `${i} ${answer.tokens[i].label}`;
  const mostAttended = (row) => strongest(answer.weights[row], 1)[0] ?? 0;

  // A token that is a part of a character is named with the whole character.
  function tokenNode(i) {
    const group = answer.groups.find(({ first, count }) => i >= first && i < first + count);
    const character = group?.count > 1 && el("bdi", {}, group.text);
    return el("span", {}, character, chip(answer.tokens[i]), el("sub", {}, String(i)));
  }

  function drawPattern(isNewText) {
    const max = patternScale(answer.weights);
    pattern.show(answer.weights, {
      scale: "share",
      max,
      isCapped: max < 1,
      totals: answer.sums,
      rows: tokenName,
      columns: tokenName,
      isHidden: (row, column) => column > row,
      maxCell: 40,
      cursor: [chosenRow, isNewText ? mostAttended(chosenRow) : Math.min(chosenRow, pattern.cursor[1])],
      caption: () => tNodes("attention.matrix"),
      label: t("attention.title", { layer: answer.layer, head: answer.head }),
      readout: patternReadout,
      onHover: chooseRow,
    });
  }

  function patternReadout(row, column, value) {
    const ends = { from: tokenNode(row), to: tokenNode(column) };
    const share = el("b", { class: "exact" }, exactNumber(value));
    const sum = el("b", { class: "sum" }, number(answer.sums[row], 3));
    return [
      column > row
        ? el("span", {}, tNodes("attention.future", ends))
        : el("span", { class: "pair" }, tNodes("attention.cell", { ...ends, share })),
      el("span", { class: "pair quiet" }, tNodes("attention.sum", { t: row, sum })),
    ];
  }

  function drawArcs() {
    const { tokens, groups, weights } = answer;
    const options = {
      chosen: chosenRow,
      caption: () => tNodes("attention.arcs"),
      onPick: (row) => {
        chooseRow(row);
        pattern.moveTo(row, mostAttended(row));
      },
      readout: (row) => [
        el("span", { class: "pair" }, tNodes("attention.arcs.at", { token: tokenNode(row) })),
        ...strongest(weights[row], 6).map((column) =>
          el("span", { class: "pair" }, tokenNode(column), " ", el("b", {}, number(weights[row][column], 3))),
        ),
      ],
    };
    if (arcsFigure) arcsFigure.show(tokens, groups, weights, options);
    else arcsHolder.append((arcsFigure = arcs(tokens, groups, weights, options)));
  }

  function chooseRow(row) {
    chosenRow = row;
    arcsFigure?.choose(row);
  }

  return { update: load };
}

// The share of the strongest color. A long text has mostly small shares, so there it is the share that one in a hundred
// of the T²/2 cells that aren't hidden exceeds.
function patternScale(weights) {
  const T = weights.length;
  if (T <= FULL_SCALE_TOKENS) return 1;
  const shares = weights.flat().sort((a, b) => a - b);
  return Math.max(MIN_SCALE, shares.at(-Math.ceil((T * T) / 200)));
}
