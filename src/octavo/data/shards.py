"""Token files read as one sequence of ids: `train-00000.npy`, `train-00001.npy` and so on.

The number of files makes no difference to the reader. Ids are read, not memory-mapped: pages that were read through a
mapping count as memory of the process until it is closed, and a random access through a mapping reads 128 KB from the
disk, whereas a read of a sequence reads the sequence. Files stay open between reads, the most recently used ones.

Axis letters: `B` sequences, `T` ids in a sequence.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files
from octavo.errors import OctavoError

_BLOCK = 1 << 22  # ids
_OPEN_FILES = 128  # macOS lets a process open 256


@dataclass(frozen=True)
class Shard:
    """A file of ids: `length` of them, after `offset` bytes of header."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    length: int


def open_npy(path: Path) -> Shard:
    """Open a `.npy` file of ids. Nothing is unpickled. Raises `OctavoError` if it is truncated or of another kind."""
    try:
        ids = np.lib.format.open_memmap(path, mode="r")  # not np.load, which opens zip archives and pickles too
    except Exception as error:  # NumPy parses the header as Python; a damaged one can raise nearly any exception
        raise OctavoError(f"{path} is not a token file: {error}", "prepare the text again") from None
    if ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        raise OctavoError(f"{path} is not a token file: {ids.ndim} axes of {ids.dtype}", "prepare the text again")
    return Shard(path, ids.dtype, ids.offset, len(ids))


def write_npy(path: Path, ids: np.ndarray) -> None:
    """Write ids (T,) to a `.npy` file, atomically."""
    with files.atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ids))
        file.write(np.ascontiguousarray(ids).data)


class Shards:
    """Several token files, read as one sequence of ids. Threads may read at the same time."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._ends = np.cumsum([shard.length for shard in self.shards], dtype=np.int64)
        self._files = _OpenFiles(self.shards)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """A slice of the ids, in the dtype of the files. The step must be 1."""
        start, stop, step = part.indices(len(self))
        assert step == 1
        parts = [np.empty(0, self.shards[0].dtype)]
        number = int(np.searchsorted(self._ends, start, side="right"))
        while start < stop:
            end = int(self._ends[number])
            shard_start = end - self.shards[number].length
            parts.append(self._files.read(number, start - shard_start, min(stop, end) - start))
            start, number = end, number + 1
        return np.concatenate(parts)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.shards[0].dtype)

    def __iter__(self) -> Iterator[int]:
        for block in self.blocks():
            yield from block.tolist()

    def blocks(self, size: int = _BLOCK) -> Iterator[np.ndarray]:
        """Yield all ids in order, in arrays of `size`."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def max(self) -> int:
        """The largest id, or 0 if the files are empty. Reads all ids."""
        return max((int(block.max()) for block in self.blocks()), default=0)

    def sequences(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The `length` = T ids that begin at each of `starts` (B,), int64 (B, T)."""
        out = np.empty((len(starts), length), dtype=np.int64)
        numbers = np.searchsorted(self._ends, starts, side="right")
        for row in np.argsort(starts).tolist():  # sorted, so that each file is opened at most once
            start, number = int(starts[row]), int(numbers[row])
            end = int(self._ends[number])
            if start + length <= end:
                out[row] = self._files.read(number, start - (end - self.shards[number].length), length)
            else:  # in several files
                out[row] = self[start : start + length]
        return out


class _OpenFiles:
    """Reads shards by their number, and keeps the files that were read last open."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._descriptors: OrderedDict[int, int] = OrderedDict()  # that of the shard that was read last is last
        self._lock = threading.Lock()  # a descriptor has one position

    def read(self, number: int, start: int, count: int) -> np.ndarray:
        """`count` ids of a shard, from `start` on. Raises `OctavoError` if the file is gone or shorter."""
        shard = self._shards[number]
        size, content = count * shard.dtype.itemsize, b""
        try:
            with self._lock:
                descriptor = self._open(number)
                os.lseek(descriptor, shard.offset + start * shard.dtype.itemsize, os.SEEK_SET)
                while len(content) < size:
                    block = os.read(descriptor, size - len(content))
                    if not block:
                        raise OSError("it is shorter than it was")
                    content += block
        except OSError as error:
            message = f"{shard.path} was removed or changed while it was in use: {error}"
            raise OctavoError(message, "prepare the text again") from None
        return np.frombuffer(content, shard.dtype)

    def _open(self, number: int) -> int:
        if number not in self._descriptors:
            while len(self._descriptors) >= _OPEN_FILES:
                os.close(self._descriptors.popitem(last=False)[1])
            self._descriptors[number] = os.open(self._shards[number].path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._descriptors.move_to_end(number)
        return self._descriptors[number]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # when Python exits, `os` may be gone before
        for descriptor in self._descriptors.values():
            close(descriptor)
