"""Writing token shards: read in order, encoded on all cores, each file there whole or not at all.

Which characters a shard holds follows from the corpus alone, so what was interrupted goes on at the first shard that is
missing, and what is there in the end is what an uninterrupted writer would have left. Memory holds the shards that are
being filled and a few pieces under way, however large the corpus.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from octavo import files
from octavo.data import encoding, shards
from octavo.data.dataset import SPLITS
from octavo.data.readers import PIECE
from octavo.data.scan import CorpusScan, Part
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer
from octavo.units import format_bytes

WRITTEN = "written.txt"  # the sha256 of each shard, while others are still to come
SHARD = 1 << 25  # characters of text in a shard; so of ids, 16 to 64 MB


@dataclass
class _Side:
    """A split being written: the shard under way, and what waits to be encoded for it."""

    found: int  # shards that were there before
    shard: int = 0
    filled: int = 0  # characters of it so far
    waiting: list[bytes] = field(default_factory=list)
    length: int = 0  # characters that wait


def path(folder: Path, split: str, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"{split}-{number:05d}.npy"


def found(folder: Path, split: str) -> int:
    """How many shards of a split stand as they were written, from the first on."""
    written = {}
    with contextlib.suppress(OSError, ValueError):
        written = dict(line.split() for line in (folder / WRITTEN).read_text(encoding="utf-8").splitlines())
    number = 0
    while (shard := path(folder, split, number)).exists() and written.get(shard.name) == files.sha256(shard):
        number += 1
    return number


def write(folder: Path, parts: Iterable[Part], tokenizer: Tokenizer, survey: CorpusScan, ratio: float) -> Iterator[int]:
    """Write the shards of both splits; yields how many characters have been encoded so far.

    Where documents end, `<|endoftext|>` stands, if there are several and the tokenizer has it. Raises `OctavoError`
    where the disk is full, or has too little room from the start: what was finished stays. `ratio` is about how many
    ids a character gets.
    """
    marks = survey.has_ends(tokenizer)
    sides = [_Side(found(folder, split)) for split in SPLITS]
    _check_room(folder, survey, tokenizer, sides, ratio)
    order: list[tuple[int, int, int]] = []  # of what was given to be encoded: its side, its shard, its characters
    filling: dict[int, tuple[int, list[np.ndarray]]] = {}
    done = 0

    def pieces() -> Iterator[bytes]:
        for side, text, ends, _ in parts:
            to = sides[side]
            to.filled += len(text)
            to.length += len(text)
            if to.shard >= to.found:
                to.waiting.append(text.encode() + (encoding.END if marks and ends else b""))
            full = to.filled >= SHARD
            if to.length >= PIECE or full:
                yield from given(side)
            if full:
                to.shard, to.filled = to.shard + 1, 0
        for side in range(len(sides)):
            yield from given(side)

    def given(side: int) -> Iterator[bytes]:
        nonlocal done
        to = sides[side]
        if to.waiting:
            order.append((side, to.shard, to.length))
            yield b"".join(to.waiting)
        else:
            done += to.length
        to.waiting, to.length = [], 0

    def finished(side: int) -> None:
        number, ids = filling.pop(side)
        shard = path(folder, SPLITS[side], number)
        shards.write(shard, np.concatenate(ids))
        with files.translate_disk_errors(shard), open(folder / WRITTEN, "a", encoding="utf-8") as file:
            file.write(f"{shard.name} {files.sha256(shard)}\n")

    for ids in encoding.encoded(tokenizer, pieces(), survey.characters):
        side, shard, length = order.pop(0)
        if side in filling and filling[side][0] != shard:
            finished(side)
        filling.setdefault(side, (shard, []))[1].append(ids)
        done += length
        yield done
    for side in sorted(filling):
        finished(side)


def _check_room(folder: Path, survey: CorpusScan, tokenizer: Tokenizer, sides: list[_Side], ratio: float) -> None:
    """Raise `OctavoError` where the ids will not fit onto the disk."""
    size = 2 if tokenizer.vocab_size <= 1 << 16 else 4
    there = sum(path(folder, split, i).stat().st_size
                for split, side in zip(SPLITS, sides, strict=True) for i in range(side.found))  # fmt: skip
    needed = int(survey.characters * ratio * size) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OctavoError(f"the tokens need about {format_bytes(needed)}, and the disk of {folder.parent} has "
                          f"{format_bytes(free)} free", "free some space, or another --out")  # fmt: skip
