// The readout of an attention pattern: the two tokens, and the share.

import { code, el } from "octavo/dom";
import { number } from "octavo/i18n";

// The share of attention from one token to another; empty if the other one is later, where there is no value.
export function shareReadout(tokens, from, to, value) {
  if (value === undefined) return "";
  const name = (i) => el("bdi", {}, tokens[i].label);
  return [name(from), " → ", name(to), " ", code(number(value, 4))];
}
