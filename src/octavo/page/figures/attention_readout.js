// The readout of an attention pattern: the two tokens, and the attention weight.

import { code, el } from "octavo/dom";
import { formatNumber } from "octavo/i18n";

// The attention weight from one token to another. Empty if `to` is after `from`: such weights are masked, and the
// server omits them (`encode_attention` in server/lens_api.py), so `value` is undefined.
export function attentionReadout(tokens, from, to, value) {
  if (value === undefined) return "";
  const name = (i) => el("bdi", {}, tokens[i].label);
  return [name(from), " → ", name(to), " ", code(formatNumber(value, 4))];
}
