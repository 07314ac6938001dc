"""Scan a corpus: read it once, before it is tokenized, to count it, hash it and collect its characters.

A scan needs 25 bytes of memory for each document. The part of it that does not grow with the corpus, the
`ScanSummary`, is stored in the cache, so that a text which was scanned before need not be read again to find its
prepared dataset.
"""

import dataclasses
import functools
import hashlib
import json
import os
import warnings
from array import array
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo import files, schema
from octavo.data import formats
from octavo.data.chunks import Chunk
from octavo.data.conversion import reading_identity
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.report import Skipped, join_counts, summarize
from octavo.data.sources import Corpus, CorpusHash
from octavo.errors import OctavoError, OctavoWarning
from octavo.progress import PreparationProgress, ProgressMeter, preparation
from octavo.settings import DataSettings, list_sources
from octavo.tokenizers import END_OF_TEXT, Tokenizer

_DIGEST_BYTES = 16
_RECORD_FORMAT = 4
# The formats that are read without a conversion.
_PLAIN = {format.name for format in (formats.TEXT, formats.JSON_LINES, formats.JSON, formats.CSV, formats.PARQUET)}


@dataclass(frozen=True)
class ScanSummary:
    """What identifies a corpus, and its size."""

    sha256: str  # of the UTF-8 bytes, with 0xFF after each document if there are several
    bytes: int  # of UTF-8
    characters: int
    documents: int
    alphabet: str  # every character once, sorted
    separated: int  # documents that follow a line `<|endoftext|>`
    end_of_texts: int  # occurrences of `<|endoftext|>` within the documents
    read: dict[str, int]  # files, by format; see `Report`
    skipped: Skipped


@dataclass(frozen=True)
class CorpusScan(ScanSummary):
    """A summary, and what the split needs to know about each document."""

    lengths: "array[int]"  # in characters
    digests: bytes  # 16 for each document
    lacks_newline: bytes  # for each document, 1 if it does not end with a newline

    def uses_end_of_text(self, tokenizer: Tokenizer) -> bool:
        """Whether `<|endoftext|>` follows each document: there are several, and the tokenizer has that token."""
        return self.documents > 1 and tokenizer.end_of_text is not None

    def shows_end_of_text(self, settings: DataSettings) -> bool:
        """Whether a model sees `<|endoftext|>` as a token: between documents, or within them with `special_tokens`."""
        return self.documents > 1 or (settings.special_tokens and self.end_of_texts > 0)

    @functools.cached_property
    def digest_array(self) -> np.ndarray:
        """The digests, (documents,)."""
        return np.frombuffer(self.digests, f"S{_DIGEST_BYTES}")

    @functools.cached_property
    def is_first_copy(self) -> np.ndarray:
        """Which documents are not exact copies of an earlier one, (documents,)."""
        is_first = np.zeros(self.documents, dtype=bool)
        is_first[np.unique(self.digest_array, return_index=True)[1]] = True
        return is_first


def warn_about_source(corpus: Corpus, summary: ScanSummary, settings: DataSettings) -> None:
    """Emit an `OctavoWarning` about each thing in a source that the user may not expect.

    They are the files that were skipped, converted or read with their markup, and the use of `<|endoftext|>`.
    """
    is_plain = not summary.skipped and not corpus.skipped_folders and not summary.read.keys() - _PLAIN
    if not is_plain or sum(summary.read.values()) > 1:
        counts = summarize(summary.read, summary.skipped, corpus.skipped_folders)
        name = "./" if corpus.source == "." else corpus.source_name
        warnings.warn(f"{name}: {counts}", OctavoWarning, stacklevel=2)
    if summary.separated:
        message = f"lines {END_OF_TEXT} separate documents in {corpus.source_name}: {summary.documents:,} documents"
        warnings.warn(message, OctavoWarning, stacklevel=2)
    if summary.end_of_texts and not settings.special_tokens:
        message = (
            f"{corpus.source_name} has {END_OF_TEXT} {summary.end_of_texts:,} times within its text: it is encoded as "
            "ordinary text (--special-tokens: as the token)"
        )
        warnings.warn(message, OctavoWarning, stacklevel=2)


@preparation
def scan_corpus(corpus: Corpus, limits: Limits = DEFAULT_LIMITS) -> Generator[PreparationProgress, None, CorpusScan]:
    """Read a corpus from beginning to end, and store its summary in the cache."""
    scan = yield from scan_chunks(corpus, limits)
    if corpus.is_unchanged():
        _save_scan_summary(corpus, scan)
    return scan


def scan_chunks(
    corpus: Corpus, limits: Limits, chunks: Iterable[Chunk] | None = None
) -> Generator[PreparationProgress, None, CorpusScan]:
    """Scan all documents of a corpus. `chunks` are its chunks, if the caller already reads them."""
    corpus_hash, size, characters, separated, end_of_texts = CorpusHash(), 0, 0, 0, 0
    lengths, digests, lacks_newline = array("q"), bytearray(), bytearray()
    # The alphabet is collected in two ways: ASCII by bytes, which is fast, and the rest by code points, which is needed
    # only for chunks with other characters.
    ascii_alphabet, is_in_alphabet = b"", np.zeros(0x110000, dtype=bool)
    document_hash, length = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
    meter = ProgressMeter("reading", None, limits.progress_seconds)
    for text, ends_document, follows_separator in corpus.chunks() if chunks is None else chunks:
        content = text.encode()
        corpus_hash.update(content, ends_document)
        document_hash.update(content)
        end_of_texts += text.count(END_OF_TEXT)
        size, characters, length = size + len(content), characters + len(text), length + len(text)
        if new_bytes := content.translate(None, ascii_alphabet):
            ascii_alphabet += bytes(sorted(byte for byte in set(new_bytes) if byte < 0x80))
        if len(content) != len(text):
            is_in_alphabet[np.frombuffer(text.encode("utf-32-le"), "<u4")] = True
        if ends_document:
            lengths.append(length)
            separated += follows_separator
            digests += document_hash.digest()
            lacks_newline.append(not text.endswith("\n"))
            document_hash, length = hashlib.blake2b(digest_size=_DIGEST_BYTES), 0
        yield from meter.report(characters)
    alphabet = set(map(chr, np.flatnonzero(is_in_alphabet).tolist())) | set(ascii_alphabet.decode())
    return CorpusScan(
        sha256=corpus_hash.hexdigest(),
        bytes=size,
        characters=characters,
        documents=len(lengths),
        alphabet="".join(sorted(alphabet)),
        separated=separated,
        end_of_texts=end_of_texts,
        read=dict(corpus.report.read),
        skipped=dict(corpus.report.skipped),
        lengths=lengths,
        digests=bytes(digests),
        lacks_newline=bytes(lacks_newline),
    )


def join_scans(scans: Sequence[CorpusScan], sha256: str) -> CorpusScan:
    """The scan of a corpus from the scans of its consecutive parts. Only the hash must be given."""
    read, skipped = join_counts((scan.read, scan.skipped) for scan in scans)
    return CorpusScan(
        sha256=sha256,
        bytes=sum(scan.bytes for scan in scans),
        characters=sum(scan.characters for scan in scans),
        documents=sum(scan.documents for scan in scans),
        alphabet="".join(sorted(set().union(*(scan.alphabet for scan in scans)))),
        separated=sum(scan.separated for scan in scans),
        end_of_texts=sum(scan.end_of_texts for scan in scans),
        read=read,
        skipped=skipped,
        lengths=array("q", b"".join(scan.lengths.tobytes() for scan in scans)),
        digests=b"".join(scan.digests for scan in scans),
        lacks_newline=b"".join(scan.lacks_newline for scan in scans),
    )


# Recognizing files that were scanned before


def load_scan_summary(corpus: Corpus) -> ScanSummary | None:
    """The summary of an earlier scan of the same files, recognized by path, size and modification time.

    None if there was no such scan, a file has changed since, or the source is not made of files.
    """
    if corpus.identity is None:
        return None
    try:
        record = json.loads(_record_path(corpus).read_text(encoding="utf-8"))
        if record["files"] != corpus.identity:
            return None
        return schema.check(record["summary"], ScanSummary, "the record", hint="")
    except (OSError, OctavoError, ValueError, KeyError, TypeError):
        return None


def _record_path(corpus: Corpus) -> Path:
    paths = list(map(os.path.abspath, list_sources(corpus.source)))
    key = repr((_RECORD_FORMAT, reading_identity(), paths, corpus.text_format))
    return files.cache_dir() / "scans" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.json"


def _save_scan_summary(corpus: Corpus, scan: CorpusScan) -> None:
    """Write a record for `load_scan_summary`. Without one, the text is read again; so errors are ignored."""
    summary = {field.name: getattr(scan, field.name) for field in dataclasses.fields(ScanSummary)}
    try:
        path = _record_path(corpus)
        with files.translate_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path, json.dumps({"files": corpus.identity, "summary": summary}))
    except (OSError, OctavoError):
        pass
