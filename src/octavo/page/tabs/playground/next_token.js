// What could stand at one place of a text: the bars of the next token, and the sliders that bend the draw.
//
// The logits of the place are asked for once. The sliders reshape them here, so nothing is sent while one is dragged:
// the likeliest tokens are always the same ones, only their chances change, and so do the lengths of the same bars.

import { asTable, tokenChip } from "octavo/controls";
import { Odds } from "octavo/sampling";
import { count, el, number, percent, say, sayLabel, t } from "octavo/dom";

const BARS = 12;
const MORE = 40;
const IN_TABLE = 200;
const KS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000];

// ---- The sliders

// `onChange()` after every move. `.settings` are as `Odds.shaped` takes them, `.body` as the server does.
export class Bend {
  constructor(onChange) {
    this.onChange = onChange;
    this.ks = [...KS, 0];
    const slider = (name, range) => new Slider(name, range, () => this.#moved());
    this.temperature = slider("temperature", { min: 0, max: 2, step: 0.05, value: 0.8 });
    this.topK = slider("topk", { min: 1, max: this.ks.length, step: 1, value: this.ks.length });
    this.topP = slider("topp", { min: 0.05, max: 1, step: 0.01, value: 1 });
    this.kept = el("p", { class: "kept" });
    this.element = el(
      "fieldset",
      { class: "bend" },
      el("legend", { say: "bend.title" }),
      this.temperature.element,
      this.topK.element,
      this.topP.element,
      this.kept,
      el("button", { type: "button", class: "small", say: "bend.own", onclick: () => this.reset() }),
    );
  }

  // A vocabulary of that size: k goes up to it.
  known(size) {
    const old = this.settings.topK;
    this.ks = [...KS.filter((k) => k < size), 0];
    this.topK.input.max = this.ks.length;
    this.topK.input.value = this.ks.indexOf(old) + 1 || this.ks.length;
    this.show();
  }

  get settings() {
    return { temperature: this.temperature.value, topK: this.ks[this.topK.value - 1], topP: this.topP.value };
  }

  get body() {
    const { temperature, topK, topP } = this.settings;
    return { temperature, top_k: topK, top_p: topP };
  }

  reset() {
    this.temperature.input.value = this.topP.input.value = 1;
    this.topK.input.value = this.ks.length;
    this.#moved();
  }

  show() {
    const { temperature, topK, topP } = this.settings;
    this.temperature.show(number(temperature, 2));
    this.topK.show(topK ? count(topK) : t("bend.all"));
    this.topP.show(number(topP, 2));
  }

  #moved() {
    this.show();
    this.onChange();
  }
}

class Slider {
  constructor(name, range, onInput) {
    const id = `bend-${name}`;
    this.input = el("input", { type: "range", id, name, "aria-describedby": `${id}-help`, ...range, oninput: onInput });
    this.input.value = range.value; // again, now that its ends are known
    this.shown = el("output", { for: id });
    this.element = el(
      "div",
      { class: "slider" },
      el("label", { for: id, say: `bend.${name}` }),
      this.shown,
      this.input,
      el("small", { id: `${id}-help`, say: `bend.${name}.help` }),
    );
  }

  get value() {
    return Number(this.input.value);
  }

  show(text) {
    this.shown.textContent = text;
    this.input.setAttribute("aria-valuetext", text);
  }
}

// ---- The bars

// `onChoose(token)` when a bar is chosen. `show(place)` draws {next, at, end, came}: the answer of the view `next`, the
// place's number, whether the text ends before it, and otherwise the token that came.
export class Bars {
  constructor(bend, onChoose) {
    Object.assign(this, { bend, onChoose, place: null, odds: null, many: false });
    this.title = el("h3", { tabindex: "-1" });
    this.came = el("p");
    this.list = el("ol", { class: "ladder" });
    this.shown = el("p", { class: "quiet" });
    this.more = el("button", { type: "button", class: "small", onclick: () => this.#widen() });
    this.table = asTable("place.table", ["col.token", "col.id", "col.logit", "col.own", "col.chance"], () =>
      this.#rows(),
    );
    this.element = el(
      "section",
      { class: "odds", hidden: true },
      this.title,
      this.came,
      this.list,
      el("div", { class: "line" }, this.shown, this.more),
      this.table,
    );
  }

  show(place) {
    const focused = this.list.contains(document.activeElement);
    if (place.next !== this.place?.next) this.odds = place.next && new Odds(place.next.logits);
    this.place = place;
    this.element.hidden = false;
    if (place.end) say(this.title, "place.end");
    else say(this.title, "place.at", { place: place.at });
    for (const each of [this.list, this.shown, this.more, this.table, this.bend.kept]) each.hidden = !this.odds;
    if (!this.odds) return void say(this.came, "place.first");
    if (place.came) {
      const { rank, probability } = this.odds.standing(place.came.id);
      say(this.came, "place.came", { token: tokenChip(place.came.label), share: percent(probability), rank });
    } else say(this.came, "place.hint");
    this.#build();
    this.draw();
    if (focused) this.title.focus({ preventScroll: true }); // the bar that was chosen is no more
  }

  // The bars of a place: its likeliest tokens, the one that came, and one for all others.
  #build() {
    const { odds, place } = this;
    const shown = Math.min(this.many ? MORE : BARS, odds.size);
    const came = place.came ? odds.order.indexOf(place.came.id) : -1;
    const places = [...Array(shown).keys(), ...(came >= shown ? [came] : [])];
    this.rows = places.map((at) => {
      const id = odds.order[at],
        label = this.#label(id);
      const { inside, ...row } = barOf(tokenChip(label));
      row.button = el(
        "button",
        { type: "button", "aria-current": at === came ? "true" : null, onclick: () => this.onChoose({ id, label }) },
        inside,
      );
      row.element = el("li", { dataset: { id }, class: at === came ? "here" : null }, row.button);
      if (at === came) row.button.append(el("small", { say: "place.here" }));
      return { at, id, label, ...row };
    });
    const name = el("span");
    const { inside, ...others } = barOf(name);
    this.others = { name, ...others, element: el("li", { class: "others" }, el("div", {}, inside)) };
    this.list.replaceChildren(...this.rows.map((row) => row.element), this.others.element);
    this.more.hidden = odds.size <= BARS;
    say(this.more, this.many ? "place.less" : "place.more");
  }

  // The same bars, as the sliders now have them.
  draw() {
    if (!this.odds) return;
    const { chances, covered } = this.odds.shaped(this.bend.settings);
    this.chances = chances;
    say(this.bend.kept, "bend.kept", { kept: chances.length, all: this.odds.size, share: percent(covered) });
    let named = 0,
      left = chances.length;
    for (const row of this.rows) {
      const chance = chances[row.at] ?? 0;
      row.element.hidden = row.at >= chances.length;
      named += chance;
      left -= !row.element.hidden;
      set(row, chance, chances[0]);
      sayLabel(row.button, "place.choose", { token: row.label, share: row.share.textContent });
    }
    this.others.element.hidden = !left;
    set(this.others, left ? Math.max(0, 1 - named) : 0, chances[0]);
    say(this.others.name, "place.others", { count: left });
    say(this.shown, "place.shown", { share: percent(left ? named : 1) });
    this.table.fill();
  }

  // The likeliest tokens, {id, label}.
  get likely() {
    return Array.from(this.odds.order.subarray(0, 6), (id) => ({ id, label: this.#label(id) }));
  }

  #rows() {
    const { odds, chances } = this;
    return Array.from(odds.order.subarray(0, IN_TABLE), (id, at) => [
      el("bdi", {}, this.#label(id)),
      String(id),
      number(odds.logits[id], 3),
      percent(odds.own[at], 2),
      percent(chances[at] ?? 0, 2),
    ]);
  }

  #label(id) {
    return this.place.next.vocabulary[id] ?? (id === this.place.came?.id ? this.place.came.label : `#${id}`);
  }

  #widen() {
    this.many = !this.many;
    this.#build();
    this.draw();
  }
}

function barOf(name) {
  const bar = el("span"),
    share = el("span", { class: "share", dir: "ltr" });
  return {
    bar,
    share,
    inside: [el("span", { class: "name" }, name), el("span", { class: "track", "aria-hidden": "true" }, bar), share],
  };
}

function set({ bar, share, element }, chance, longest) {
  element.dataset.chance = chance;
  bar.style.setProperty("inline-size", `${Math.min(100, (100 * chance) / longest)}%`);
  bar.classList.toggle("clipped", chance > longest * 1.0001); // all others together: longer than there is room for
  share.textContent = chance > 0 && chance < 0.0005 ? `<${percent(0.0005, 2)}` : percent(chance);
}
