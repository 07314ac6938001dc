"""Build a prepared dataset: train the tokenizer if necessary, write the shards, describe them in `dataset.json`.

All files are written to a staging folder next to the final one, `.NAME.preparing`, which is renamed when it is
complete. After an interruption, the next build uses the tokenizer and the finished shards in the staging folder.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo import files, tokenizers
from octavo.data.cache import cache_key, dataset_fingerprint
from octavo.data.dataset import FORMAT, SPLITS, Dataset, checksum, open_dataset
from octavo.data.limits import Limits
from octavo.data.scan import CorpusScan
from octavo.data.shard_writer import RECORDS, ShardRecord, write_shards
from octavo.data.sources import Corpus
from octavo.data.split import LEFT_OUT, Split, choose_split, split_chunks
from octavo.errors import OctavoError, SourceChangedError, UnknownCharactersError
from octavo.progress import PreparationProgress
from octavo.settings import DataSettings
from octavo.tokenizers import END_OF_TEXT, Tokenizer

# Training a tokenizer on a text of this many characters takes long, so an interrupted build keeps the tokenizer.
_LARGE_TEXT = 1 << 24
_TEMPORARY = ("plan.json", RECORDS)  # files that only the staging folder has


@dataclass(frozen=True)
class BuildInputs:
    """What a dataset is built from. `tokenizer` is None if the one that `settings.tokenizer` specifies is trained."""

    corpus: Corpus
    scan: CorpusScan
    settings: DataSettings  # in which `tokenizer` is not `auto`
    tokenizer: Tokenizer | None
    limits: Limits

    @property
    def key(self) -> str:
        """The dataset's `cache_key`."""
        return cache_key(self.scan, self.settings, self.tokenizer)


def build_dataset(inputs: BuildInputs, out: Path) -> Generator[PreparationProgress, None, Dataset]:
    """Tokenize a corpus into the folder `out`, which appears atomically.

    Raises `OctavoError` if a split would be nearly empty, the disk is full, the source changed since it was scanned, or
    the text has characters that the tokenizer does not have.
    """
    corpus, scan, settings, limits = inputs.corpus, inputs.scan, inputs.settings, inputs.limits
    staging = out.with_name(f".{out.name}.preparing")
    try:
        tokenizer = yield from _open_staging(staging, inputs)
        uses_end_of_text = scan.uses_end_of_text(tokenizer)
        split = choose_split(scan, settings.val_fraction, settings.deduplicate, insert_newlines=not uses_end_of_text)
        with contextlib.closing(split_chunks(corpus, scan, split, insert_newlines=not uses_end_of_text)) as chunks:
            shards = yield from write_shards(
                staging, chunks, tokenizer, uses_end_of_text, scan.characters, limits, settings.special_tokens
            )
        tokens = {name: sum(shard.length for shard in shards[name]) for name in SPLITS}
        if min(tokens.values()) < 2:
            shutil.rmtree(staging)  # the same build would fail again, so its shards are of no use
            raise split_error(scan, split, tokens)
        info = describe(staging, inputs, tokenizer, split, shards, tokens)
        info["checksum"] = checksum(info)
        with files.translate_disk_errors(out):
            (staging / "dataset.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            for name in _TEMPORARY:
                (staging / name).unlink(missing_ok=True)
            files.commit_folder(staging, out)
    except SourceChangedError:
        shutil.rmtree(staging, ignore_errors=True)  # its shards may have text from before and after the change
        raise
    except UnknownCharactersError as error:
        message = f"{corpus.name}: {error.message}"
        raise UnknownCharactersError(message, "a text without them, or a model trained with --tokenizer byte") from None
    finally:
        has_shards = any(staging.glob("*.npy"))
        # plan.json is written after the tokenizer: if it exists, the tokenizer is complete.
        has_expensive_tokenizer = scan.characters >= _LARGE_TEXT and (staging / "plan.json").exists()
        if staging.exists() and not has_shards and not has_expensive_tokenizer:
            shutil.rmtree(staging)  # nothing in it would make the next build faster
    return open_dataset(out, verify=True)


def _open_staging(staging: Path, inputs: BuildInputs) -> Generator[PreparationProgress, None, Tokenizer]:
    """Open the staging folder of an interrupted build with the same plan, or create one. Returns its tokenizer."""
    plan = json.dumps({"key": inputs.key, "shard_characters": inputs.limits.shard_characters})
    with contextlib.suppress(OSError, OctavoError):
        if (staging / "plan.json").read_bytes() == plan.encode():
            files.remove_leftovers(staging)
            (staging / "dataset.json").unlink(missing_ok=True)  # perhaps half of it: the disk was full
            return tokenizers.load(staging)
    shutil.rmtree(staging, ignore_errors=True)
    tokenizer = inputs.tokenizer or (yield from train_tokenizer(inputs))
    tokenizer = tokenizers.choose_start(tokenizer, inputs.scan.shows_end_of_text(inputs.settings))
    with files.translate_disk_errors(staging):
        files.make_folder(staging)
        tokenizer.save(staging)
        files.write_atomic(staging / "plan.json", plan)
    return tokenizer


def train_tokenizer(inputs: BuildInputs) -> Generator[PreparationProgress, None, Tokenizer]:
    """Train a tokenizer on a corpus, or on chunks taken evenly from all of it if it is large."""
    settings, characters = inputs.settings, inputs.scan.characters
    if settings.tokenizer == "char":
        return tokenizers.build("char", inputs.scan.alphabet)
    stage, start = "training the tokenizer", time.perf_counter()
    characters_read, is_stopped = 0, False

    def sample() -> Iterator[str]:
        nonlocal characters_read
        limit = inputs.limits.tokenizer_characters
        characters_taken = 0
        for text, *_ in inputs.corpus.chunks():
            if is_stopped:  # ends the thread
                raise InterruptedError
            characters_read += len(text)
            # taken / read <= limit / length of the corpus, multiplied out to integers
            if characters <= limit or characters_taken * characters <= characters_read * limit:
                characters_taken += len(text)
                yield from text.split(END_OF_TEXT) if settings.special_tokens else [text]

    # The library reports no progress: a thread trains, and this one counts the characters that it has taken.
    with ThreadPoolExecutor(1) as thread:
        tokenizer = thread.submit(tokenizers.build, settings.tokenizer, sample())
        try:
            while True:
                # After all text is read, the progress of the training is unknown.
                done, total = (characters_read, characters) if characters_read < characters else (0, None)
                yield PreparationProgress(stage, done, total, time.perf_counter() - start)
                with contextlib.suppress(TimeoutError):
                    return tokenizer.result(timeout=inputs.limits.progress_seconds or 0.1)
        finally:
            is_stopped = True


class EmptySplitError(OctavoError):
    """The training or the validation split has fewer than two tokens."""


def split_error(scan: CorpusScan, split: Split, tokens: dict[str, int]) -> EmptySplitError:
    """The error for a split with fewer than two tokens, which says why it has so few."""
    if split.by == "document" and len(set(split.document_splits) - {LEFT_OUT}) == 1:
        # Copies of a document are all in the same split.
        return EmptySplitError(
            "all documents are copies of one another, so training and validation text cannot be separated",
            "--deduplicate, which keeps one of them and uses its end for validation",
        )
    split_name = min(tokens, key=lambda name: tokens[name])
    return EmptySplitError(
        f"the text has {scan.characters} characters, too few for a training and a validation split: the {split_name} "
        f"split has {tokens[split_name]} tokens, and needs 2",
        "a longer text, or another --val-fraction",
    )


def describe(
    staging: Path,
    inputs: BuildInputs,
    tokenizer: Tokenizer,
    split: Split,
    shards: dict[str, list[ShardRecord]],
    tokens: dict[str, int],
) -> dict[str, Any]:
    """The contents of `dataset.json`."""
    corpus, scan, settings = inputs.corpus, inputs.scan, inputs.settings
    hashes = {shard.name: shard.sha256 for name in SPLITS for shard in shards[name]}
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashes.get(path.name) or files.sha256(path)}
        for path in sorted(staging.iterdir())
        if path.name not in _TEMPORARY
    }
    return {
        "format": FORMAT,
        "name": corpus.name,
        "source": corpus.recorded_source,
        "text": {
            "sha256": scan.sha256,
            "bytes": scan.bytes,
            "characters": scan.characters,
            "documents": scan.documents,
            "left_out": split.document_splits.count(LEFT_OUT),
        },
        "tokenizer": settings.tokenizer,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": settings.special_tokens,
        "split": {"by": split.by, "val_fraction": settings.val_fraction},
        "tokens": tokens,
        "fingerprint": dataset_fingerprint(scan, settings, tokenizer),
        "cache_key": inputs.key,
        "shards": {name: [shard.name for shard in shards[name]] for name in SPLITS},
        "files": entries,
    }
