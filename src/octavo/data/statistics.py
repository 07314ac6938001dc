"""Statistics of a text, to inspect it before training: sizes, frequent and rare tokens, duplicates."""

from array import array
from collections.abc import Generator
from dataclasses import dataclass

import numpy as np

from octavo.data.dataset import SPLITS, Dataset, is_prepared
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.prepare import open_or_build
from octavo.data.scan import scan_corpus, warn_about_source
from octavo.data.sources import open_source
from octavo.data.split import LEFT_OUT, choose_split, split_chunks
from octavo.errors import OctavoError
from octavo.progress import PreparationProgress, ProgressMeter, preparation
from octavo.settings import DataSettings

_LISTED = 20  # entries in each list of tokens or characters
_CODE_POINTS = 0x110000
_SHORTEST_REPEATED, _LONGEST_REPEATED = 20, 100_000  # characters in a line that is compared with others
_MAX_COMPARED_LINES = 20_000_000  # 8 bytes of memory each


@dataclass(frozen=True)
class Statistics:
    """`bytes`, `characters`, `documents` and `duplicates` count the whole text; all others count its two splits.

    With `deduplicate`, the splits leave out documents that are copies.
    """

    name: str
    bytes: int
    characters: int
    documents: int
    duplicates: int  # documents that are exact copies of an earlier one
    distinct_characters: int
    longest_line: int  # characters
    lines: int
    repeated_lines: int  # lines of at least 20 characters that are copies of an earlier one
    tokenizer: str
    vocab_size: int
    tokens: dict[str, int]
    characters_per_token: float
    unused_tokens: int  # tokens of the vocabulary that are in neither split
    frequent_tokens: list[tuple[str, int]]
    unseen_characters: list[tuple[str, int]]  # those of the validation split that are not in the training split
    rare_characters: list[tuple[str, int]]  # those that occur fewer than ten times


@preparation
def compute_statistics(
    settings: DataSettings, limits: Limits = DEFAULT_LIMITS
) -> Generator[PreparationProgress, None, Statistics]:
    """Count what is in a source. The text is also prepared into the cache, as for training."""
    if is_prepared(settings.source):
        raise OctavoError(
            f"{settings.source_name} holds tokens; stats needs text", "the text that it was prepared from"
        )
    corpus = open_source(settings, limits)
    scan = yield from scan_corpus(corpus, limits)
    warn_about_source(corpus, scan, settings)
    dataset = yield from open_or_build(corpus, scan, settings, None, limits)
    insert_newlines = not scan.uses_end_of_text(dataset.tokenizer)
    split = choose_split(scan, settings.val_fraction, settings.deduplicate, insert_newlines)
    counter, lines = _CharacterCounter(buffer_characters=limits.chunk), _LineCounter()
    document_lengths = zip(scan.lengths, split.document_splits, strict=True)
    used_characters = sum(length for length, document_split in document_lengths if document_split != LEFT_OUT)
    meter, characters = ProgressMeter("counting", used_characters, limits.progress_seconds), 0
    for chunk in split_chunks(corpus, scan, split, insert_newlines):
        if chunk.is_separator:
            continue
        lines.add(chunk.text, chunk.ends_document)
        counter.add(chunk.split, chunk.text)
        characters += len(chunk.text)
        yield from meter.report(characters)
    train, val = counter.counts()
    token_counts = _count_tokens(dataset)
    tokenizer = dataset.tokenizer
    return Statistics(
        name=corpus.name,
        bytes=scan.bytes,
        characters=scan.characters,
        documents=scan.documents,
        duplicates=int((~scan.is_first_copy).sum()),
        distinct_characters=int((train + val > 0).sum()),
        longest_line=lines.longest,
        lines=lines.count,
        repeated_lines=lines.count_repeated(),
        tokenizer=dataset.info["tokenizer"],
        vocab_size=tokenizer.vocab_size,
        tokens=dataset.info["tokens"],
        characters_per_token=round(used_characters / sum(dataset.info["tokens"].values()), 4),
        unused_tokens=int((token_counts == 0).sum()),
        frequent_tokens=[(tokenizer.decode([id]), count) for id, count in _most_frequent(token_counts)],
        unseen_characters=[(chr(point), count) for point, count in _most_frequent(np.where(train == 0, val, 0))],
        rare_characters=[(chr(point), count) for point, count in _least_frequent(train + val, below=10)],
    )


def _count_tokens(dataset: Dataset) -> np.ndarray:
    """How often each token occurs in both splits together, (V,)."""
    V = dataset.tokenizer.vocab_size
    counts = np.zeros(V, dtype=np.int64)
    for split in SPLITS:
        for block in dataset.tokens[split].blocks():
            counts += np.bincount(block, minlength=V)
    return counts


def _most_frequent(counts: np.ndarray) -> list[tuple[int, int]]:
    order = np.argsort(-counts, kind="stable")[:_LISTED].tolist()
    return [(index, int(counts[index])) for index in order if counts[index]]


def _least_frequent(counts: np.ndarray, below: int) -> list[tuple[int, int]]:
    rare = np.flatnonzero((counts > 0) & (counts < below))
    order = rare[np.argsort(counts[rare], kind="stable")][:_LISTED].tolist()
    return [(index, int(counts[index])) for index in order]


class _CharacterCounter:
    """Counts the characters of each split. Short texts are joined before they are counted, which is faster."""

    def __init__(self, buffer_characters: int) -> None:
        self._counts = np.zeros((len(SPLITS), _CODE_POINTS), dtype=np.int64)
        self._buffers: tuple[list[str], list[str]] = ([], [])  # texts of each split that are not yet counted
        self._max_buffered_characters = buffer_characters
        self._buffered_characters = 0

    def add(self, split: int, text: str) -> None:
        self._buffers[split].append(text)
        self._buffered_characters += len(text)
        if self._buffered_characters >= self._max_buffered_characters:
            self._count_buffered()

    def _count_buffered(self) -> None:
        for counts, texts in zip(self._counts, self._buffers, strict=True):
            code_points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
            counts += np.bincount(code_points, minlength=_CODE_POINTS)
            texts.clear()
        self._buffered_characters = 0

    def counts(self) -> np.ndarray:
        """How often each character occurs, (splits, code points)."""
        self._count_buffered()
        return self._counts


class _LineCounter:
    """Counts lines in text that comes in chunks: all, the longest, and those that are copies of an earlier line."""

    def __init__(self) -> None:
        self.count = self.longest = 0
        self._line, self._length = "", 0  # the unfinished line; only its length if it is too long to compare
        self._hashes = array("q")

    def add(self, text: str, ends_document: bool) -> None:
        first, *rest = text.split("\n")
        self._extend(first)
        for line in rest:
            self._finish()
            self._extend(line)
        if ends_document and self._length:
            self._finish()

    def _extend(self, text: str) -> None:
        self._length += len(text)
        if self._length <= _LONGEST_REPEATED:
            self._line += text

    def _finish(self) -> None:
        self.count += 1
        self.longest = max(self.longest, self._length)
        if _SHORTEST_REPEATED <= self._length <= _LONGEST_REPEATED and len(self._hashes) < _MAX_COMPARED_LINES:
            self._hashes.append(hash(self._line))
        self._line, self._length = "", 0

    def count_repeated(self) -> int:
        if not self._hashes:
            return 0
        return len(self._hashes) - len(np.unique(np.frombuffer(self._hashes, np.int64)))
