"""The view `neighbors`: the tokens whose embeddings have the highest cosine with the embedding of a word, at the loaded
checkpoint and over the course of training.

The axis letters: `C` width, `V` the vocabulary, `N` random pairs of tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import safetensors

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.interop import gpt2_folder
from octavo.lens.arguments import WITH_SPACE, WordLike, resolve_word, text_of, token_with_space
from octavo.lens.embedding import cosines, count_tokens, unit_rows
from octavo.lens.tokens import Token, make_token
from octavo.lens.view import Table, View
from octavo.progress import track
from octavo.runs import Run, RunLike

_MAX_NEIGHBORS = 100
_TABLE_NEIGHBORS = 6  # neighbors in the table of the history: a column each
_CONTROL_PAIRS = 500


@dataclass(frozen=True)
class Neighbor:
    """A token, and the cosine of its row of wte with the row of the word."""

    token: Token
    cosine: float


@dataclass(frozen=True)
class CheckpointCosines:
    """The cosines at one checkpoint of the run: of the neighbors, of `against`, and of random pairs (the control)."""

    step: int
    neighbors: list[float]
    against: float | None
    control: float | None  # the mean cosine of the random pairs, which `Neighbors.control` describes
    control_low: float | None  # their 5th percentile
    control_high: float | None  # their 95th percentile


@dataclass(frozen=True, eq=False)
class Neighbors(View):
    """The tokens whose rows of wte have the highest cosine with the row of the word.

    `history` has their cosines over training. `control` describes in words how the random pairs of the history were
    chosen, or why there are none; their cosines are `CheckpointCosines.control`.
    """

    caveat: ClassVar[str] = (
        "Rows become similar when tokens occur in similar contexts of the training text; how similar depends on that "
        "text and on the length of training. The control shows the cosines of random pairs."
    )

    word: str
    note: str
    tokens: list[Token]  # the tokens of the word
    neighbors: list[Neighbor]
    against: Neighbor | None
    history: list[CheckpointCosines]
    control: str

    def tables(self) -> list[Table]:
        title = f"nearest to {self.word!r} in wte" + (f" ({self.note})" if self.note else "")
        nearest = [(each.token.label, each.token.id, each.cosine) for each in self.neighbors]
        tables = [Table(title, ("token", "id", "cosine"), nearest)]
        if self.against and self.history:
            title = f"{self.word!r} with {self.against.token.label!r} over training; control: {self.control or 'none'}"
            pairs = [(each.step, each.against, each.control, each.control_low, each.control_high)
                     for each in self.history]  # fmt: skip
            tables.append(Table(title, ("step", "cosine", "control", "5%", "95%"), pairs))
        elif self.against:
            pair = [(self.against.token.label, self.against.cosine)]
            tables.append(Table("cosine with another token", ("token", "cosine"), pair))
        elif self.history:
            labels = [each.token.label for each in self.neighbors[:_TABLE_NEIGHBORS]]
            steps = [(each.step, *each.neighbors[:_TABLE_NEIGHBORS]) for each in self.history]
            tables.append(Table("cosines of the neighbors over training", ("step", *labels), steps))
        return tables


def neighbors(run: RunLike, word: WordLike = "king", *, top: int = 10, against: WordLike | None = None) -> Neighbors:
    """The `top` tokens with the highest cosine with a word in wte, and their cosines at every checkpoint of the run.

    A word of several tokens is represented by the mean of their rows. With `against`, a word of one token, the history
    has the cosine of the two words, and as a control the cosines of random pairs of tokens with similar frequencies.
    """
    loaded = runs.load(run)
    tokenizer = loaded.tokenizer
    ids, note = resolve_word(tokenizer, word)
    if not 1 <= top <= _MAX_NEIGHBORS:
        raise OctavoError(f"top={top}: between 1 and {_MAX_NEIGHBORS} neighbors are shown", "--top 10")
    other = None
    if against is not None:
        other = _resolve_one_token(loaded, against)
        spaced, other_spaced = token_with_space(tokenizer, word), token_with_space(tokenizer, against)
        if spaced is not None and other_spaced is not None and (ids == [spaced]) != (other == other_spaced):
            # One is a token without a space, and the other only with one: rows of two forms would not be comparable.
            ids, other, note = [spaced], other_spaced, WITH_SPACE
    wte = loaded.model.transformer.wte.weight.detach().numpy()
    similarity = cosines(wte, ids)  # (V,)
    other_cosine = None if other is None else float(similarity[other])
    similarity[ids] = -np.inf
    similarity[tokenizer.vocab_size :] = -np.inf  # rows without a token
    nearest = np.argsort(-similarity, kind="stable")[: min(top, int(np.isfinite(similarity).sum()))]
    pairs, control = _control_pairs(loaded, ids, other)
    return Neighbors(
        text_of(tokenizer, word),
        note,
        [make_token(tokenizer, id) for id in ids],
        [Neighbor(make_token(tokenizer, int(id)), float(similarity[id])) for id in nearest],
        None if other is None or other_cosine is None else Neighbor(make_token(tokenizer, other), other_cosine),
        [_cosines_at(step, rows, ids, nearest, other, pairs) for step, rows in _embeddings_of_run(loaded.folder)],
        control,
    )


def _resolve_one_token(loaded: Checkpoint, word: WordLike) -> int:
    ids, _ = resolve_word(loaded.tokenizer, word)
    if len(ids) > 1:
        raise OctavoError(
            f"{word!r} is {len(ids)} tokens for this tokenizer, so wte has no row for it",
            "a word of one token: `octavo inspect RUN tokens --text` shows the tokens of a text",
        )
    return ids[0]


def _embeddings_of_run(folder: Path) -> Iterator[tuple[int, np.ndarray]]:
    """The step and wte (V, C) of every checkpoint of the run that owns a checkpoint folder."""
    run = Run.of_checkpoint(folder)
    for step, path in track(list(run.checkpoints.items()) if run else [], "reading", "checkpoints"):
        for file_path in gpt2_folder.safetensors_files(path):
            with safetensors.safe_open(file_path, framework="np") as file:
                if "transformer.wte.weight" in file.keys():  # noqa: SIM118 (it is not a dict)
                    yield step, file.get_tensor("transformer.wte.weight")


def _cosines_at(
    step: int, wte: np.ndarray, ids: list[int], nearest: np.ndarray, other: int | None, pairs: np.ndarray
) -> CheckpointCosines:
    similarity = cosines(wte, ids)
    against = None if other is None else float(similarity[other])
    if not len(pairs):
        return CheckpointCosines(step, similarity[nearest].tolist(), against, None, None, None)
    rows = unit_rows(wte)
    random = (rows[pairs[:, 0]] * rows[pairs[:, 1]]).sum(1)  # (N,)
    low, high = np.percentile(random, [5, 95])
    return CheckpointCosines(step, similarity[nearest].tolist(), against, float(random.mean()), float(low), float(high))


def _control_pairs(loaded: Checkpoint, ids: list[int], other: int | None) -> tuple[np.ndarray, str]:
    """Random pairs of tokens (N, 2) for the control, and a description of how they were chosen.

    The first token of a pair is about as frequent as the word, the second about as frequent as `other`.
    """
    no_pairs = np.zeros((0, 2), dtype=np.int64)
    if other is None or len(ids) > 1:
        return no_pairs, ""
    counts = count_tokens(loaded)
    if counts is None:
        return no_pairs, "none, because the training text is not available"
    candidates = [
        np.flatnonzero((counts >= counts[id] / 2) & (counts <= counts[id] * 2) & (counts > 0)) for id in (ids[0], other)
    ]
    if not all(map(len, candidates)):
        return no_pairs, "none, because one of the two does not occur in the training text"
    generator = np.random.default_rng(0)
    # More pairs than needed, because the next lines drop some.
    pairs = np.stack([generator.choice(each, 4 * _CONTROL_PAIRS) for each in candidates], 1)
    is_control = (pairs[:, 0] != pairs[:, 1]) & ~np.isin(pairs, [ids[0], other]).any(1)
    pairs = pairs[is_control][:_CONTROL_PAIRS]
    if not len(pairs):
        return no_pairs, "none, because no other tokens have similar frequencies"
    return pairs, f"{len(pairs)} random pairs of tokens with 0.5 to 2 times the frequencies of the two"
