"""The view `projection`: the token embeddings, projected onto two principal components (exact PCA in float64).

The axis letters: `C` width, `V` the vocabulary, `N` tokens that are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from octavo import runs
from octavo.lens.arguments import WordLike, resolve_word
from octavo.lens.embedding import count_tokens
from octavo.lens.tokens import Token, make_token
from octavo.lens.view import Table, View
from octavo.runs import RunLike

_MAX_TOKENS = 2000  # that are shown


@dataclass(frozen=True, eq=False)
class Projection(View):
    """Tokens at `points` (N, 2): their rows of wte, projected onto the two axes along which all V rows vary most."""

    caveat: ClassVar[str] = (
        "This is a projection onto two dimensions: tokens that are near each other in it need not be near each other "
        "in wte."
    )

    tokens: list[Token]
    points: np.ndarray
    explained: tuple[float, float]  # the explained variance ratio of each axis
    vocab_size: int

    def tables(self) -> list[Table]:
        rows = [
            (token.label, token.id, float(x), float(y)) for token, (x, y) in zip(self.tokens, self.points, strict=True)
        ]
        share = sum(self.explained)
        title = f"{len(rows):,} of {self.vocab_size:,} tokens; the two axes explain {share:.0%} of the variance"
        return [Table(title, ("token", "id", "first", "second"), rows)]


def projection(run: RunLike, *, words: Sequence[WordLike] = ()) -> Projection:
    """The tokens of `words` and the most frequent tokens, projected onto the first two principal components of wte."""
    loaded = runs.load(run)
    wte = loaded.model.transformer.wte.weight.detach().numpy()[: loaded.tokenizer.vocab_size].astype(np.float64)
    centered = wte - wte.mean(0)  # (V, C)
    if centered.shape[1] < 2:
        centered = np.pad(centered, ((0, 0), (0, 1)))  # a model of width 1 has only one axis
    variances, axes = np.linalg.eigh(centered.T @ centered)  # ascending
    axes = axes[:, [-1, -2]]
    # The sign of an eigenvector is arbitrary: make its component of the largest magnitude positive.
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    requested = [id for word in words for id in resolve_word(loaded.tokenizer, word)[0]]
    counts = count_tokens(loaded)
    by_frequency = np.arange(len(wte)) if counts is None else np.argsort(-counts, kind="stable")
    ids = list(dict.fromkeys([*requested, *map(int, by_frequency)]))[:_MAX_TOKENS]
    total = max(float(variances.sum()), 1e-300)
    return Projection(
        [make_token(loaded.tokenizer, id) for id in ids],
        centered[ids] @ axes,
        (float(variances[-1]) / total, float(variances[-2]) / total),
        len(wte),
    )
