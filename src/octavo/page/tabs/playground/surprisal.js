// How surprised the model is by each token of a text: a bar under the token, longer for more, in bits or by rank.
//
// The bar is a background, so nothing moves a letter: spans in running text have no padding, margin or border, which
// would break the joining of Arabic and Indic letters.

import { lens, mustRead } from "octavo/api";
import { asTable, leftOut, signBreak, stacked, tokenChip } from "octavo/controls";
import { count, el, number, percent, said, say, t, tokenSpans } from "octavo/dom";

const LONGEST = 3000; // tokens that are shown
const BITS = [1, 2, 4, 7, 11]; // where a longer bar begins
const RANKS = [1, 3, 10, 100, 1000];

export class Surprisal {
  constructor(app) {
    this.app = app;
    this.text = el("textarea", { id: "score-text", rows: 3, dir: "auto", spellcheck: "false", maxlength: 50000 });
    this.sum = el("p", { class: "sum" });
    this.notes = el("p", { class: "quiet" });
    this.running = el("div", { class: "page" });
    this.numbers = el("p", { class: "numbers", role: "status" });
    this.legend = el("ul", { class: "steps" });
    this.by = el(
      "fieldset",
      { class: "line plain" },
      el("legend", { say: "score.by" }),
      ["bits", "rank"].map((name, at) =>
        el(
          "label",
          { class: "check" },
          el("input", { type: "radio", name: "score-by", value: name, checked: !at, onchange: () => this.draw() }),
          el("span", { say: `score.${name}` }),
        ),
      ),
    );
    this.table = asTable(
      "score.table",
      ["col.position", "col.token", "col.bits", "col.probability", "col.rank", "col.guess"],
      () => this.#rows(),
    );
    this.result = el(
      "div",
      { hidden: true },
      this.sum,
      this.by,
      this.running,
      this.numbers,
      el("p", { class: "quiet", say: "score.legend" }),
      this.legend,
      this.notes,
      this.table,
    );
    this.element = el(
      "section",
      { class: "card surprisal" },
      el("h2", { say: "score.title" }),
      el("p", { say: "score.lead" }),
      el(
        "form",
        {
          onsubmit: (event) => {
            event.preventDefault();
            if (this.text.value) app.trying(this.element, () => this.#measure());
          },
        },
        stacked(this.text, "score.text"),
        el("p", {}, el("button", { type: "submit", say: "score.measure" })),
      ),
      this.result,
    );
  }

  // Another model, step or language. What was measured is measured again.
  async update(another) {
    if (another && !this.text.value) this.text.value = this.app.text;
    if (another) this.found = null;
    this.result.hidden = !this.found;
    if (this.found) await this.app.trying(this.element, () => this.#measure());
  }

  async #measure() {
    const text = this.text.value;
    const asked = { text, unknown: "skip" };
    await mustRead(text, this.app.model).catch((error) => {
      this.result.hidden = true; // it is of another text
      throw error;
    });
    const [found, { groups }] = await Promise.all([lens("surprisal", asked, { instead: "score" }), lens("tokens", asked)]);
    Object.assign(this, {
      found,
      groups: groups.filter((group) => group.first + group.count <= LONGEST),
      unknown: leftOut(text, groups),
    });
    this.result.hidden = false;
    this.draw();
  }

  draw() {
    const { found, groups } = this;
    if (!found) return;
    const byBits = this.by.querySelector("input:checked").value === "bits";
    const edges = byBits ? BITS : RANKS;
    const level = (at) =>
      byBits
        ? edges.filter((edge) => bits(found, at) >= edge).length
        : edges.filter((edge) => found.rank[at] > edge).length;
    const counts = Array(edges.length + 1).fill(0);
    const spans = tokenSpans(found.tokens, groups, {
      labelKey: "score.text",
      each: (span, group) => {
        const { first, count } = group;
        signBreak(span, group);
        // Of a character that is several tokens, the most surprising one.
        const levels = Array.from({ length: count }, (_, i) => first + i)
          .filter(Boolean)
          .map(level);
        levels.forEach((each) => counts[each]++);
        if (levels.length) span.classList.add("surprise", `level-${Math.max(...levels)}`);
      },
      onPick: (first, { count }) => this.#tell(first, count),
    });
    this.running.replaceChildren(spans);
    this.legend.replaceChildren(
      ...counts.map((each, at) =>
        el(
          "li",
          {},
          el("span", { class: `surprise level-${at}`, "aria-hidden": "true" }, "  "),
          el("span", {}, range(at, byBits)),
          el("small", {}, `× ${count(each)}`),
        ),
      ),
    );
    const { loss, perplexity, bits_per_byte, block_size } = found;
    say(this.sum, "score.sum", {
      bits: number(loss / Math.LN2, 2),
      loss: number(loss, 4),
      perplexity: number(perplexity, 2),
      bpb: number(bits_per_byte, 3),
    });
    const notes = [];
    if (found.tokens.length > block_size) notes.push(t("score.windows", { block: block_size }));
    if (this.unknown) notes.push(t("text.left_out", { characters: this.unknown }));
    if (found.tokens.length > LONGEST) notes.push(t("score.cut", { count: LONGEST }));
    this.notes.replaceChildren(notes.join(" "));
    say(this.numbers, "score.hint");
    this.table.fill();
  }

  #tell(first, many) {
    this.groups.forEach((group, i) =>
      this.running.firstChild.spans[i].classList.toggle("chosen", group.first === first),
    );
    const { tokens, surprisal, rank, guesses } = this.found;
    this.numbers.replaceChildren(
      ...Array.from({ length: many }, (_, i) => first + i).map((at) =>
        el(
          "span",
          {},
          at
            ? said("score.one", {
                token: tokenChip(tokens[at].label),
                bits: number(bits(this.found, at), 2),
                share: percent(Math.exp(-surprisal[at])),
                rank: rank[at],
                guess: tokenChip(guesses[at]),
              })
            : said("score.first", { token: tokenChip(tokens[at].label) }),
          " ",
        ),
      ),
    );
  }

  #rows() {
    const { tokens, surprisal, rank, guesses } = this.found;
    return tokens
      .slice(1, LONGEST)
      .map((token, i) => [
        String(i + 1),
        el("bdi", {}, token.label),
        number(bits(this.found, i + 1), 2),
        percent(Math.exp(-surprisal[i + 1]), 2),
        String(rank[i + 1]),
        el("bdi", {}, guesses[i + 1]),
      ]);
  }
}

const bits = (found, at) => (found.surprisal[at] ?? 0) / Math.LN2;

function range(at, byBits) {
  if (byBits) {
    if (!at) return t("score.below", { bits: BITS[0] });
    return at === BITS.length
      ? t("score.above", { bits: BITS.at(-1) })
      : t("score.from", { low: BITS[at - 1], high: BITS[at] });
  }
  if (!at) return t("score.best");
  return at === RANKS.length
    ? t("score.beyond", { rank: RANKS.at(-1) })
    : t("score.ranks", { low: RANKS[at - 1] + 1, high: RANKS[at] });
}
