// The logit lens at a position: the most likely tokens if the model ended after each layer.

import { fetchView } from "octavo/api";
import { el, scrollRegion } from "octavo/dom";
import { barLength } from "octavo/figures/bars";
import { formatNumber, formatPercent } from "octavo/i18n";
import { labelChip } from "octavo/tokens";

const TOP = 5;

export class LogitLens {
  constructor() {
    this.header = el("tr");
    this.body = el("tbody");
    this.element = el(
      "section",
      { class: "logit-lens", hidden: true },
      el("h3", { textKey: "logit_lens.title" }),
      el("p", { textKey: "logit_lens.lead" }),
      scrollRegion("logit_lens.title", el("table", {}, el("thead", {}, this.header), this.body)),
      el("p", { class: "caveat", textKey: "logit_lens.caveat" }),
    );
  }

  // `ids` are the tokens before the position. `actual` is the token at the position, or null; the view reports its
  // rank.
  async show({ ids, actual, step }) {
    const text = actual ? [...ids, actual.id] : ids;
    const options = { text, positions: [ids.length - 1], top: TOP, step };
    this.answer = await fetchView("logit_lens", options, { replaces: "logit_lens" });
    this.actualToken = actual;
    this.#draw();
  }

  #draw() {
    const { answer, actualToken } = this;
    const column = (key, properties = {}) => el("th", { scope: "col", textKey: key, ...properties });
    this.header.replaceChildren(
      column("col.stage"),
      column("col.predictions", { colspan: answer.ids[0][0].length }),
      column("col.entropy"),
      ...(actualToken ? [column(["logit_lens.rank", { token: labelChip(actualToken.label) }])] : []),
    );
    this.body.replaceChildren(...answer.ids.map((_, stage) => this.#row(stage)));
    this.element.hidden = false;
  }

  #row(stage) {
    const { ids, probabilities, entropy, rank, vocabulary } = this.answer;
    const prediction = (id, i) => predictionCell(vocabulary[id], probabilities[stage][0][i], id === this.actualToken?.id);
    return el(
      "tr",
      {},
      el("th", { scope: "row", textKey: stage ? ["layers.after", { layer: stage - 1 }] : "layers.start" }),
      ids[stage][0].map(prediction),
      el("td", {}, formatNumber(entropy[stage][0] / Math.LN2, 2)),
      this.actualToken && el("td", {}, String(rank[stage][0])),
    );
  }
}

function predictionCell(label, probability, isActual) {
  const bar = el("span", { style: { "inline-size": barLength(probability) } });
  return el(
    "td",
    { class: isActual ? "prediction actual" : "prediction", dataset: { share: probability } },
    labelChip(label),
    " ",
    el("small", {}, formatPercent(probability)),
    el("span", { class: "track", "aria-hidden": "true" }, bar),
  );
}
