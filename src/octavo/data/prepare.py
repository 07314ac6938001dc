"""Text to token shards, made once and known by their fingerprint: the ways in.

A text is read through (`survey`) and written as shards of tokens (`making`). `dataset` is what training calls: it takes
any source, and prepares it into the cache unless that very text, tokenized that very way, is there already.

Each of the three ways in, `dataset`, `reopen_dataset` and `prepare`, has a twin that tells how far it is, as it goes.
"""

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files
from octavo.data import encoding, sources
from octavo.data.build import Steps, cache_key, locked, made, result, surveyed
from octavo.data.dataset import Dataset, is_prepared, open_dataset
from octavo.data.scan import CorpusScan, parts
from octavo.data.sources import Corpus
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

_SMALL_TEXT = 8 << 20  # bytes below which characters are the better tokens for a small model
_FEW_CHARACTERS = 256


def dataset(settings: DataSettings, tokenizer: Tokenizer | None = None) -> Dataset:
    """The tokens of a source: a folder that `prepare` made, nanoGPT's, or text, prepared into the cache.

    With a tokenizer (of the model that is fine-tuned) that one is used, whatever the settings say.
    """
    return result(preparing(settings, tokenizer))


def reopen_dataset(settings: DataSettings, known: dict[str, Any], tokenizer: Tokenizer) -> Dataset:
    """The very dataset that a checkpoint's `data` tells of: still in the cache, or made again from its source.

    Raises `OctavoError` if the source has become another text.
    """
    return result(preparing_again(settings, known, tokenizer))


def prepare(settings: DataSettings, out: str | Path) -> Dataset:
    """Prepare a source into the folder `out`, which must not hold anything yet."""
    return result(preparing_into(settings, out))


def preparing(settings: DataSettings, tokenizer: Tokenizer | None = None) -> Steps:
    """`dataset`, telling how far it is."""
    if is_prepared(settings.source):
        return _opened_as(Path(settings.source), settings, tokenizer)
    corpus = corpus_of(settings)
    seen = yield from surveyed(corpus)
    return (yield from cached_or_made(corpus, seen, settings, tokenizer))


def preparing_again(settings: DataSettings, known: dict[str, Any], tokenizer: Tokenizer) -> Steps:
    """`reopen_dataset`, telling how far it is."""
    cached = _cached(known["cache_key"])
    if settings.source == known["source"] and (cached / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):
            found = open_dataset(cached)
            if found.fingerprint == known["fingerprint"]:
                return found
    other = OctavoError(f"{settings.source} is not the text that this run was trained on",
                        "--init RUN, which starts a new run from its weights, with any text")  # fmt: skip
    if is_prepared(settings.source):
        new = _opened_as(Path(settings.source), settings, tokenizer)
    else:
        corpus = corpus_of(settings)
        seen = yield from surveyed(corpus)
        if seen.sha256 != known["text"]["sha256"]:
            raise other  # before the tokenizer meets characters that it doesn't know
        new = yield from cached_or_made(corpus, seen, settings, tokenizer)
    if new.fingerprint != known["fingerprint"]:
        raise other
    return new


def preparing_into(settings: DataSettings, out: str | Path) -> Steps:
    """`prepare`, telling how far it is."""
    out, given = Path(os.path.abspath(out)), out
    _check_free(out, given)
    if is_prepared(settings.source):
        raise OctavoError(f"{settings.source} is prepared already", f"octavo train {settings.source}")
    corpus = corpus_of(settings)
    seen = yield from surveyed(corpus)
    lock = yield from locked(out, wait=False)
    try:
        _check_free(out, given)  # it may have come while the text was read
        new = yield from made(corpus, seen, settings, _spec(settings, seen), out)
        return dataclasses.replace(new, folder=Path(given))
    finally:
        lock.release()


def is_cached(settings: DataSettings, known: dict[str, Any]) -> bool:
    """Whether the dataset that a checkpoint's `data` tells of lies prepared, so that no text need be read for it."""
    return is_prepared(_cached(known["cache_key"])) or is_prepared(settings.source)


def encode_all(corpus: Corpus, tokenizer: Tokenizer, unknown: str = "error") -> np.ndarray:
    """The ids of a whole corpus (T,), as they would be prepared, held in memory."""
    seen = result(surveyed(corpus))
    marks = seen.has_ends(tokenizer)
    split = seen.split(0.5, deduplicate=False, newlines=not marks)
    encoder = encoding.Encoder(tokenizer, unknown)
    found = (encoder.encode(text.encode() + (encoding.END if marks and ends else b""))
             for _, text, ends, _ in parts(corpus, seen, split._replace(by="document"), not marks))  # fmt: skip
    return np.concatenate([np.empty(0, np.int64), *found]).astype(np.int64)


def tokenizer_for(size: int, alphabet: int) -> str:
    """The tokenizer that suits a text of so many bytes and different characters, where nobody said one.

    Characters for a small text in an alphabet; else BPE, with one token of vocabulary for about 500 bytes
    of text, between 1,024 and 32,768.
    """
    if size <= _SMALL_TEXT and alphabet <= _FEW_CHARACTERS:
        return "char"
    return f"bpe:{min(32768, max(1024, 1 << (size // 500).bit_length()))}"


def corpus_of(settings: DataSettings) -> Corpus:
    """The corpus that settings name."""
    return sources.read(settings.source, settings.encoding, settings.errors, settings.text_field)


def _spec(settings: DataSettings, seen: CorpusScan) -> str:
    auto = tokenizer_for(seen.size, len(seen.alphabet))
    return auto if settings.tokenizer == "auto" else settings.tokenizer


def _cached(key: str) -> Path:
    return files.cache_dir() / "prepared" / key


def cached_or_made(corpus: Corpus, seen: CorpusScan, settings: DataSettings, tokenizer: Tokenizer | None) -> Steps:
    """The tokens of a corpus that was read through: from the cache, or made."""
    maker = tokenizer or _spec(settings, seen)
    cached = _cached(cache_key(seen, maker, settings))
    if found := _opened_here(cached, corpus):
        return found
    lock = yield from locked(cached, wait=True)
    try:
        if found := _opened_here(cached, corpus):  # by whoever had the lock
            return found
        return (yield from made(corpus, seen, settings, maker, cached))
    finally:
        lock.release()


def _opened_here(cached: Path, corpus: Corpus) -> Dataset | None:
    """What the cache has, perhaps of the same text under another name. A damaged copy is made anew."""
    if (cached / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):
            found = open_dataset(cached)
            return dataclasses.replace(found, info=found.info | {"name": corpus.name, "source": corpus.source})
    return None


def _check_free(out: Path, given: str | Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OctavoError(f"{given} already holds something", "another --out, or delete it first")


def _opened_as(folder: Path, settings: DataSettings, tokenizer: Tokenizer | None) -> Dataset:
    """A prepared folder, if it was prepared with the tokenizer that is asked for."""
    found = open_dataset(folder)
    if tokenizer is not None:
        if tokenizer.fingerprint != found.tokenizer.fingerprint:
            raise OctavoError(f"{folder} was prepared with another tokenizer than the model's",
                              "give the text itself; it is prepared with the model's tokenizer")  # fmt: skip
        return found
    if settings.tokenizer not in ("auto", found.info["tokenizer"]):
        raise OctavoError(f"{folder} was prepared with the tokenizer {found.info['tokenizer']}, not "
                          f"{settings.tokenizer}", f"--tokenizer {found.info['tokenizer']}")  # fmt: skip
    return found
