// Two selects: one for a layer, one for a head of that layer.

import { savedOptions } from "octavo/api";
import { el, field, setNumbers } from "octavo/dom";

export class HeadSelector {
  // `onChange()` is called when the user chooses another layer or head. `id` prefixes the ids of the two selects.
  constructor(id, onChange) {
    this.layer = 0;
    this.head = 0;
    const readSelects = () => this.choose(Number(this.layers.value), Number(this.heads.value));
    this.layers = el("select", { id: `${id}-layer`, onchange: () => onChange(readSelects()) });
    this.heads = el("select", { id: `${id}-head`, onchange: () => onChange(readSelects()) });
    this.fields = [field(this.layers, "common.layer"), field(this.heads, "common.head")];
  }

  choose(layer, head = this.head) {
    Object.assign(this, { layer, head });
  }

  // Offers the layers and heads of a model. A saved page offers those for which it has an answer to `view`.
  update({ n_layer, n_head }, view) {
    const saved = savedOptions(view);
    this.choose(Math.min(this.layer, n_layer - 1), Math.min(this.head, n_head - 1));
    if (saved && !saved.some(({ layer, head }) => layer === this.layer && head === this.head)) {
      const { layer, head } = saved.find((option) => option.layer === this.layer) ?? saved[0];
      this.choose(layer, head);
    }
    const offered = (name, count) =>
      saved ? [...new Set(saved.map((option) => option[name]))] : [...Array(count).keys()];
    setNumbers(this.layers, offered("layer", n_layer), this.layer);
    setNumbers(this.heads, offered("head", n_head), this.head);
  }
}
