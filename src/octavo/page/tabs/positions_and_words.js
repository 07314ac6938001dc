// Positions and words: what the two tables hold. A word at two positions, how alike positions are, how two words grow
// alike along training, and a map of the tokens. The static page has only the first two.

import { offline } from "octavo/api";
import { likeness } from "octavo/tabs/positions_and_words/cosine_similarity";
import { map } from "octavo/tabs/positions_and_words/projection";
import { oneWord } from "octavo/tabs/positions_and_words/position";
import { el } from "octavo/dom";

export function mount(panel, app) {
  const parts = [oneWord(app), ...(offline ? [] : [likeness(app), map(app)])];
  const [word, alike, all] = parts;
  panel.append(word.node, el("div", { class: "two" }, word.alike, alike?.node), ...(all ? [all.node] : []));
  return {
    update: () => Promise.all(parts.map((part) => app.trying(part.node, part.load))),
    hide: () => parts.forEach((part) => part.hide?.()),
  };
}
