"""Split a corpus into text to train on and text to validate on.

A single text is split by position: its end is for validation. A collection of many documents is split by document: the
documents with the lowest digests are for validation, up to the validation fraction of the characters. Digests are as
good as random numbers, do not depend on the order of the documents, and keep exact copies in the same split.
"""

from collections.abc import Generator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from octavo.data.scan import CorpusScan
from octavo.data.sources import Corpus, CorpusHash
from octavo.errors import SourceChangedError

MANY_DOCUMENTS = 100  # from this number on, the split is by document
TRAIN, VAL, LEFT_OUT = 0, 1, 2


@dataclass(frozen=True)
class Split:
    """Assigns each document to TRAIN or VAL, or leaves it out.

    If the split is by position, the kept documents count as one text, and its characters from `cut` on are for
    validation. TRAIN then only marks a document as kept.
    """

    by: str  # "document" or "position"
    cut: int
    document_splits: bytes  # TRAIN, VAL or LEFT_OUT for each document


class SplitChunk(NamedTuple):
    """A chunk of text, all of it in one split."""

    split: int  # TRAIN or VAL
    text: str
    ends_document: bool
    is_separator: bool = False  # a newline between two documents, part of neither


def choose_split(scan: CorpusScan, val_fraction: float, deduplicate: bool, insert_newlines: bool) -> Split:
    """The split of a corpus. With `insert_newlines`, the newlines that `split_chunks` inserts count as characters."""
    is_kept = scan.is_first_copy.copy() if deduplicate else np.ones(scan.documents, dtype=bool)
    document_splits = np.where(is_kept, TRAIN, LEFT_OUT).astype(np.uint8)
    lengths = np.frombuffer(scan.lengths, np.int64)
    if is_kept.sum() >= MANY_DOCUMENTS:
        digests = scan.digest_array
        val_characters = val_fraction * lengths[is_kept].sum()
        # A document longer than the whole validation split is always for training.
        is_candidate = is_kept & (lengths <= max(val_characters, lengths[is_kept].min()))
        candidates = np.flatnonzero(is_candidate)[np.argsort(digests[is_candidate])]  # lowest digest first
        val_count = max(1, int(np.searchsorted(np.cumsum(lengths[candidates]), val_characters, side="right")))
        # By digest, not candidates[:val_count]: all copies of the last document are for validation too.
        highest_val_digest = digests[candidates[val_count - 1]]
        document_splits[is_candidate & (digests <= highest_val_digest)] = VAL
        return Split("document", 0, document_splits.tobytes())
    length = int(lengths[is_kept].sum())
    if insert_newlines:
        length += sum(scan.lacks_newline[i] for i in np.flatnonzero(is_kept)[:-1])
    return Split("position", int(length * (1 - val_fraction)), document_splits.tobytes())


def split_chunks(
    corpus: Corpus, scan: CorpusScan, split: Split, insert_newlines: bool
) -> Generator[SplitChunk, None, None]:
    """Yield the corpus from its beginning. With `insert_newlines`, a newline follows each document that lacks one.

    Raises `SourceChangedError`, at the end or before, if the corpus is not the one that was scanned.
    """
    error = SourceChangedError(
        f"{corpus.source_name} changed while it was read", "the same command again, when the source no longer changes"
    )
    document = position = 0
    corpus_hash = CorpusHash()
    previous_split: int | None = None  # that of the previous document, if a newline must follow it

    def split_at(position: int, document_split: int) -> int:
        if split.by == "document":
            return document_split
        return TRAIN if position < split.cut else VAL

    for text, ends_document, _ in corpus.chunks():
        corpus_hash.update(text.encode(), ends_document)
        if document == len(split.document_splits):
            raise error
        document_split = split.document_splits[document]
        document += ends_document
        if document_split == LEFT_OUT:
            continue
        if previous_split is not None:
            yield SplitChunk(split_at(position, previous_split), "\n", False, is_separator=True)
            position += 1
        if split.by == "position" and position < split.cut < position + len(text):
            yield SplitChunk(TRAIN, text[: split.cut - position], False)
            yield SplitChunk(VAL, text[split.cut - position :], ends_document)
        else:
            yield SplitChunk(split_at(position, document_split), text, ends_document)
        position += len(text)
        needs_newline = insert_newlines and ends_document and not text.endswith("\n")
        previous_split = document_split if needs_newline else None
    if corpus_hash.hexdigest() != scan.sha256:
        raise error
