// Two selects: one for a layer, one for a head of that layer. The choice holds on all tabs.

import { exportedOptions } from "octavo/api";
import { el, field, setNumbers } from "octavo/dom";

export class HeadSelector {
  // `onChange()` is called when the user chooses another layer or head. `id` prefixes the ids of the two selects.
  constructor(id, app, onChange) {
    this.app = app;
    this.layer = 0;
    this.head = 0;
    const onchange = () => {
      this.choose(Number(this.layers.value), Number(this.heads.value));
      onChange();
    };
    this.layers = el("select", { id: `${id}-layer`, onchange });
    this.heads = el("select", { id: `${id}-head`, onchange });
    this.fields = [field(this.layers, "common.layer"), field(this.heads, "common.head")];
  }

  choose(layer, head = this.head) {
    Object.assign(this, { layer, head });
    this.app.choose({ layer, head });
  }

  // Offers the layers and heads of a model, and selects what the user has chosen, else `fallback`. An exported page
  // offers those for which it has an answer to `view`.
  update({ n_layer, n_head }, view, fallback = { layer: 0, head: 0 }) {
    const exported = exportedOptions(view);
    const { app } = this;
    this.layer = Math.min(app.layer ?? fallback.layer, n_layer - 1);
    this.head = Math.min(app.head ?? fallback.head, n_head - 1);
    if (exported && !exported.some(({ layer, head }) => layer === this.layer && head === this.head)) {
      const { layer, head } = exported.find((option) => option.layer === this.layer) ?? exported[0];
      Object.assign(this, { layer, head });
    }
    const offered = (name, count) =>
      exported ? [...new Set(exported.map((option) => option[name]))] : [...Array(count).keys()];
    setNumbers(this.layers, offered("layer", n_layer), this.layer);
    setNumbers(this.heads, offered("head", n_head), this.head);
  }
}
