"""What the two tables hold: `wte`, a row for each token, and `wpe`, a row for each position.

The axis letters: `C` width, `P` positions, `V` the vocabulary, `N` tokens that are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors
import torch

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.data.prepare import reopen_dataset
from octavo.errors import OctavoError
from octavo.lens.capture import looking
from octavo.lens.tokens import RUN, Token, named, opened, within
from octavo.lens.view import Table, View
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer

_PIECES = 16  # of a word
_SQUARE = 256  # positions of which all pairs are compared
_NEIGHBORS = 100
_PAIRS = 500  # of the control
_POINTS = 2000  # of the map


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
            (piece.token.label, *piece.at, float(np.linalg.norm(piece.wte)), float(np.linalg.norm(piece.wpe[0])),
             float(np.linalg.norm(piece.wpe[1])), piece.distance, piece.cosine)
            for piece in self.pieces
        ]  # fmt: skip
        near = [
            (step, float(np.mean(np.diagonal(self.similarity, i))))
            for i, step in enumerate(p - self.positions[0] for p in self.positions)
            if 0 < i < 17
        ]
        return [
            Table(f"{self.word!r} at two positions" + (f" ({self.note})" if self.note else ""),
                  ("token", "at", "and at", "|wte|", "|wpe|", "|wpe|", "distance", "cosine"), rows),
            Table("how alike two positions are", ("apart", "mean cosine"), near),
        ]  # fmt: skip


@dataclass(frozen=True)
class Neighbor:
    """A token, and the cosine of its row of wte with the word's."""

    token: Token
    cosine: float


@dataclass(frozen=True)
class Moment:
    """A checkpoint along training: cosines with the neighbors, with `against`, and of random pairs as frequent."""

    step: int
    neighbors: list[float]
    against: float | None
    control: float | None  # the mean
    control_low: float | None  # the 5th percentile
    control_high: float | None  # the 95th


@dataclass(frozen=True, eq=False)
class Neighbors(View):
    """The tokens whose rows of wte point where the word's does; and along training, if checkpoints were kept."""

    caveat: ClassVar[str] = (
        "Rows grow alike when tokens stand in like places of the text that was trained on; how much depends "
        "on that text and on how long. The control says what chance gives."
    )

    word: str
    note: str
    pieces: list[Token]
    neighbors: list[Neighbor]
    against: Neighbor | None
    history: list[Moment]
    control: str  # how it was drawn

    def tables(self) -> list[Table]:
        title = f"nearest to {self.word!r} in wte" + (f" ({self.note})" if self.note else "")
        found = [(each.token.label, each.token.id, each.cosine) for each in self.neighbors]
        tables = [Table(title, ("token", "id", "cosine"), found)]
        if self.against and self.history:
            rows = [(m.step, m.against, m.control, m.control_low, m.control_high) for m in self.history]
            pair = f"{self.word!r} with {self.against.token.label!r} along training"
            columns = ("step", "cosine", "control", "5%", "95%")
            tables.append(Table(f"{pair}; control: {self.control or 'none'}", columns, rows))
        elif self.against:
            tables.append(Table("asked for", ("token", "cosine"), [(self.against.token.label, self.against.cosine)]))
        elif self.history:
            names = [each.token.label for each in self.neighbors[:6]]
            along = [(m.step, *m.neighbors[:6]) for m in self.history]
            tables.append(Table("the same along training", ("step", *names), along))
        return tables


@dataclass(frozen=True, eq=False)
class EmbeddingMap(View):
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
        rows = [(token.label, token.id, float(x), float(y))
                for token, (x, y) in zip(self.tokens, self.points, strict=True)]  # fmt: skip
        title = f"{len(rows):,} of {self.vocab_size:,} tokens; the two axes have {share:.0%} of the variance"
        return [Table(title, ("token", "id", "first", "second"), rows)]


def position(run: RUN, word: str = "cat", *, at: tuple[int, int] | None = None) -> Position:
    """One word at two positions, 1 and 10 if not said and there, before the first layer: `wte[id] + wpe[t]` at each.

    A word of several tokens begins at the two positions. Raises `OctavoError` where it would end beyond the block.
    """
    loaded = opened(run)
    model = loaded.model
    ids, note = _word(loaded.tokenizer, word)
    at = at or (min(1, last := max(model.settings.block_size - len(ids), 0)), min(10, last))
    first, second = (within(each, model.settings.block_size, "position", "at 0") for each in at)
    if max(first, second) + len(ids) > model.settings.block_size:
        raise OctavoError(f"{word!r} has {len(ids)} tokens, which at {max(first, second)} end beyond the block of "
                          f"{model.settings.block_size}", "--at 1 10")  # fmt: skip
    with looking(model):
        sums = [model.embed(torch.tensor([ids]), start)[0].numpy() for start in (first, second)]  # (n, C) each
        wte, wpe = model.transformer.wte.weight.numpy(), model.transformer.wpe.weight.numpy()
        pieces = [
            _piece(named(loaded.tokenizer, id), (first + n, second + n), wte[id], wpe[[first + n, second + n]],
                   np.stack([each[n] for each in sums]))
            for n, id in enumerate(ids)
        ]  # fmt: skip
        block_size = model.settings.block_size
        shown = list(range(0, block_size, -(-block_size // _SQUARE)))
        rows = _directions(wpe[shown])
    return Position(word, note, pieces, shown, rows @ rows.T)


def neighbors(run: RUN, word: str = "king", *, top: int = 10, against: str | None = None) -> Neighbors:
    """The `top` tokens nearest to a word by the cosine of their rows in wte, and along the checkpoints that were kept.

    A word of several tokens stands for the mean of their rows. With `against`, the cosine with that token is followed
    along training, beside 500 random pairs of tokens as frequent as the two.
    """
    loaded = opened(run)
    ids, note = _word(loaded.tokenizer, word)
    if not 1 <= top <= _NEIGHBORS:
        raise OctavoError(f"top={top}: between 1 and {_NEIGHBORS} neighbors are shown", "--top 10")
    other = None
    if against is not None:
        others, _ = _word(loaded.tokenizer, against)
        if len(others) > 1:
            raise OctavoError(f"{against!r} is {len(others)} tokens here, so it has no row of its own",
                              "a word that is one token; `octavo inspect RUN tokens --text` shows")  # fmt: skip
        other = others[0]
    wte = loaded.model.transformer.wte.weight.detach().numpy()
    near = cosines(wte, ids)
    near[ids] = -np.inf
    near[loaded.tokenizer.vocab_size :] = -np.inf  # rows that no token has
    best = np.argsort(-near, kind="stable")[: min(top, int(np.isfinite(near).sum()))]
    pairs, control = _control(loaded, ids, other)
    history = [_moment(step, rows, ids, best, other, pairs) for step, rows in _along(loaded.folder)]
    return Neighbors(
        word, note, [named(loaded.tokenizer, id) for id in ids],
        [Neighbor(named(loaded.tokenizer, int(id)), float(near[id])) for id in best],
        None if other is None else Neighbor(named(loaded.tokenizer, other), float(cosines(wte, ids)[other])),
        history, control,
    )  # fmt: skip


def embedding_map(run: RUN, *, words: Sequence[str] = ()) -> EmbeddingMap:
    """The most frequent tokens, and `words`, on the first two principal axes of all rows of wte."""
    loaded = opened(run)
    wte = loaded.model.transformer.wte.weight.detach().numpy()[: loaded.tokenizer.vocab_size].astype(np.float64)
    centred = wte - wte.mean(0)
    if centred.shape[1] < 2:
        centred = np.pad(centred, ((0, 0), (0, 1)))  # one axis is all that there is
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    axes = axes[:, [-1, -2]]
    axes *= np.sign(axes[np.abs(axes).argmax(0), [0, 1]])  # a direction has two; take that of its largest part
    asked = [id for word in words for id in _word(loaded.tokenizer, word)[0]]
    counts = _counts(loaded)
    order = np.arange(len(wte)) if counts is None else np.argsort(-counts, kind="stable")
    shown = list(dict.fromkeys([*asked, *map(int, order)]))[:_POINTS]
    total = max(float(variances.sum()), 1e-300)
    return EmbeddingMap([named(loaded.tokenizer, id) for id in shown], centred[shown] @ axes,
                        (float(variances[-1]) / total, float(variances[-2]) / total), len(wte))  # fmt: skip


def cosines(wte: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """Of every row of wte with the mean of some, (V,), in float64."""
    near: np.ndarray = _directions(wte) @ _directions(wte[list(ids)].astype(np.float64).mean(0)[None])[0]
    return near


def _directions(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, in float64; a row of zeros stays."""
    rows = rows.astype(np.float64)
    ones: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    return ones


def _piece(token: Token, at: tuple[int, int], wte: np.ndarray, wpe: np.ndarray, x: np.ndarray) -> Piece:
    one, two = _directions(x)
    return Piece(token, at, wte, wpe, x, float(np.linalg.norm(x[0].astype(np.float64) - x[1])), float(one @ two))


def _word(tokenizer: Tokenizer, word: str) -> tuple[list[int], str]:
    """A word's tokens, and what there is to say about them: alone, or with the space before it, if that is one."""
    try:
        ids = [int(id) for id in tokenizer.encode(word)]
    except OctavoError as error:
        raise OctavoError(error.message, "a word of characters that it knows") from None
    if not ids:
        raise OctavoError("an empty word has no token", "--word king")
    if len(ids) == 1:
        return ids, ""
    if tokenizer.kind in ("bpe", "gpt2"):
        spaced = tokenizer.encode(" " + word)
        if len(spaced) == 1:
            return [int(spaced[0])], "with the space before it, for so it is one token"
    if len(ids) > _PIECES:
        raise OctavoError(f"{word!r} is {len(ids)} tokens; at most {_PIECES} are shown", "a shorter word")
    pieces = " ".join(named(tokenizer, id).label for id in ids)
    return ids, f"{len(ids)} tokens, {pieces}: this tokenizer has no row for the word itself"


def _along(folder: Path) -> list[tuple[int, np.ndarray]]:
    """Step and wte (V, C) of every checkpoint of the run that this one belongs to."""
    run = runs.Run.of_checkpoint(folder)
    if run is None:
        return []
    found = []
    for step, path in run.steps.items():
        with safetensors.safe_open(path / "model.safetensors", framework="np") as file:
            found.append((step, file.get_tensor("transformer.wte.weight")))
    return found


def _moment(step: int, wte: np.ndarray, ids: list[int], best: np.ndarray, other: int | None,
            pairs: np.ndarray) -> Moment:  # fmt: skip
    near = cosines(wte, ids)
    if not len(pairs):
        return Moment(step, near[best].tolist(), None if other is None else float(near[other]), None, None, None)
    rows = _directions(wte)
    chance = (rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1)
    low, high = np.percentile(chance, [5, 95])
    return Moment(step, near[best].tolist(), None if other is None else float(near[other]), float(chance.mean()),
                  float(low), float(high))  # fmt: skip


def _control(loaded: Checkpoint, ids: list[int], other: int | None) -> tuple[np.ndarray, str]:
    """Random pairs (N, 2), one of a pair as frequent as the word, one as the other token; and how they were drawn."""
    if other is None or len(ids) > 1:
        return np.zeros((0, 2), dtype=np.int64), ""
    counts = _counts(loaded)
    if counts is None:
        return np.zeros((0, 2), dtype=np.int64), "none, for the text that it was trained on can't be had"
    like = [
        np.flatnonzero((counts >= counts[id] / 2) & (counts <= counts[id] * 2) & (counts > 0)) for id in (ids[0], other)
    ]
    if not all(map(len, like)):
        return np.zeros((0, 2), dtype=np.int64), "none, for the text that it was trained on lacks one of the two"
    draw = np.random.default_rng(0)
    pairs = np.stack([draw.choice(each, 4 * _PAIRS) for each in like], 1)
    pairs = pairs[(pairs[:, 0] != pairs[:, 1]) & ~np.isin(pairs, [ids[0], other]).any(1)][:_PAIRS]
    if not len(pairs):
        return pairs, "none, for no other tokens are as frequent"
    return pairs, f"{len(pairs)} random pairs of tokens, each half to twice as frequent"


def _counts(loaded: Checkpoint) -> np.ndarray | None:
    """How often each token stands in the text that was trained on, (V,), if that can still be had."""
    if not isinstance(loaded.settings, Settings) or "data" not in loaded.info:
        return None
    try:
        tokens = reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer).tokens("train")
    except OctavoError:
        return None
    V = loaded.tokenizer.vocab_size
    return sum((np.bincount(piece, minlength=V) for piece in tokens.pieces()), start=np.zeros(V, dtype=np.int64))
