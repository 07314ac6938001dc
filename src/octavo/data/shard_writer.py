"""Write token shards: encode text in order, on all cores, and write each shard atomically.

The corpus and its split determine the characters of each shard. So an interrupted writer continues at the first missing
shard, and the final files are those of an uninterrupted writer. Memory holds one shard of each split and a few chunks
of text, however large the corpus.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from octavo import files
from octavo.data import encoder_pool, shards
from octavo.data.dataset import SPLITS
from octavo.data.encoder import END, id_dtype
from octavo.data.limits import Limits
from octavo.data.scan import CorpusScan
from octavo.data.split import SplitChunk
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer
from octavo.units import format_bytes

RECORDS = "written.txt"  # a line for each finished shard: name and sha256


class _TextInfo(NamedTuple):
    """How long a text to encode is, and the shard that its ids go to."""

    split: int
    shard: int
    characters: int
    completes_shard: bool


@dataclass
class _PendingText:
    """Chunks of one split that wait to be encoded, and the shard that they are for."""

    shard: int = 0
    shard_characters: int = 0  # in all chunks of this shard so far, waiting or not
    characters: int = 0  # in the chunks that wait
    parts: list[bytes] = field(default_factory=list)


def shard_path(folder: Path, split: str, number: int) -> Path:
    return folder / f"{split}-{number:05d}.npy"


def read_records(folder: Path) -> dict[str, str]:
    """The sha256 of each shard written so far, by file name. Empty if the records are unreadable."""
    records: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (folder / RECORDS).read_text(encoding="utf-8").splitlines():
            name, sha256 = line.split()
            records[name] = sha256
    return records


def write_shards(
    folder: Path,
    chunks: Iterable[SplitChunk],
    tokenizer: Tokenizer,
    scan: CorpusScan,
    ids_per_character: float,
    limits: Limits,
) -> Iterator[int]:
    """Write the shards of both splits. Yields the number of characters encoded so far.

    `<|endoftext|>` follows each document, if there are several and the tokenizer has that token. Raises `OctavoError`
    if the disk is full, or, before anything is written, if it has too little space; finished shards are kept.
    """
    finished = [_count_finished(folder, split) for split in SPLITS]
    _check_disk_space(folder, finished, int(scan.characters * ids_per_character), tokenizer)
    texts = _collect_texts(chunks, finished, scan.uses_end_of_text(tokenizer), limits)
    processes = encoder_pool.choose_process_count(scan.characters, limits)
    parts: list[list[np.ndarray]] = [[] for _ in SPLITS]  # for each split, the ids of its unfinished shard
    numbers = [0 for _ in SPLITS]  # and the number of that shard
    done = 0
    for info, ids in encoder_pool.encode_texts(tokenizer, texts, processes):
        numbers[info.split] = info.shard
        parts[info.split].append(ids)
        if info.completes_shard:
            _finish_shard(folder, info.split, info.shard, parts[info.split], finished)
        done += info.characters
        yield done
    for split, number in enumerate(numbers):
        _finish_shard(folder, split, number, parts[split], finished)


def _collect_texts(
    chunks: Iterable[SplitChunk], finished: list[int], uses_end_of_text: bool, limits: Limits
) -> Iterator[tuple[_TextInfo, bytes]]:
    """Join chunks to texts of at least `limits.chunk` characters; only the last text of a shard may be shorter.

    Text that is in a finished shard is counted, but replaced by an empty text, which takes no time to encode.
    """
    pending_texts = [_PendingText() for _ in SPLITS]

    def take(split: int, completes_shard: bool) -> tuple[_TextInfo, bytes]:
        pending = pending_texts[split]
        info = _TextInfo(split, pending.shard, pending.characters, completes_shard)
        text = b"".join(pending.parts)
        pending.parts, pending.characters = [], 0
        return info, text

    for chunk in chunks:
        pending = pending_texts[chunk.split]
        pending.characters += len(chunk.text)
        pending.shard_characters += len(chunk.text)
        if pending.shard >= finished[chunk.split]:
            pending.parts.append(chunk.text.encode() + (END if uses_end_of_text and chunk.ends_document else b""))
        is_full = pending.shard_characters >= limits.shard
        if pending.characters >= limits.chunk or is_full:
            yield take(chunk.split, is_full)
        if is_full:
            pending.shard, pending.shard_characters = pending.shard + 1, 0
    for split, pending in enumerate(pending_texts):
        if pending.characters:
            yield take(split, False)


def _finish_shard(folder: Path, split: int, number: int, parts: list[np.ndarray], finished: list[int]) -> None:
    """Write a shard and its record, unless it was finished by an earlier process. Empties `parts`."""
    if parts and number >= finished[split]:
        path, ids = shard_path(folder, SPLITS[split], number), np.concatenate(parts)
        shards.write_npy(path, ids)
        with files.translate_disk_errors(path), open(folder / RECORDS, "a", encoding="utf-8") as file:
            file.write(f"{path.name} {files.sha256(path)}\n")
    parts.clear()


def _count_finished(folder: Path, split: str) -> int:
    """The number of intact shards of a split before the first missing or damaged one."""
    records = read_records(folder)
    number = 0
    while (path := shard_path(folder, split, number)).exists() and path.name in records:
        if records[path.name] != files.sha256(path):
            break
        number += 1
    return number


def _check_disk_space(folder: Path, finished: list[int], ids: int, tokenizer: Tokenizer) -> None:
    """Raise `OctavoError` if the ids will not fit on the disk."""
    written = sum(
        shard_path(folder, split, number).stat().st_size
        for split, count in zip(SPLITS, finished, strict=True)
        for number in range(count)
    )
    needed = ids * id_dtype(tokenizer).itemsize - written
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OctavoError(
            f"the tokens need about {format_bytes(needed)}; the disk of {folder.parent} has {format_bytes(free)} free",
            "free some space, or another --out",
        )
