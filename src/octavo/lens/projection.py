"""Tokens on the two principal axes of all rows of `wte` (PCA).

The axis letters: `V` the vocabulary, `N` tokens that are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octavo.lens.embedding import count_tokens, resolve_word
from octavo.lens.tokens import RUN, Token, load_checkpoint, make_token
from octavo.lens.view import Table, View

_POINTS = 2000  # of the map


@dataclass(frozen=True, eq=False)
class Projection(View):
    """Tokens' rows of wte on the two axes along which all V of them differ most: `points` (N, 2), exact PCA."""

    caveat: ClassVar[str] = (
        "A projection: of all directions two are shown, and near on the map need not be near in wte."
    )

    tokens: list[Token]
    points: np.ndarray
    explained: tuple[float, float]  # share of the whole variance that each axis has
    vocab_size: int

    def tables(self) -> list[Table]:
        share = sum(self.explained)
        rows = [
            (token.label, token.id, float(x), float(y)) for token, (x, y) in zip(self.tokens, self.points, strict=True)
        ]
        title = f"{len(rows):,} of {self.vocab_size:,} tokens; the two axes have {share:.0%} of the variance"
        return [Table(title, ("token", "id", "first", "second"), rows)]


def projection(run: RUN, *, words: Sequence[str] = ()) -> Projection:
    """The most frequent tokens, and `words`, on the first two principal axes of all rows of wte."""
    loaded = load_checkpoint(run)
    wte = loaded.model.transformer.wte.weight.detach().numpy()[: loaded.tokenizer.vocab_size].astype(np.float64)
    centred = wte - wte.mean(0)
    if centred.shape[1] < 2:
        centred = np.pad(centred, ((0, 0), (0, 1)))  # one axis is all that there is
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, [-1, -2]]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # a direction has two; take that of its largest part
    asked = [id for word in words for id in resolve_word(loaded.tokenizer, word)[0]]
    counts = count_tokens(loaded)
    order = np.arange(len(wte)) if counts is None else np.argsort(-counts, kind="stable")
    shown = list(dict.fromkeys([*asked, *map(int, order)]))[:_POINTS]
    total = max(float(variances.sum()), 1e-300)
    return Projection(
        [make_token(loaded.tokenizer, id) for id in shown],
        centred[shown] @ axes,
        (float(variances[-1]) / total, float(variances[-2]) / total),
        len(wte),
    )
