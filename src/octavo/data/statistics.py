"""A look at a text before a model is trained on it: how much there is, what is frequent, rare, repeated, unseen."""

from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np

from octavo.data.build import Preparing, surveyed, told
from octavo.data.dataset import SPLITS, Dataset, is_prepared
from octavo.data.prepare import cached_or_made, corpus_of
from octavo.data.readers import PIECE
from octavo.data.scan import CorpusScan, parts
from octavo.errors import OctavoError
from octavo.settings import DataSettings

_SHOWN = 20
_CODE_POINTS = 0x110000
_REPEATABLE = 20  # characters from which on a line that comes again is worth a word
_HELD = 100_000  # characters up to which it is
_LINES = 20_000_000  # as many are remembered: 8 bytes each


@dataclass(frozen=True)
class Statistics:
    """What a text is. Counts of characters, lines and documents are of all of it; tokens by split."""

    name: str
    bytes: int
    characters: int
    documents: int
    duplicates: int  # documents that are there already, to the letter
    different_characters: int
    longest_line: int  # characters
    lines: int
    repeated_lines: int  # of at least 20 characters, there already before
    tokenizer: str
    vocab_size: int
    tokens: dict[str, int]
    characters_per_token: float
    unused_tokens: int  # of the vocabulary, in either split
    frequent_tokens: list[tuple[str, int]]
    unseen_characters: list[tuple[str, int]]  # in val and not in train, with how often
    rare_characters: list[tuple[str, int]]  # fewer than ten times in all


def statistics(settings: DataSettings) -> Generator[Preparing, None, Statistics]:
    """Look at a source; the text is prepared into the cache, as training would. Tells how far it is."""
    if is_prepared(settings.source):
        raise OctavoError(f"{settings.source} holds tokens, and stats looks at text", "the text that it was made of")
    corpus = corpus_of(settings)
    found: CorpusScan = yield from surveyed(corpus)
    data = yield from cached_or_made(corpus, found, settings, None)
    newlines = not found.has_ends(data.tokenizer)
    split = found.split(settings.val_fraction, False, newlines)
    counts = np.zeros((2, _CODE_POINTS), dtype=np.int64)
    lines = _Lines()

    def read() -> Iterator[int]:
        done, gathered = 0, 0
        waiting: tuple[list[str], list[str]] = ([], [])
        for side, text, ends, between in parts(corpus, found, split, newlines):
            if between:
                continue
            lines.add(text, ends)
            waiting[side].append(text)
            done, gathered = done + len(text), gathered + len(text)
            if gathered >= PIECE:
                count(waiting)
                gathered = 0
            yield done
        count(waiting)

    def count(waiting: tuple[list[str], list[str]]) -> None:
        for side, texts in enumerate(waiting):
            points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
            counts[side] += np.bincount(points, minlength=_CODE_POINTS)
            texts.clear()

    yield from told("counting", read(), found.characters)
    train, val = counts
    tokens = _token_counts(data)
    total = sum(data.info["tokens"].values())
    return Statistics(
        name=corpus.name, bytes=found.size, characters=found.characters, documents=found.documents,
        duplicates=int((~found.firsts).sum()), different_characters=int((train + val > 0).sum()),
        longest_line=lines.longest, lines=lines.count, repeated_lines=lines.repeated(),
        tokenizer=data.info["tokenizer"], vocab_size=data.tokenizer.vocab_size, tokens=data.info["tokens"],
        characters_per_token=round(int(counts.sum()) / total, 4), unused_tokens=int((tokens == 0).sum()),
        frequent_tokens=[(data.tokenizer.decode([id]), count) for id, count in _most(tokens)],
        unseen_characters=[(chr(point), count) for point, count in _most(np.where(train == 0, val, 0))],
        rare_characters=[(chr(point), count) for point, count in _least(train + val, below=10)],
    )  # fmt: skip


def _token_counts(data: Dataset) -> np.ndarray:
    """How often each token stands in either split, (V,)."""
    V = data.tokenizer.vocab_size
    pieces = (piece for split in SPLITS for piece in data.tokens(split).pieces())
    return sum((np.bincount(piece, minlength=V) for piece in pieces), start=np.zeros(V, dtype=np.int64))


def _most(counts: np.ndarray) -> list[tuple[int, int]]:
    order = np.argsort(-counts, kind="stable")[:_SHOWN].tolist()
    return [(index, int(counts[index])) for index in order if counts[index]]


def _least(counts: np.ndarray, below: int) -> list[tuple[int, int]]:
    there = np.flatnonzero((counts > 0) & (counts < below))
    order = there[np.argsort(counts[there], kind="stable")][:_SHOWN].tolist()
    return [(index, int(counts[index])) for index in order]


class _Lines:
    """Lines, as they come in pieces: the longest, and those that were there before, be they not too long to be held."""

    def __init__(self) -> None:
        self.count = self.longest = 0
        self._open, self._length = "", 0
        self._seen = array("q")

    def add(self, text: str, ends: bool) -> None:
        first, *others = text.split("\n")
        self._begin(first)
        for line in others:
            self._close()
            self._begin(line)
        if ends and self._length:
            self._close()

    def _begin(self, text: str) -> None:
        self._length += len(text)
        if self._length <= _HELD:
            self._open += text

    def _close(self) -> None:
        self.count += 1
        self.longest = max(self.longest, self._length)
        if _REPEATABLE <= self._length <= _HELD and len(self._seen) < _LINES:
            self._seen.append(hash(self._open))
        self._open, self._length = "", 0

    def repeated(self) -> int:
        return len(self._seen) - len(np.unique(np.frombuffer(self._seen, np.int64))) if self._seen else 0
