"""Token files read as one sequence of ids: `train-00000.npy`, `train-00001.npy` and so on.

The number of files makes no difference to the reader. Each access memory-maps the files again, because pages that were
read through a mapping stay resident until it is closed.

Axis letters: `B` sequences, `T` ids in a sequence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files
from octavo.errors import OctavoError

_BLOCK = 1 << 22  # ids


@dataclass(frozen=True)
class Shard:
    """A file of ids: `length` of them, after `offset` bytes of header."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    length: int

    def memory_map(self) -> np.ndarray:
        """The ids (T,), read from disk when they are accessed. Raises `OctavoError` if the file is gone or shorter."""
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, (self.length,))
        except (OSError, ValueError) as error:
            message = f"{self.path} was removed or changed while it was in use: {error}"
            raise OctavoError(message, "prepare the text again") from None


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
    """Several token files, read as one sequence of ids."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._ends = np.cumsum([shard.length for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """A slice of the ids, in the dtype of the files. The step must be 1."""
        start, stop, step = part.indices(len(self))
        assert step == 1
        parts = [np.empty(0, self.shards[0].dtype)]
        for shard, shard_end in zip(self.shards, self._ends.tolist(), strict=True):
            shard_start = shard_end - shard.length
            if start < shard_end and stop > shard_start:
                parts.append(shard.memory_map()[max(0, start - shard_start) : stop - shard_start])
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
        first_shard = np.searchsorted(self._ends, starts, side="right")
        last_shard = np.searchsorted(self._ends, starts + length - 1, side="right")
        for number in np.unique(first_shard[first_shard == last_shard]):
            rows = (first_shard == number) & (last_shard == number)
            shard = self.shards[number]
            offsets = starts[rows] - (self._ends[number] - shard.length)
            out[rows] = shard.memory_map()[offsets[:, None] + np.arange(length)]
        for row in np.flatnonzero(first_shard != last_shard):
            out[row] = self[int(starts[row]) : int(starts[row]) + length]
        return out
