// Positions and words: the rows of the two embedding tables. It has four cards: a word at two positions; the similarity
// of positions; the similarity of two words during training; a map of the tokens. A saved page has only the first two.

import { offline } from "octavo/api";
import { el } from "octavo/dom";
import { CosineSimilarity } from "octavo/tabs/positions_and_words/cosine_similarity";
import { Position } from "octavo/tabs/positions_and_words/position";
import { Projection } from "octavo/tabs/positions_and_words/projection";

export function mount(panel, app) {
  const position = new Position(app);
  const similarity = offline ? null : new CosineSimilarity(app);
  const projection = offline ? null : new Projection(app);
  panel.append(
    position.card,
    el("div", { class: "two-columns" }, position.positionsCard, ...(similarity ? [similarity.card] : [])),
  );
  if (projection) panel.append(projection.card);
  const parts = [position, similarity, projection].filter(Boolean);
  return {
    update: () => Promise.all(parts.map((part) => app.runTask(part.card, () => part.load()))),
    hide: () => projection?.stop(),
  };
}
