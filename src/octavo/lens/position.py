"""A word at two positions: its rows of `wte` and `wpe`, and their sum, which enters the first layer.

The axis letters: `C` width, `P` positions.
"""

from dataclasses import dataclass

import numpy as np
import torch

from octavo.errors import OctavoError
from octavo.lens.capture import inference
from octavo.lens.embedding import resolve_word, unit_rows
from octavo.lens.tokens import RUN, Token, load_checkpoint, make_token, resolve_index
from octavo.lens.view import Table, View

_SQUARE = 256  # positions of which all pairs are compared


@dataclass(frozen=True, eq=False)
class Piece:
    """One token of a word, at two positions: its row of wte, theirs of wpe, and the sums that enter the model."""

    token: Token
    at: tuple[int, int]
    wte: np.ndarray  # (C,)
    wpe: np.ndarray  # (2, C)
    x: np.ndarray  # (2, C)
    distance: float  # between the sums: as far apart as the two rows of wpe
    cosine: float  # of the sums


@dataclass(frozen=True, eq=False)
class Position(View):
    """A word at two positions, piece by piece; and the cosines of `positions` in wpe, each with each, (P, P)."""

    word: str
    note: str
    pieces: list[Piece]
    positions: list[int]
    similarity: np.ndarray

    def tables(self) -> list[Table]:
        rows = [
            (
                piece.token.label,
                *piece.at,
                float(np.linalg.norm(piece.wte)),
                float(np.linalg.norm(piece.wpe[0])),
                float(np.linalg.norm(piece.wpe[1])),
                piece.distance,
                piece.cosine,
            )
            for piece in self.pieces
        ]
        near = [
            (step, float(np.mean(np.diagonal(self.similarity, i))))
            for i, step in enumerate(p - self.positions[0] for p in self.positions)
            if 0 < i < 17
        ]
        return [
            Table(
                f"{self.word!r} at two positions" + (f" ({self.note})" if self.note else ""),
                ("token", "at", "and at", "|wte|", "|wpe|", "|wpe|", "distance", "cosine"),
                rows,
            ),
            Table("how alike two positions are", ("apart", "mean cosine"), near),
        ]


def position(run: RUN, word: str = "cat", *, at: tuple[int, int] | None = None) -> Position:
    """One word at two positions, 1 and 10 if not said and there, before the first layer: `wte[id] + wpe[t]` at each.

    A word of several tokens begins at the two positions. Raises `OctavoError` where it would end beyond the block.
    """
    loaded = load_checkpoint(run)
    model = loaded.model
    ids, note = resolve_word(loaded.tokenizer, word)
    at = at or (min(1, last := max(model.settings.block_size - len(ids), 0)), min(10, last))
    first, second = (resolve_index(each, model.settings.block_size, "position", "at 0") for each in at)
    if max(first, second) + len(ids) > model.settings.block_size:
        raise OctavoError(
            f"{word!r} has {len(ids)} tokens, which at {max(first, second)} end beyond the block of "
            f"{model.settings.block_size}",
            "--at 1 10",
        )
    with inference(model):
        sums = [model.embed(torch.tensor([ids]), start)[0].numpy() for start in (first, second)]  # (n, C) each
        wte, wpe = model.transformer.wte.weight.numpy(), model.transformer.wpe.weight.numpy()
        pieces = [
            _piece(
                make_token(loaded.tokenizer, id),
                (first + n, second + n),
                wte[id],
                wpe[[first + n, second + n]],
                np.stack([each[n] for each in sums]),
            )
            for n, id in enumerate(ids)
        ]
        block_size = model.settings.block_size
        shown = list(range(0, block_size, -(-block_size // _SQUARE)))
        rows = unit_rows(wpe[shown])
    return Position(word, note, pieces, shown, rows @ rows.T)


def _piece(token: Token, at: tuple[int, int], wte: np.ndarray, wpe: np.ndarray, x: np.ndarray) -> Piece:
    one, two = unit_rows(x)
    return Piece(token, at, wte, wpe, x, float(np.linalg.norm(x[0].astype(np.float64) - x[1])), float(one @ two))
