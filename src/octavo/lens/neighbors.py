"""The tokens whose rows of `wte` are nearest to a word's, and how that changed along training.

The axis letters: `C` width, `V` the vocabulary, `N` pairs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.lens.embedding import cosines, count_tokens, resolve_word, unit_rows
from octavo.lens.tokens import RUN, Token, load_checkpoint, make_token
from octavo.lens.view import Table, View

_NEIGHBORS = 100
_PAIRS = 500  # of the control


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


def neighbors(run: RUN, word: str = "king", *, top: int = 10, against: str | None = None) -> Neighbors:
    """The `top` tokens nearest to a word by the cosine of their rows in wte, and along the checkpoints that were kept.

    A word of several tokens stands for the mean of their rows. With `against`, the cosine with that token is followed
    along training, beside 500 random pairs of tokens as frequent as the two.
    """
    loaded = load_checkpoint(run)
    ids, note = resolve_word(loaded.tokenizer, word)
    if not 1 <= top <= _NEIGHBORS:
        raise OctavoError(f"top={top}: between 1 and {_NEIGHBORS} neighbors are shown", "--top 10")
    other = None
    if against is not None:
        others, _ = resolve_word(loaded.tokenizer, against)
        if len(others) > 1:
            raise OctavoError(
                f"{against!r} is {len(others)} tokens here, so it has no row of its own",
                "a word that is one token; `octavo inspect RUN tokens --text` shows",
            )
        other = others[0]
    wte = loaded.model.transformer.wte.weight.detach().numpy()
    near = cosines(wte, ids)
    near[ids] = -np.inf
    near[loaded.tokenizer.vocab_size :] = -np.inf  # rows that no token has
    best = np.argsort(-near, kind="stable")[: min(top, int(np.isfinite(near).sum()))]
    pairs, control = _control(loaded, ids, other)
    history = [_moment(step, rows, ids, best, other, pairs) for step, rows in _along(loaded.folder)]
    return Neighbors(
        word,
        note,
        [make_token(loaded.tokenizer, id) for id in ids],
        [Neighbor(make_token(loaded.tokenizer, int(id)), float(near[id])) for id in best],
        None if other is None else Neighbor(make_token(loaded.tokenizer, other), float(cosines(wte, ids)[other])),
        history,
        control,
    )


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


def _moment(
    step: int, wte: np.ndarray, ids: list[int], best: np.ndarray, other: int | None, pairs: np.ndarray
) -> Moment:
    near = cosines(wte, ids)
    if not len(pairs):
        return Moment(step, near[best].tolist(), None if other is None else float(near[other]), None, None, None)
    rows = unit_rows(wte)
    chance = (rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1)
    low, high = np.percentile(chance, [5, 95])
    return Moment(
        step,
        near[best].tolist(),
        None if other is None else float(near[other]),
        float(chance.mean()),
        float(low),
        float(high),
    )


def _control(loaded: Checkpoint, ids: list[int], other: int | None) -> tuple[np.ndarray, str]:
    """Random pairs (N, 2), one of a pair as frequent as the word, one as the other token; and how they were drawn."""
    if other is None or len(ids) > 1:
        return np.zeros((0, 2), dtype=np.int64), ""
    counts = count_tokens(loaded)
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
