// Under a guess: what the model would have said after each layer, and how much each of its parts spoke for a token.

import { isAborted, lens } from "octavo/api";
import { asTable, offer, push, scrolled, signed, tokenChip } from "octavo/controls";
import { el, number, percent, say, t } from "octavo/dom";

const GUESSES = 5;
const LARGEST = 12; // contributions that have a bar of their own

// ---- The logit lens

export class Layers {
  constructor() {
    this.head = el("tr");
    this.body = el("tbody");
    this.element = el(
      "section",
      { class: "layers", hidden: true },
      el("h3", { say: "layers.title" }),
      el("p", { say: "layers.lead" }),
      scrolled("layers.title", el("table", {}, el("thead", {}, this.head), this.body)),
      el("p", { class: "caveat", say: "layers.caveat" }),
    );
  }

  // `ids` are what the model had read; `came` is the token that stands there, if one does.
  async show({ ids, came, step }) {
    const text = came ? [...ids, came.id] : ids; // so that its rank is known; nothing earlier can see it
    this.found = await lens("logit_lens", { text, positions: [ids.length - 1], top: GUESSES, step }, { instead: "layers" });
    this.came = came;
    this.draw();
  }

  draw() {
    if (!this.found) return;
    const { ids, probabilities, entropy, rank, vocabulary } = this.found,
      { came } = this;
    this.head.replaceChildren(
      el("th", { scope: "col", say: "col.stage" }),
      el("th", { scope: "col", colspan: ids[0][0].length, say: "col.guesses" }),
      el("th", { scope: "col", say: "col.entropy" }),
      ...(came ? [el("th", { scope: "col", say: ["layers.rank", { token: tokenChip(came.label) }] })] : []),
    );
    this.body.replaceChildren(
      ...ids.map(([row], stage) =>
        el(
          "tr",
          {},
          el("th", { scope: "row", say: stage ? ["layers.after", { layer: stage - 1 }] : "layers.start" }),
          row.map((id, at) => guess(vocabulary[id], probabilities[stage][0][at], id === came?.id)),
          el("td", {}, number(entropy[stage][0] / Math.LN2, 2)),
          came && el("td", {}, String(rank[stage][0])),
        ),
      ),
    );
    this.element.hidden = false;
  }
}

function guess(label, share, isHere) {
  return el(
    "td",
    { class: isHere ? "guess here" : "guess", dataset: { share } },
    tokenChip(label),
    " ",
    el("small", {}, percent(share)),
    el("span", { class: "track", "aria-hidden": "true" }, el("span", { style: { "inline-size": `${100 * share}%` } })),
  );
}

// ---- Contributions

export class Parts {
  constructor() {
    this.token = el("select", { id: "parts-token", onchange: () => this.#ask() });
    this.against = el("select", { id: "parts-against", onchange: () => this.#ask() });
    this.lead = el("p");
    this.list = el("ul", { class: "pushes" });
    this.total = el("p", { class: "total" });
    this.error = el("p", { class: "error", role: "status" });
    this.table = asTable("parts.title", ["col.part", "col.pushed", "col.length"], () => this.#rows());
    this.element = el(
      "section",
      { class: "parts", hidden: true },
      el("h3", { say: "parts.title" }),
      this.lead,
      el(
        "div",
        { class: "line" },
        el("label", { for: "parts-token", say: "draw.token" }),
        this.token,
        el("label", { for: "parts-against", say: "parts.against" }),
        this.against,
      ),
      this.error,
      this.list,
      this.total,
      this.table,
      el("p", { class: "caveat", say: "parts.caveat" }),
    );
  }

  // `likely` are the likeliest tokens there, {id, label}, the likeliest first.
  async show(place, likely) {
    Object.assign(this, { place, likely });
    const { came } = place;
    this.#choices(came && came.id !== likely[0].id && spelled(came.label) !== null ? came.label : "", "");
    await this.#ask();
  }

  #choices(token = this.token.value, against = this.against.value) {
    const {
      place: { came },
      likely,
    } = this;
    const first = likely[0].label;
    const others = [came, ...likely.slice(1)].filter(
      (each) => each && each.label !== first && spelled(each.label) !== null,
    );
    const labels = [...new Set(others.map((each) => each.label))].map((label) => [label, label]);
    const likeliest = t("parts.likeliest", { token: first });
    offer(this.token, [["", likeliest], ...labels], token); // the one that needn't be named is the likeliest
    offer(
      this.against,
      [["", t("parts.nothing")], ...(spelled(first) === null ? [] : [[first, likeliest]]), ...labels],
      against,
    );
  }

  async #ask() {
    const { ids, step } = this.place;
    const asked = { token: spelled(this.token.value), against: spelled(this.against.value) };
    this.error.replaceChildren();
    try {
      this.found = await lens(
        "contributions",
        { text: ids, position: ids.length - 1, step, ...asked },
        { instead: "parts" },
      );
      this.draw();
    } catch (error) {
      if (!isAborted(error)) this.error.replaceChildren(el("bdi", {}, error.message));
    }
  }

  draw() {
    if (!this.found) return;
    this.#choices();
    const { token, against, logit, parts, contributions } = this.found;
    if (against) say(this.lead, "parts.over", { token: tokenChip(token.label), other: tokenChip(against.label) });
    else say(this.lead, "parts.lead", { token: tokenChip(token.label) });
    const largest = contributions
      .map((value, at) => ({ name: named(parts[at]), value }))
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const rest = largest.splice(LARGEST);
    if (rest.length)
      largest.push({
        name: t("parts.rest", { count: rest.length }),
        value: rest.reduce((sum, { value }) => sum + value, 0),
      });
    const values = largest.map(({ value }) => value);
    this.list.replaceChildren(
      ...largest.map(({ name, value }) => el("li", {}, el("span", {}, name), push(value, values), signed(value))),
    );
    say(this.total, "parts.total", { sum: number(logit, 3) });
    this.table.fill();
    this.element.hidden = false;
  }

  #rows() {
    const { parts, contributions, norms } = this.found;
    return parts.map((part, at) => [named(part), signed(contributions[at], 4), number(norms[at], 3)]);
  }
}

const named = ({ name, layer, head }) => t(`part.${name}`, { layer, head });

// A token's text, from the name that makes it visible; null where it has none that can be typed.
function spelled(label) {
  if (!label || /^<.+>$/u.test(label) || /^#\d+$/.test(label)) return null;
  const blanks = { "␣": " ", "⏎": "\n", "␍": "\r", "⇥": "\t", "◌": "" };
  return label.replace(/[␣⏎␍⇥]|^◌/gu, (sign) => blanks[sign]);
}
