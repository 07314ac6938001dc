"""Reading a corpus through once, before it is tokenized: how much there is, what it is known by, which part validates.

One text is split by position: its end is for validation. Many documents are split by document: those whose digest
comes first are for validation, until they make up its share of the characters. That is as good as drawn by lot, depends
on no order, and puts exact copies on one side. About 60 bytes of memory go with each document.
"""

import functools
import hashlib
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from octavo.data.sources import Corpus
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

MANY = 100  # documents from which on the split is by document
_DIGEST = 16  # bytes
TRAIN, VAL, LEFT_OUT = 0, 1, 2


@dataclass(frozen=True)
class CorpusScan:
    """What a corpus is. `sha256` is that of its UTF-8 bytes, where there are several documents with 0xFF after each."""

    sha256: str
    size: int  # bytes of UTF-8
    characters: int
    alphabet: str  # every character, once, in order
    lengths: "array[int]"  # of each document, in characters
    digests: bytes  # 16 of each document
    open_ended: bytes  # of each document, whether it ends without a line's end

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(self.lengths)

    def has_ends(self, tokenizer: Tokenizer) -> bool:
        """Whether `<|endoftext|>` stands where documents end: there are several, and the tokenizer has it."""
        return self.documents > 1 and tokenizer.end_of_text is not None

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """Which documents are the first of their kind, (documents,)."""
        kinds = np.frombuffer(self.digests, f"S{_DIGEST}")
        first = np.zeros(len(kinds), dtype=bool)
        first[np.unique(kinds, return_index=True)[1]] = True
        return first

    def split(self, val_fraction: float, deduplicate: bool, newlines: bool) -> "Split":
        """Which part is for what. `newlines`: documents are joined by a line's end, which counts as a character."""
        kept = self.firsts if deduplicate else np.ones(self.documents, dtype=bool)
        sides = np.where(kept, TRAIN, LEFT_OUT).astype(np.uint8)
        lengths = np.frombuffer(self.lengths, np.int64)
        if kept.sum() >= MANY:
            kinds = np.frombuffer(self.digests, f"S{_DIGEST}")
            share = val_fraction * lengths[kept].sum()
            kept &= lengths <= max(share, lengths[kept].min())  # what is more than all that validates never does
            order = np.flatnonzero(kept)[np.argsort(kinds[kept])]
            taken = max(1, int(np.searchsorted(np.cumsum(lengths[order]), share, side="right")))
            sides[kept & (kinds <= kinds[order[taken - 1]])] = VAL
            return Split("document", 0, sides.tobytes())
        length = int(lengths[kept].sum())
        if newlines:
            length += sum(self.open_ended[i] for i in np.flatnonzero(kept)[:-1])
        return Split("position", int(length * (1 - val_fraction)), sides.tobytes())


class Split(NamedTuple):
    """The side of each document; by position, all from `cut` characters on is for validation."""

    by: str
    cut: int
    sides: bytes


class Part(NamedTuple):
    """Some text, the split it is for, and whether a document ends with it."""

    side: int
    text: str
    ends: bool
    between: bool = False  # a line's end that stands between two documents, and in none


class ChangedError(OctavoError):
    """A text isn't what it was a moment ago."""


class _Whole:
    """What a corpus is known by, as it goes by."""

    def __init__(self) -> None:
        self._sha256, self._ended, self._several = hashlib.sha256(), False, False

    def add(self, content: bytes, ends: bool) -> None:
        if self._ended:
            self._sha256.update(b"\xff")
            self._several = True
        self._sha256.update(content)
        self._ended = ends

    def digest(self) -> str:
        if self._several:
            self._sha256.update(b"\xff")
        return self._sha256.hexdigest()


def survey(corpus: Corpus) -> Iterator[int | CorpusScan]:
    """Read a corpus through. Yields how many characters were read so far, now and then, and last the survey."""
    whole, size, characters = _Whole(), 0, 0
    lengths, digests, open_ended = array("q"), bytearray(), bytearray()
    ascii_seen, others_seen = b"", np.zeros(0x110000, dtype=bool)
    document, length = hashlib.blake2b(digest_size=_DIGEST), 0
    for text, ends in corpus.pieces():
        content = text.encode()
        whole.add(content, ends)
        document.update(content)
        size, characters, length = size + len(content), characters + len(text), length + len(text)
        if new := content.translate(None, ascii_seen):
            ascii_seen += bytes(sorted(byte for byte in set(new) if byte < 0x80))
        if len(content) != len(text):
            others_seen[np.frombuffer(text.encode("utf-32-le"), "<u4")] = True
        if ends:
            lengths.append(length)
            digests += document.digest()
            open_ended.append(not text.endswith("\n"))
            document, length = hashlib.blake2b(digest_size=_DIGEST), 0
        yield characters
    alphabet = set(map(chr, np.flatnonzero(others_seen).tolist())) | set(ascii_seen.decode())
    if any(open_ended[:-1]):
        alphabet.add("\n")  # it may come to stand between two documents
    yield CorpusScan(whole.digest(), size, characters, "".join(sorted(alphabet)), lengths, bytes(digests),
                 bytes(open_ended))  # fmt: skip


def parts(corpus: Corpus, seen: CorpusScan, split: Split, newlines: bool) -> Generator[Part, None, None]:
    """The corpus from its beginning, each part with its side. With `newlines`, documents are joined by a line's end.

    Raises `ChangedError` at the latest at its end where it isn't what was seen.
    """
    changed = ChangedError(f"{corpus.source} changed while it was read", "the same again, when it is as it will stay")
    number = at = 0
    whole = _Whole()
    open_side: int | None = None
    for text, ends in corpus.pieces():
        whole.add(text.encode(), ends)
        if number == len(split.sides):
            raise changed
        side = split.sides[number]
        number += ends
        if side == LEFT_OUT:
            continue
        if open_side is not None:
            yield Part(_side_at(split, at, open_side), "\n", False, between=True)
            at += 1
        if split.by == "position" and at < split.cut < at + len(text):
            yield Part(TRAIN, text[: split.cut - at], False)
            yield Part(VAL, text[split.cut - at :], ends)
        else:
            yield Part(_side_at(split, at, side), text, ends)
        at += len(text)
        open_side = side if newlines and ends and not text.endswith("\n") else None
    if whole.digest() != seen.sha256:
        raise changed


def _side_at(split: Split, at: int, side: int) -> int:
    return side if split.by == "document" else TRAIN if at < split.cut else VAL
