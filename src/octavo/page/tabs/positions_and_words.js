// Positions and words: the rows of the two embedding tables. It has four cards: a word at two positions; the similarity
// of positions; the similarity of two words during training; a map of the tokens. An exported page has only the
// first two. WordAtPositions has both of these, because one answer of the server fills them.

import { offline } from "octavo/api";
import { el, foldable } from "octavo/dom";
import { CosineSimilarity } from "octavo/tabs/positions_and_words/cosine_similarity";
import { WordAtPositions } from "octavo/tabs/positions_and_words/position";
import { Projection } from "octavo/tabs/positions_and_words/projection";

export function mount(panel, app) {
  const wordAtPositions = new WordAtPositions(app);
  const wordSimilarity = offline ? null : new CosineSimilarity(app);
  const projection = offline ? null : new Projection(app);
  panel.append(
    wordAtPositions.card,
    el(
      "div",
      { class: "two-columns" },
      foldable(wordAtPositions.similarityCard),
      wordSimilarity && foldable(wordSimilarity.card),
    ),
  );
  if (projection) panel.append(foldable(projection.card));
  const parts = [wordAtPositions, wordSimilarity, projection].filter(Boolean);
  return {
    update: () => Promise.all(parts.map((part) => app.runTask(part.card, () => part.load()))),
    hide: () => projection?.stop(),
  };
}
