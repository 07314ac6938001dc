"""Text to token shards: a folder that training reads, made once and known by its fingerprint.

A text is read through (`survey`), a tokenizer learnt from it where one must be, and the shards written (`writer`) into
a folder beside the one that is wanted, `.NAME.preparing`, which takes its name when all is there. What is interrupted
goes on from there. `dataset` is what training calls: it takes any source, and prepares it into the cache unless that
very text, tokenized that very way, is there already.

Each of the three ways in, `dataset`, `dataset_again` and `prepare`, has a twin that tells how far it is, as it goes.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import filelock
import numpy as np

from octavo import files, tokenizers
from octavo.data import corpora, encoding, writer
from octavo.data.corpora import Corpus
from octavo.data.dataset import FORMAT, SPLITS, Dataset, is_prepared, open_dataset
from octavo.data.shards import npy
from octavo.data.survey import LEFT_OUT, Split, Survey, parts, survey
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

_SMALL_TEXT = 8 << 20  # bytes below which characters are the better tokens for a small model
_FEW_CHARACTERS = 256
_LEARNT_FROM = 100_000_000  # characters, at most, from which a vocabulary is learnt
_TELL_EVERY = 0.2  # seconds
_SAMPLE = 1 << 16  # characters
_LARGE = 1 << 24  # characters from which a vocabulary that was learnt is kept, before there are tokens
_PASSING = ("plan.json", writer.WRITTEN)  # files that are there until all is


@dataclass(frozen=True)
class Preparing:
    """How far a text is prepared: `done` of `total` characters, where those are known, in so many `seconds`."""

    doing: str  # "reading", "learning the tokenizer" or "writing tokens"
    done: int
    total: int | None
    seconds: float


Steps = Generator[Preparing, None, Dataset]
T = TypeVar("T")


def dataset(settings: DataSettings, tokenizer: Tokenizer | None = None) -> Dataset:
    """The tokens of a source: a folder that `prepare` made, nanoGPT's, or text, prepared into the cache.

    With a tokenizer (of the model that is fine-tuned) that one is used, whatever the settings say.
    """
    return result(preparing(settings, tokenizer))


def dataset_again(settings: DataSettings, known: dict[str, Any], tokenizer: Tokenizer) -> Dataset:
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
    """`dataset_again`, telling how far it is."""
    cached = _cached(known["cache_key"])
    if settings.source == known["source"] and (cached / "dataset.json").is_file():
        with contextlib.suppress(OctavoError):
            found = open_dataset(cached)
            if found.fingerprint == known["fingerprint"]:
                return found
    other = OctavoError(f"{settings.source} is not the text that this run was trained on",
                        "--init RUN, which starts a new run from its weights, with any text")  # fmt: skip
    if is_prepared(settings.source):
        made = _opened_as(Path(settings.source), settings, tokenizer)
    else:
        corpus = corpus_of(settings)
        seen = yield from surveyed(corpus)
        if seen.sha256 != known["text"]["sha256"]:
            raise other  # before the tokenizer meets characters that it doesn't know
        made = yield from cached_or_made(corpus, seen, settings, tokenizer)
    if made.fingerprint != known["fingerprint"]:
        raise other
    return made


def preparing_into(settings: DataSettings, out: str | Path) -> Steps:
    """`prepare`, telling how far it is."""
    out, given = Path(os.path.abspath(out)), out
    _check_free(out, given)
    if is_prepared(settings.source):
        raise OctavoError(f"{settings.source} is prepared already", f"octavo train {settings.source}")
    corpus = corpus_of(settings)
    seen = yield from surveyed(corpus)
    lock = yield from _locked(out, wait=False)
    try:
        _check_free(out, given)  # it may have come while the text was read
        made = yield from _made(corpus, seen, settings, _spec(settings, seen), out)
        return dataclasses.replace(made, folder=Path(given))
    finally:
        lock.release()


def is_at_hand(settings: DataSettings, known: dict[str, Any]) -> bool:
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


def result(steps: Generator[Preparing, None, T]) -> T:
    """What comes of steps, with nobody told how far they are."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(T, done.value)


def corpus_of(settings: DataSettings) -> Corpus:
    """The corpus that settings name."""
    return corpora.read(settings.source, settings.encoding, settings.errors, settings.text_field)


def told(doing: str, counts: Iterator[int], total: int | None) -> Iterator[Preparing]:
    """Every now and then, how far it is."""
    began = last = time.perf_counter()
    for count in counts:
        now = time.perf_counter()
        if now - last >= _TELL_EVERY:
            last = now
            yield Preparing(doing, count, total, now - began)


def surveyed(corpus: Corpus) -> Generator[Preparing, None, Survey]:
    """What a corpus is, telling how far it is read."""
    found: Survey | None = None

    def counts() -> Iterator[int]:
        nonlocal found
        for each in survey(corpus):
            if isinstance(each, Survey):
                found = each
            else:
                yield each

    yield from told("reading", counts(), None)
    assert found is not None
    return found


def _spec(settings: DataSettings, seen: Survey) -> str:
    auto = tokenizer_for(seen.size, len(seen.alphabet))
    return auto if settings.tokenizer == "auto" else settings.tokenizer


def _cached(key: str) -> Path:
    return files.cache_dir() / "prepared" / key


def _cache_key(seen: Survey, maker: str | Tokenizer, settings: DataSettings) -> str:
    made_by = maker if isinstance(maker, str) else maker.fingerprint
    identity = f"{FORMAT} {seen.sha256} {made_by} {settings.val_fraction!r} {settings.deduplicate}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def cached_or_made(corpus: Corpus, seen: Survey, settings: DataSettings, tokenizer: Tokenizer | None) -> Steps:
    """The tokens of a corpus that was read through: from the cache, or made."""
    maker = tokenizer or _spec(settings, seen)
    cached = _cached(_cache_key(seen, maker, settings))
    if found := _opened_here(cached, corpus):
        return found
    lock = yield from _locked(cached, wait=True)
    try:
        if found := _opened_here(cached, corpus):  # by whoever had the lock
            return found
        return (yield from _made(corpus, seen, settings, maker, cached))
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


def _locked(out: Path, wait: bool) -> Generator[Preparing, None, filelock.BaseFileLock]:
    """The lock of a folder that is to be written. Its file stays: a lock whose file goes can be held twice."""
    name = hashlib.sha256(os.fsencode(out)).hexdigest()[:24]
    path = files.cache_dir() / "locks" / name
    with files.disk_errors_told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock, began = filelock.FileLock(path, timeout=0), time.perf_counter()
    while True:
        try:
            lock.acquire()
            return lock
        except filelock.Timeout:
            if not wait:
                raise OctavoError(f"another process prepares {out}", "the same again when it is done") from None
            yield Preparing("waiting for another process that prepares this text", 0, None, time.perf_counter() - began)
            time.sleep(_TELL_EVERY)


def _made(corpus: Corpus, seen: Survey, settings: DataSettings, maker: str | Tokenizer, out: Path) -> Steps:
    """Tokenize a corpus, by a tokenizer or what one is built from, and put the folder in its place, whole."""
    folder = out.with_name(f".{out.name}.preparing")
    try:
        tokenizer = yield from _begun(folder, corpus, seen, settings, maker)
        newlines = not seen.has_ends(tokenizer)
        split = seen.split(settings.val_fraction, settings.deduplicate, newlines)
        with contextlib.closing(parts(corpus, seen, split, newlines)) as all_parts:
            counts = writer.write(folder, all_parts, tokenizer, seen, _ratio(corpus, tokenizer))
            yield from told("writing tokens", counts, seen.characters)
        info = _described(folder, corpus, seen, settings, maker, tokenizer, split)
        with files.disk_errors_told(out):
            (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            for name in _PASSING:
                (folder / name).unlink(missing_ok=True)
            files.put_in_place(folder, out)
    except OctavoError as error:
        if "unknown characters" in error.message:
            raise OctavoError(f"{corpus.name} has {error.message}",
                              "a text in that alphabet, or a model of --tokenizer byte") from None  # fmt: skip
        raise
    finally:
        worth = any(folder.glob("*.npy")) or (seen.characters >= _LARGE and (folder / "plan.json").exists())
        if folder.exists() and not worth:
            shutil.rmtree(folder)  # nothing was finished that is worth going on from
    there = {name: [npy(path) for path in paths] for name, paths in _shard_paths(out).items()}
    return Dataset(out, tokenizer, info, there)


def _ratio(corpus: Corpus, tokenizer: Tokenizer) -> float:
    """About how many ids a character of this corpus gets, by its beginning."""
    with contextlib.closing(corpus.pieces()) as pieces:
        text = next(pieces).text[:_SAMPLE]
    return len(tokenizer.encode(text)) / len(text)


def _begun(folder: Path, corpus: Corpus, seen: Survey, settings: DataSettings,
           maker: str | Tokenizer) -> Generator[Preparing, None, Tokenizer]:  # fmt: skip
    """The folder to write into, with the tokenizer in it: from when this was interrupted, or new."""
    plan = json.dumps([_cache_key(seen, maker, settings), writer.SHARD])
    with contextlib.suppress(OSError, OctavoError):
        if (folder / "plan.json").read_text(encoding="utf-8") == plan:
            files.sweep(folder)
            return tokenizers.load(folder)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = maker if isinstance(maker, Tokenizer) else (yield from _learnt(corpus, seen, maker))
    with files.disk_errors_told(folder):
        folder.mkdir(parents=True)
        tokenizer.save(folder)
        files.write_whole(folder / "plan.json", plan)
    return tokenizer


def _learnt(corpus: Corpus, seen: Survey, spec: str) -> Generator[Preparing, None, Tokenizer]:
    """The tokenizer that a corpus makes: of a large one, as much as a vocabulary needs, from all over it."""
    if spec == "char":
        return tokenizers.build(spec, seen.alphabet)
    yield Preparing("learning the tokenizer", 0, None, 0.0)

    def sample() -> Iterator[str]:
        passed = taken = 0
        for text, _ in corpus.pieces():
            passed += len(text)
            if seen.characters <= _LEARNT_FROM or taken * seen.characters <= passed * _LEARNT_FROM:
                taken += len(text)
                yield text

    return tokenizers.build(spec, sample())


def _shard_paths(folder: Path) -> dict[str, list[Path]]:
    return {split: sorted(folder.glob(f"{split}-*.npy")) for split in SPLITS}


def _described(folder: Path, corpus: Corpus, seen: Survey, settings: DataSettings, maker: str | Tokenizer,
               tokenizer: Tokenizer, split: Split) -> dict[str, Any]:  # fmt: skip
    """What `dataset.json` says. Raises `OctavoError` where a split has too few tokens."""
    paths = _shard_paths(folder)
    tokens = {split: sum(npy(path).length for path in paths[split]) for split in SPLITS}
    if min(tokens.values()) < 2:
        shutil.rmtree(folder)
        if split.by == "document":
            raise OctavoError("the documents are copies of one another, so none is left to train on or to validate",
                              "--deduplicate")  # fmt: skip
        raise OctavoError(f"the text has {seen.characters} characters, too few to train on and validate",
                          "a longer text")  # fmt: skip
    identity = f"{seen.sha256} {tokenizer.fingerprint} {settings.val_fraction!r} {settings.deduplicate}"
    return {
        "format": FORMAT,
        "name": corpus.name,
        "source": corpus.source,
        "text": {"sha256": seen.sha256, "bytes": seen.size, "characters": seen.characters,
                 "documents": seen.documents, "left_out": split.sides.count(LEFT_OUT)},
        "tokenizer": maker if isinstance(maker, str) else maker.kind,
        "vocab_size": tokenizer.vocab_size,
        "split": {"by": split.by, "val_fraction": settings.val_fraction},
        "tokens": tokens,
        "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
        "cache_key": _cache_key(seen, maker, settings),
        "shards": {split: [path.name for path in paths[split]] for split in SPLITS},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
                  for path in sorted(folder.iterdir()) if path.name not in _PASSING},
    }  # fmt: skip


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
