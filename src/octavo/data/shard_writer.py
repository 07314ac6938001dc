"""Write token shards: encode text in order, on all cores, and write each shard atomically.

The corpus and its split determine the characters of each shard. So an interrupted writer continues at the first missing
shard, and the final files are those of an uninterrupted writer. Memory holds one shard of each split and a few chunks
of text, however large the corpus.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from octavo import files
from octavo.data import encoder_pool, shards
from octavo.data.dataset import SPLITS
from octavo.data.encoder import END, load_functions
from octavo.data.limits import Limits
from octavo.data.split import SplitChunk
from octavo.errors import OctavoError, SourceChangedError
from octavo.progress import PreparationProgress, ProgressMeter
from octavo.tokenizers import Tokenizer
from octavo.units import format_bytes

RECORDS = "written.txt"  # a line for each finished shard: the fields of its `ShardRecord`


class ShardRecord(NamedTuple):
    """A finished shard."""

    name: str
    sha256: str
    length: int  # ids
    text_sha256: str  # of the text that it was encoded from, with `END` after each document


class _TextInfo(NamedTuple):
    """The length of a text to encode, and the shard that its ids go to."""

    split: int
    shard: int
    characters: int
    shard_text_sha256: str | None  # of all text of the shard, if this is the last of it; else None


@dataclass
class _PendingText:
    """Chunks of one split that wait to be encoded, and the shard that they are for."""

    shard: int = 0
    characters_in_shard: int = 0  # in all chunks of this shard so far, waiting or not
    characters: int = 0  # in the chunks that wait
    utf8_chunks: list[bytes] = field(default_factory=list)
    shard_hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)


def write_shards(
    folder: Path,
    chunks: Iterable[SplitChunk],
    tokenizer: Tokenizer,
    uses_end_of_text: bool,
    characters: int,
    limits: Limits,
    special_tokens: bool = False,
) -> Generator[PreparationProgress, None, dict[str, list[ShardRecord]]]:
    """Write the shards of both splits, and return them. `characters` is the length of the corpus.

    With `uses_end_of_text`, `<|endoftext|>` follows each document. With `special_tokens`, the text of a special token
    is that token. Raises `OctavoError` if the disk is full, or, before anything is written, if it has too little space;
    finished shards are kept. Raises `SourceChangedError` if a finished shard has another text: the source changed while
    an interrupted writer read it.
    """
    records = [_find_finished(folder, split_name) for split_name in SPLITS]
    finished_counts = [len(each) for each in records]  # shards that an earlier process wrote
    texts = _collect_texts(chunks, finished_counts, uses_end_of_text, limits)
    cores, functions = encoder_pool.choose_cores(characters, limits), load_functions(tokenizer, characters, limits)
    meter, done = ProgressMeter("writing tokens", characters, limits.progress_seconds), 0
    unfinished_ids: list[list[np.ndarray]] = [[] for _ in SPLITS]  # for each split, the ids of its unfinished shard
    is_space_checked = False
    for info, ids in encoder_pool.encode_texts(tokenizer, texts, cores, special_tokens, functions):
        if info.shard >= finished_counts[info.split]:
            if not is_space_checked:
                # The estimate assumes that the whole corpus has as many ids per character as this text.
                estimated_ids = int(characters * len(ids) / info.characters)
                written_ids = sum(record.length for each in records for record in each)
                check_disk_space(folder, (estimated_ids - written_ids) * ids.itemsize)
                is_space_checked = True
            unfinished_ids[info.split].append(ids)
            if info.shard_text_sha256 is not None:
                records[info.split].append(_write_shard(folder, info, unfinished_ids[info.split]))
        elif info.shard_text_sha256 not in (None, records[info.split][info.shard].text_sha256):
            raise SourceChangedError(
                f"a finished shard in {folder} has another text: the source changed while it was read before",
                "the same command again, which starts from the beginning",
            )
        done += info.characters
        yield from meter.report(done)
    return dict(zip(SPLITS, records, strict=True))


class Position(NamedTuple):
    """Where the text of a split continues: a shard, and how many characters of it come before."""

    shard: int = 0
    characters: int = 0


class PartRecord(NamedTuple):
    """A file with a part of the ids of a shard, or all of them."""

    split: str
    shard: int
    name: str
    sha256: str
    length: int  # ids


def write_parts(
    folder: Path,
    suffix: str,
    chunks: Iterable[SplitChunk],
    tokenizer: Tokenizer,
    uses_end_of_text: bool,
    starts: Sequence[Position],
    characters_left: int,
    limits: Limits,
    special_tokens: bool = False,
) -> Generator[PreparationProgress, None, list[PartRecord]]:
    """Write the ids of a part of a corpus, a file for each shard that has some of them: `train-00003-SUFFIX.npy`.

    `starts` is the position of each split where the part begins. Joined in the order of the parts, the files of a shard
    have the ids that `write_shards` gives it. Encodes in this process: others encode other parts. `characters_left` is
    what this and all other processes have still to write. Raises `OctavoError` if the disk has too little space for it.
    """
    records: list[PartRecord] = []
    unfinished_ids: list[list[np.ndarray]] = [[] for _ in SPLITS]
    texts = _collect_texts(chunks, [start.shard for start in starts], uses_end_of_text, limits, starts)
    meter, done = ProgressMeter("writing tokens", None, limits.progress_seconds), 0
    functions = load_functions(tokenizer, characters_left, limits)
    for info, ids in encoder_pool.encode_texts(tokenizer, texts, 1, special_tokens, functions):
        if not done:
            check_disk_space(folder, int(characters_left * len(ids) / info.characters) * ids.itemsize)
        unfinished_ids[info.split].append(ids)
        if info.shard_text_sha256 is not None:
            split, part = SPLITS[info.split], np.concatenate(unfinished_ids[info.split])
            path = folder / f"{split}-{info.shard:05d}-{suffix}.npy"
            shards.write_npy(path, part)
            records.append(PartRecord(split, info.shard, path.name, files.sha256(path), len(part)))
            unfinished_ids[info.split].clear()
        done += info.characters
        yield from meter.report(done)
    return records


def advance(start: Position, lengths: np.ndarray, shard_characters: int) -> Position:
    """The position after chunks of these lengths (chunks,), all of one split."""
    ends, offset = np.cumsum(lengths) + start.characters, 0
    shard = start.shard
    while (last := int(np.searchsorted(ends, offset + shard_characters))) < len(ends):
        shard, offset = shard + 1, int(ends[last])
    return Position(shard, int(ends[-1]) - offset if len(ends) else start.characters)


def _collect_texts(
    chunks: Iterable[SplitChunk],
    finished_counts: list[int],
    uses_end_of_text: bool,
    limits: Limits,
    starts: Sequence[Position] = (Position(), Position()),
) -> Iterator[tuple[_TextInfo, bytes]]:
    """Join chunks to texts of at least `limits.chunk` characters; only the last text of a shard may be shorter.

    Text that is in a finished shard is counted, but replaced by an empty text, which takes no time to encode.
    """
    pending_texts = [_PendingText(start.shard, start.characters) for start in starts]

    def take(split: int, completes_shard: bool) -> tuple[_TextInfo, bytes]:
        pending = pending_texts[split]
        sha256 = pending.shard_hash.hexdigest() if completes_shard else None
        info = _TextInfo(split, pending.shard, pending.characters, sha256)
        text = b"".join(pending.utf8_chunks)
        pending.utf8_chunks, pending.characters = [], 0
        return info, text

    for chunk in chunks:
        pending = pending_texts[chunk.split]
        pending.characters += len(chunk.text)
        pending.characters_in_shard += len(chunk.text)
        utf8 = chunk.text.encode() + (END if uses_end_of_text and chunk.ends_document else b"")
        pending.shard_hash.update(utf8)
        if pending.shard >= finished_counts[chunk.split]:
            pending.utf8_chunks.append(utf8)
        is_full = pending.characters_in_shard >= limits.shard_characters
        if pending.characters >= limits.chunk or is_full:
            yield take(chunk.split, is_full)
        if is_full:
            pending_texts[chunk.split] = _PendingText(pending.shard + 1)
    for split, (pending, start) in enumerate(zip(pending_texts, starts, strict=True)):
        # Unless the last shard is empty, or has nothing but what came before `start`.
        if (pending.shard, pending.characters_in_shard) not in (start, (pending.shard, 0)):
            yield take(split, True)


def _write_shard(folder: Path, info: _TextInfo, unfinished_ids: list[np.ndarray]) -> ShardRecord:
    """Write a shard and its record. `info` is that of its last text. Empties `unfinished_ids`."""
    path, ids = _shard_path(folder, SPLITS[info.split], info.shard), np.concatenate(unfinished_ids)
    shards.write_npy(path, ids)
    record = ShardRecord(path.name, files.sha256(path), len(ids), str(info.shard_text_sha256))
    with files.translate_disk_errors(path), open(folder / RECORDS, "a", encoding="utf-8") as file:
        file.write(" ".join(map(str, record)) + "\n")
    unfinished_ids.clear()
    return record


def _find_finished(folder: Path, split_name: str) -> list[ShardRecord]:
    """The intact shards of a split before the first missing or damaged one."""
    records = _read_records(folder)
    finished: list[ShardRecord] = []
    while (path := _shard_path(folder, split_name, len(finished))).exists() and path.name in records:
        record = records[path.name]
        if record.sha256 != files.sha256(path):
            break
        finished.append(record)
    return finished


def _read_records(folder: Path) -> dict[str, ShardRecord]:
    """The shards written so far, by file name, up to the first line that is unreadable."""
    records: dict[str, ShardRecord] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
            name, sha256, length, text_sha256 = line.split()
            records[name] = ShardRecord(name, sha256, int(length), text_sha256)
    return records


def _shard_path(folder: Path, split_name: str, number: int) -> Path:
    return folder / f"{split_name}-{number:05d}.npy"


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise `OctavoError` if the disk has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OctavoError(
            f"the tokens need about {format_bytes(needed)}; the disk of {folder.parent} has {format_bytes(free)} free",
            "free some space, or another --out",
        )
