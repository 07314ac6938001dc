"""Prepare a source for training: the entry points of `octavo.data`.

    prepare_dataset          opens a dataset in the cache, or builds it there
    reopen_dataset           the same, for the dataset that a checkpoint was trained on
    prepare_into_folder      builds a dataset in a folder that the user chose; never in the cache
    prepare                  the same, without progress

Each of these except `prepare` returns a `Preparation`, which can be iterated for progress and has the opened `Dataset`
as its result.
"""

import dataclasses
import os
import shlex
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from octavo import remote
from octavo.data.build import BuildInputs, build_dataset
from octavo.data.cache import (
    acquire_lock,
    cache_key,
    cached_folder,
    dataset_fingerprint,
    open_cached,
)
from octavo.data.dataset import Dataset, Origin, is_prepared, open_dataset
from octavo.data.encoder import END, Encoder
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.scan import CorpusScan, ScanSummary, load_scan_summary, scan_corpus, warn_about_source
from octavo.data.sources import Corpus, open_source
from octavo.data.split import choose_split, split_chunks
from octavo.errors import OctavoError, SourceChangedError, SourceNotFoundError
from octavo.progress import PreparationProgress, ProgressMeter, preparation
from octavo.settings import DataSettings, SourceLike, as_source, list_sources, resolve
from octavo.tokenizers import Tokenizer, UnknownCharacters

_SMALL_TEXT = 8 << 20  # bytes
_SMALL_ALPHABET = 256  # characters


def prepare(source: SourceLike, out: str | Path, **settings: Any) -> Dataset:
    """Prepare a source into the folder `out`, which must be empty or missing, and return the dataset.

        dataset = octavo.prepare("my.txt", "tokens", tokenizer="bpe:1024")

    `settings` are fields of `octavo.Settings` that describe the text, such as `tokenizer` and `val_fraction` (see
    `DataSettings`). Raises `OctavoError` if `out` is not empty, or if the source or a setting is invalid.
    """
    return prepare_into_folder(resolve(source=as_source(source), **settings), out).result


@preparation
def prepare_dataset(
    settings: DataSettings, tokenizer: Tokenizer | None = None, limits: Limits = DEFAULT_LIMITS
) -> Generator[PreparationProgress, None, Dataset]:
    """Open the dataset of a source. A prepared folder is opened in place; a text is prepared into the cache.

    `tokenizer` is the tokenizer of the model to fine-tune; it overrides the setting.
    """
    if is_prepared(settings.source):
        return _open_prepared(settings, tokenizer)
    if tokenizer is not None:
        settings = dataclasses.replace(settings, tokenizer=tokenizer.kind)
    corpus = open_source(settings, limits)
    summary = load_scan_summary(corpus)
    if summary is not None:
        warn_about_source(corpus, summary, settings)
        resolved_settings = resolve_tokenizer_setting(settings, summary)
        dataset = open_cached(cache_key(summary, resolved_settings, tokenizer))
        if dataset is not None:
            return _rename(dataset, corpus)
    scan = yield from scan_corpus(corpus, limits)
    if summary is None:
        warn_about_source(corpus, scan, settings)
    return (yield from open_or_build(corpus, scan, settings, tokenizer, limits))


@preparation
def reopen_dataset(
    settings: DataSettings, origin: dict[str, Any] | None, tokenizer: Tokenizer, limits: Limits = DEFAULT_LIMITS
) -> Generator[PreparationProgress, None, Dataset]:
    """The dataset that a checkpoint was trained on, whose source must still have the same text.

    `origin` is the `Dataset.origin` that the checkpoint stores. Raises `OctavoError` if the source is gone or has
    another text, whether or not the cache has the dataset: the cache only makes an unchanged source faster to open.
    """
    recorded = Origin.check(origin)
    settings = dataclasses.replace(settings, tokenizer=recorded.tokenizer)
    if is_prepared(settings.source):
        dataset = _open_prepared(settings, tokenizer)
        if dataset.fingerprint != recorded.fingerprint:
            raise OctavoError(
                f"{settings.source_name} is not the dataset that this run was trained on", _reopening_hint(recorded)
            )
        return dataset
    # Reading from a terminal would seem to hang.
    if "-" in list_sources(settings.source) and sys.stdin is not None and sys.stdin.isatty():
        raise OctavoError("this run was trained on standard input", "pipe the same text into the same command")
    try:
        corpus = open_source(settings, limits)
    except SourceNotFoundError as error:
        message = f"{error.message}, and this run was trained on it"
        raise SourceNotFoundError(message, _reopening_hint(recorded)) from None
    scan = load_scan_summary(corpus) or (yield from scan_corpus(corpus, limits))
    if scan.sha256 != recorded.text.sha256:
        message = f"{corpus.source_name} is not the text that this run was trained on: it has {scan.bytes:,} bytes"
        if recorded.text.bytes is not None:
            message += f", and the text had {recorded.text.bytes:,}"
        raise OctavoError(message, _reopening_hint(recorded))
    if dataset_fingerprint(scan, settings, tokenizer) != recorded.fingerprint:
        raise OctavoError(
            "val_fraction, deduplicate or the tokenizer is not what this run was trained with",
            "the settings.toml of the run as it was",
        )
    cached = open_cached(recorded.cache_key)
    if cached is not None and cached.fingerprint == recorded.fingerprint:
        return cached
    if not isinstance(scan, CorpusScan):
        scan = yield from scan_corpus(corpus, limits)
    dataset = yield from open_or_build(corpus, scan, settings, tokenizer, limits)
    if dataset.fingerprint != recorded.fingerprint:
        raise SourceChangedError(f"{corpus.source_name} changed while it was read", "the same command again")
    return dataset


@preparation
def prepare_into_folder(
    settings: DataSettings, out: str | Path, limits: Limits = DEFAULT_LIMITS
) -> Generator[PreparationProgress, None, Dataset]:
    """Prepare a source into the folder `out`, which must be empty or missing."""
    folder = Path(os.path.abspath(out))
    check_is_empty(folder, out)
    if is_prepared(settings.source):
        raise OctavoError(f"{settings.source_name} is prepared already", f"octavo train {settings.source_name}")
    corpus = open_source(settings, limits)
    scan = yield from scan_corpus(corpus, limits)
    warn_about_source(corpus, scan, settings)
    lock = yield from acquire_lock(folder, wait=False)
    try:
        check_is_empty(folder, out)  # another process may have written it during the scan
        settings = resolve_tokenizer_setting(settings, scan)
        dataset = yield from build_dataset(BuildInputs(corpus, scan, settings, None, limits), folder)
        return dataclasses.replace(dataset, folder=Path(out))  # the path as the user gave it, relative or absolute
    finally:
        lock.release()


def open_or_build(
    corpus: Corpus, scan: CorpusScan, settings: DataSettings, tokenizer: Tokenizer | None, limits: Limits
) -> Generator[PreparationProgress, None, Dataset]:
    """The dataset of a scanned corpus: opened from the cache, or built into it."""
    inputs = BuildInputs(corpus, scan, resolve_tokenizer_setting(settings, scan), tokenizer, limits)
    key = inputs.key
    dataset, folder = open_cached(key), cached_folder(key)
    if dataset is None:
        lock = yield from acquire_lock(folder, wait=True)
        try:
            dataset = open_cached(key)  # another process may have built it in the meantime
            if dataset is None:
                dataset = yield from build_dataset(inputs, folder)
        finally:
            lock.release()
    return _rename(dataset, corpus)


def _reopening_hint(recorded: Origin) -> str:
    """How to get at the text of a run whose source is gone or has another text."""
    folder = cached_folder(recorded.cache_key)
    cached = f", or its tokens in the cache: octavo train {shlex.quote(str(folder))} --resume RUN"
    return (
        f"the text as it was{cached if is_prepared(folder) else ''}; another text needs a new run: "
        "octavo train SOURCE --init RUN"
    )


def is_cached(settings: DataSettings, origin: dict[str, Any] | None) -> bool:
    """Whether `reopen_dataset` is quick: the tokens are in the cache, and the text is recognized or small."""
    recorded = Origin.check(origin)
    if is_prepared(settings.source):
        return True
    if any(map(_is_stream, list_sources(settings.source))) or not is_prepared(cached_folder(recorded.cache_key)):
        return False
    if (recorded.text.bytes or 0) <= _SMALL_TEXT:  # a file that was modified just before its scan has no recorded scan
        return True
    try:
        return load_scan_summary(open_source(dataclasses.replace(settings, tokenizer=recorded.tokenizer))) is not None
    except OctavoError:
        return False


def _is_stream(source: str) -> bool:
    return source == "-" or (os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source))


@preparation
def encode_corpus(
    settings: DataSettings, tokenizer: Tokenizer, unknown: str = "error", limits: Limits = DEFAULT_LIMITS
) -> Generator[PreparationProgress, None, tuple[np.ndarray, UnknownCharacters | None]]:
    """The ids of all documents of a source (T,), int64, as they would be in a dataset. They are held in memory.

    Also returns the characters that were skipped or replaced, if there were any.
    """
    corpus = open_source(dataclasses.replace(settings, tokenizer=tokenizer.kind), limits)
    scan = yield from scan_corpus(corpus, limits)
    warn_about_source(corpus, scan, settings)
    uses_end_of_text = scan.uses_end_of_text(tokenizer)
    # The ids of both splits are returned together, in the order of the corpus. A split is needed only because
    # `split_chunks` inserts the newlines between documents. With a validation fraction of 0 it does not cut any
    # document in two: a cut within a token would change the ids around it.
    split = choose_split(scan, 0.0, deduplicate=False, insert_newlines=not uses_end_of_text)
    encoder, ids = Encoder(tokenizer, unknown, settings.special_tokens), [np.empty(0, np.int64)]
    meter, characters = ProgressMeter("encoding", scan.characters, limits.progress_seconds), 0
    for chunk in split_chunks(corpus, scan, split, insert_newlines=not uses_end_of_text):
        ids.append(encoder.encode(chunk.text.encode() + (END if uses_end_of_text and chunk.ends_document else b"")))
        characters += len(chunk.text)
        yield from meter.report(characters)
    return np.concatenate(ids).astype(np.int64), encoder.report


def choose_tokenizer(size: int, alphabet: int) -> str:
    """The tokenizer for a text of `size` bytes and `alphabet` distinct characters, if the user chose none.

    Characters for a small text with a small alphabet. Otherwise BPE, with about one token for every 500 bytes of text,
    between 1,024 and 32,768.
    """
    if size <= _SMALL_TEXT and alphabet <= _SMALL_ALPHABET:
        return "char"
    return f"bpe:{min(32768, max(1024, 1 << (size // 500).bit_length()))}"


def resolve_tokenizer_setting(settings: DataSettings, scan: ScanSummary) -> DataSettings:
    """Settings whose `tokenizer` is not `auto` but the choice for this text."""
    if settings.tokenizer == "auto":
        return dataclasses.replace(settings, tokenizer=choose_tokenizer(scan.bytes, len(scan.alphabet)))
    return settings


def _rename(dataset: Dataset, corpus: Corpus) -> Dataset:
    """A cached dataset with the name of this corpus: it may have been built from the same text under another name."""
    return dataclasses.replace(dataset, info=dataset.info | {"name": corpus.name, "source": corpus.recorded_source})


def check_is_empty(folder: Path, out: str | Path) -> None:
    """Raise `OctavoError` if the folder that the user named as `out` exists and is not empty."""
    if remote.is_url(str(out)):
        raise OctavoError(f"{out} is a URL, and tokens are written to a folder", "--out DIR, which you then copy there")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OctavoError(f"{out} already exists and is not empty", "another --out, or delete it first")


def _open_prepared(settings: DataSettings, tokenizer: Tokenizer | None) -> Dataset:
    """The prepared folder `settings.source`. Raises `OctavoError` if it was prepared with another tokenizer."""
    dataset = open_dataset(settings.source)
    prepared_with = dataset.info["tokenizer"]
    if settings.special_tokens and not dataset.info.get("special_tokens"):
        raise OctavoError(
            f"{settings.source_name} was prepared without special tokens",
            "octavo prepare SOURCE --special-tokens --out DIR",
        )
    if tokenizer is not None:
        if tokenizer.fingerprint != dataset.tokenizer.fingerprint:
            raise OctavoError(
                f"{settings.source_name} was prepared with another tokenizer than the model's",
                "give the text itself: it is prepared with the model's tokenizer",
            )
    elif settings.tokenizer not in ("auto", prepared_with):
        raise OctavoError(
            f"{settings.source_name} was prepared with tokenizer {prepared_with}, not {settings.tokenizer}",
            f"--tokenizer {prepared_with}",
        )
    return dataset
