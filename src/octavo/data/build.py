"""Making a prepared folder, and telling how far it is.

A tokenizer is learnt where one must be, and the shards written into a folder beside the one that is wanted,
`.NAME.preparing`, which takes its name when all is there. What is interrupted goes on from there.
"""

import contextlib
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

from octavo import files, tokenizers
from octavo.data import shard_writer
from octavo.data.dataset import FORMAT, SPLITS, Dataset
from octavo.data.scan import LEFT_OUT, ChangedError, CorpusScan, Split, parts, survey
from octavo.data.shards import npy
from octavo.data.sources import Corpus
from octavo.errors import OctavoError
from octavo.settings import DataSettings
from octavo.tokenizers import Tokenizer

_LEARNT_FROM = 100_000_000  # characters, at most, from which a vocabulary is learnt
_TELL_EVERY = 0.2  # seconds
_SAMPLE = 1 << 16  # characters
_LARGE = 1 << 24  # characters from which a vocabulary that was learnt is kept, before there are tokens
_PASSING = ("plan.json", shard_writer.WRITTEN)  # files that are there until all is


@dataclass(frozen=True)
class Preparing:
    """How far a text is prepared: `done` of `total` characters, where those are known, in so many `seconds`."""

    doing: str  # "reading", "learning the tokenizer" or "writing tokens"
    done: int
    total: int | None
    seconds: float


Steps = Generator[Preparing, None, Dataset]
T = TypeVar("T")


def made(corpus: Corpus, seen: CorpusScan, settings: DataSettings, maker: str | Tokenizer, out: Path) -> Steps:
    """Tokenize a corpus, by a tokenizer or what one is built from, and put the folder in its place, whole."""
    folder = out.with_name(f".{out.name}.preparing")
    try:
        tokenizer = yield from _begun(folder, corpus, seen, settings, maker)
        newlines = not seen.has_ends(tokenizer)
        split = seen.split(settings.val_fraction, settings.deduplicate, newlines)
        with contextlib.closing(parts(corpus, seen, split, newlines)) as all_parts:
            counts = shard_writer.write(folder, all_parts, tokenizer, seen, _ratio(corpus, tokenizer))
            yield from told("writing tokens", counts, seen.characters)
        info = _described(folder, corpus, seen, settings, maker, tokenizer, split)
        with files.translate_disk_errors(out):
            (folder / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            for name in _PASSING:
                (folder / name).unlink(missing_ok=True)
            files.commit_folder(folder, out)
    except ChangedError:
        shutil.rmtree(folder)  # what was written may be of either text
        raise
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


def _begun(folder: Path, corpus: Corpus, seen: CorpusScan, settings: DataSettings,
           maker: str | Tokenizer) -> Generator[Preparing, None, Tokenizer]:  # fmt: skip
    """The folder to write into, with the tokenizer in it: from when this was interrupted, or new."""
    plan = json.dumps([cache_key(seen, maker, settings), shard_writer.SHARD])
    with contextlib.suppress(OSError, OctavoError):
        if (folder / "plan.json").read_text(encoding="utf-8") == plan:
            files.remove_leftovers(folder)
            return tokenizers.load(folder)
    shutil.rmtree(folder, ignore_errors=True)
    tokenizer = maker if isinstance(maker, Tokenizer) else (yield from _learnt(corpus, seen, maker))
    with files.translate_disk_errors(folder):
        folder.mkdir(parents=True)
        tokenizer.save(folder)
        files.write_atomic(folder / "plan.json", plan)
    return tokenizer


def _learnt(corpus: Corpus, seen: CorpusScan, spec: str) -> Generator[Preparing, None, Tokenizer]:
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


def _ratio(corpus: Corpus, tokenizer: Tokenizer) -> float:
    """About how many ids a character of this corpus gets, by its beginning."""
    with contextlib.closing(corpus.pieces()) as pieces:
        text = next(pieces).text[:_SAMPLE]
    return len(tokenizer.encode(text)) / len(text)


def _shard_paths(folder: Path) -> dict[str, list[Path]]:
    return {split: sorted(folder.glob(f"{split}-*.npy")) for split in SPLITS}


def _described(folder: Path, corpus: Corpus, seen: CorpusScan, settings: DataSettings, maker: str | Tokenizer,
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
        "cache_key": cache_key(seen, maker, settings),
        "shards": {split: [path.name for path in paths[split]] for split in SPLITS},
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
                  for path in sorted(folder.iterdir()) if path.name not in _PASSING},
    }  # fmt: skip


def surveyed(corpus: Corpus) -> Generator[Preparing, None, CorpusScan]:
    """What a corpus is, telling how far it is read."""
    found: CorpusScan | None = None

    def counts() -> Iterator[int]:
        nonlocal found
        for each in survey(corpus):
            if isinstance(each, CorpusScan):
                found = each
            else:
                yield each

    yield from told("reading", counts(), None)
    assert found is not None
    return found


def told(doing: str, counts: Iterator[int], total: int | None) -> Iterator[Preparing]:
    """Every now and then, how far it is."""
    began = last = time.perf_counter()
    for count in counts:
        now = time.perf_counter()
        if now - last >= _TELL_EVERY:
            last = now
            yield Preparing(doing, count, total, now - began)


def result(steps: Generator[Preparing, None, T]) -> T:
    """What comes of steps, with nobody told how far they are."""
    while True:
        try:
            next(steps)
        except StopIteration as done:
            return cast(T, done.value)


def cache_key(seen: CorpusScan, maker: str | Tokenizer, settings: DataSettings) -> str:
    """The name that the cache knows a prepared text by."""
    made_by = maker if isinstance(maker, str) else maker.fingerprint
    identity = f"{FORMAT} {seen.sha256} {made_by} {settings.val_fraction!r} {settings.deduplicate}"
    return hashlib.sha256(identity.encode()).hexdigest()[:24]


def locked(out: Path, wait: bool) -> Generator[Preparing, None, filelock.BaseFileLock]:
    """The lock of a folder that is to be written. Its file stays: a lock whose file goes can be held twice."""
    name = hashlib.sha256(os.fsencode(out)).hexdigest()[:24]
    path = files.cache_dir() / "locks" / name
    with files.translate_disk_errors(path):
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
