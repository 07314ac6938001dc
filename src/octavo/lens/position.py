"""The view `position`: a word at two positions. `wte[id] + wpe[t]` enters the first layer, so the model gets different
vectors for the same word.

The axis letters: `T` tokens of the word, `C` width, `P` positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from octavo import runs
from octavo.errors import OctavoError
from octavo.lens.arguments import WordLike, resolve_index, resolve_word, text_of
from octavo.lens.capture import inference
from octavo.lens.embedding import unit_rows
from octavo.lens.tokens import Token, make_token
from octavo.lens.view import Cell, Table, View
from octavo.runs import RunLike

_MAX_POSITIONS = 256  # that are compared with one another
_MAX_POSITIONS_APART = 16  # in the table of mean cosines


@dataclass(frozen=True, eq=False)
class TokenAtPositions:
    """One token of the word at two positions: its row of wte, their rows of wpe, and the sums that enter layer 0."""

    token: Token
    at: tuple[int, int]  # the two positions
    wte: np.ndarray  # (C,)
    wpe: np.ndarray  # (2, C)
    x: np.ndarray  # (2, C)
    distance: float  # Euclidean, between the two sums, and so between the two rows of wpe
    cosine: float  # of the two sums


@dataclass(frozen=True, eq=False)
class Position(View):
    """A word at two positions, token by token; and `similarity` (P, P), the cosines of all `positions` in wpe."""

    word: str
    note: str
    tokens: list[TokenAtPositions]
    positions: list[int]
    similarity: np.ndarray

    def tables(self) -> list[Table]:
        rows: list[list[Cell]] = []
        for each in self.tokens:
            norms = [float(np.linalg.norm(row)) for row in (each.wte, *each.wpe)]
            rows.append([each.token.label, *each.at, *norms, each.distance, each.cosine])
        mean_cosines = [
            (position - self.positions[0], float(np.mean(np.diagonal(self.similarity, i))))
            for i, position in enumerate(self.positions)
            if 0 < i <= _MAX_POSITIONS_APART
        ]
        title = f"{self.word!r} at two positions" + (f" ({self.note})" if self.note else "")
        columns = ("token", "first", "second", "|wte|", "|wpe[first]|", "|wpe[second]|", "distance", "cosine")
        return [
            Table(title, columns, rows),
            Table("rows of wpe by how many positions they are apart", ("positions apart", "mean cosine"), mean_cosines),
        ]


def position(run: RunLike, word: WordLike = "cat", *, at: tuple[int, int] | None = None) -> Position:
    """A word at two positions before the first layer (default: 1 and 10, or the last that fit in a shorter context).

    A word of several tokens begins at the two positions. Raises `OctavoError` if it would end outside the context.
    """
    loaded = runs.load(run)
    model, tokenizer, block_size = loaded.model, loaded.tokenizer, loaded.model.settings.block_size
    ids, note = resolve_word(tokenizer, word)
    last = max(block_size - len(ids), 0)  # the last position at which the word fits
    at = at or (min(1, last), min(10, last))
    # `--at` takes two positions, so the hint of the error must have two: "at 0" makes it `--at 0 N`.
    first, second = (resolve_index(start, block_size, "position", option="at 0") for start in at)
    if max(first, second) > block_size - len(ids):
        raise OctavoError(
            f"{word!r} has {len(ids)} tokens, so at position {max(first, second)} it ends outside the context of "
            f"{block_size}",
            "--at 1 10",
        )
    with inference(model):
        sums = [model.embed(torch.tensor([ids]), start)[0].numpy() for start in (first, second)]  # (T, C) each
        wte, wpe = model.transformer.wte.weight.numpy(), model.transformer.wpe.weight.numpy()
        tokens = []
        for n, id in enumerate(ids):
            positions = (first + n, second + n)
            x = np.stack([each[n] for each in sums])  # (2, C)
            tokens.append(_compare(make_token(tokenizer, id), positions, wte[id], wpe[list(positions)], x))
        compared = list(range(0, block_size, -(-block_size // _MAX_POSITIONS)))
        rows = unit_rows(wpe[compared])
    return Position(text_of(tokenizer, word), note, tokens, compared, rows @ rows.T)


def _compare(token: Token, at: tuple[int, int], wte: np.ndarray, wpe: np.ndarray, x: np.ndarray) -> TokenAtPositions:
    distance = float(np.linalg.norm(x[0].astype(np.float64) - x[1]))
    one, other = unit_rows(x)
    return TokenAtPositions(token, at, wte, wpe, x, distance, float(one @ other))
