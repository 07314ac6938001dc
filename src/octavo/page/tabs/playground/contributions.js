// Direct logit attribution: how much each component of the model contributed to the logit of a token, or to the
// difference from another token's logit.

import { fetchView, isAbortError } from "octavo/api";
import { el, setOptions, setSentence, signedNumberElement } from "octavo/dom";
import { signedBar } from "octavo/figures/bars";
import { pictureTools } from "octavo/figures/picture_tools";
import { dataTable } from "octavo/figures/table";
import { formatNumber, t } from "octavo/i18n";
import { labelChip } from "octavo/tokens";

const MAX_BARS = 12; // the largest contributions; the others share one bar

export class Contributions {
  constructor() {
    const onchange = () => this.#fetch();
    this.token = el("select", { id: "contributions-token", onchange });
    this.against = el("select", { id: "contributions-against", onchange });
    this.intro = el("p");
    this.list = el("ul", { class: "signed-bars" });
    this.total = el("p", { class: "total" });
    this.error = el("p", { class: "error", role: "status" });
    const label = () => t("contributions.title");
    const table = dataTable(() => this.#tableContent(), { label });
    this.table = pictureTools(table, label, () => [this.intro, this.list, this.total]);
    this.element = el(
      "section",
      { class: "contributions", hidden: true },
      el("h3", { textKey: "contributions.title" }),
      this.intro,
      el(
        "div",
        { class: "tight-row" },
        el("label", { for: "contributions-token", textKey: "figure.token" }),
        this.token,
        el("label", { for: "contributions-against", textKey: "contributions.against" }),
        this.against,
      ),
      this.error,
      this.list,
      this.total,
      this.table,
      el("p", { class: "caveat", textKey: "contributions.caveat" }),
    );
  }

  // `mostLikely`: the most likely tokens at the position, {id, label}, by descending probability.
  async show(position, mostLikely) {
    Object.assign(this, { position, mostLikely });
    this.#offerTokens(position.actual?.id ?? mostLikely[0].id, "");
    await this.#fetch();
  }

  // The values of the options are token ids; the empty value of the second <select> means no token.
  #offerTokens(token = this.token.value, against = this.against.value) {
    const [first, ...others] = this.mostLikely;
    const { actual } = this.position;
    const labels = new Map([[first.id, t("contributions.most_likely", { token: first.label })]]);
    for (const { id, label } of [...(actual ? [actual] : []), ...others]) if (!labels.has(id)) labels.set(id, label);
    setOptions(this.token, [...labels], token);
    setOptions(this.against, [["", t("contributions.nothing")], ...labels], against);
  }

  async #fetch() {
    const { ids, step } = this.position;
    const against = this.against.value === "" ? null : Number(this.against.value);
    const options = { text: ids, position: ids.length - 1, step, token: Number(this.token.value), against };
    this.error.replaceChildren();
    try {
      this.answer = await fetchView("contributions", options, { replaces: "contributions" });
      this.#draw();
    } catch (error) {
      if (!isAbortError(error)) this.error.replaceChildren(el("bdi", {}, error.message));
    }
  }

  #draw() {
    this.#offerTokens(); // in the current language
    const { token, against, logit } = this.answer;
    const first = labelChip(token.label);
    if (against) setSentence(this.intro, "contributions.over", { token: first, other: labelChip(against.label) });
    else setSentence(this.intro, "contributions.lead", { token: first });
    const bars = this.#largest();
    const values = bars.map(({ value }) => value);
    const item = ({ name, value }) =>
      el("li", {}, el("span", {}, name), signedBar(value, values), signedNumberElement(value));
    this.list.replaceChildren(...bars.map(item));
    setSentence(this.total, "contributions.total", { sum: formatNumber(logit, 3) });
    this.table.fill();
    this.element.hidden = false;
  }

  // The largest contributions, {name, value}, then the sum of all others.
  #largest() {
    const { parts, contributions } = this.answer;
    const sorted = contributions
      .map((value, i) => ({ name: componentName(parts[i]), value }))
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const rest = sorted.splice(MAX_BARS);
    if (!rest.length) return sorted;
    const value = rest.reduce((sum, bar) => sum + bar.value, 0);
    return [...sorted, { name: t("contributions.rest", { count: rest.length }), value }];
  }

  #tableContent() {
    const { parts, contributions, norms } = this.answer;
    return {
      columns: ["col.component", "col.contribution", "col.norm"].map((key) => t(key)),
      rows: parts.map((component, i) => [
        componentName(component),
        signedNumberElement(contributions[i], 4),
        formatNumber(norms[i], 3),
      ]),
    };
  }
}

const componentName = ({ name, layer, head }) => t(`component.${name}`, { layer, head });
