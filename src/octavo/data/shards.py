"""Token files as one long row of ids: `train-00000.npy`, `train-00001.npy` and so on.

Whoever reads sees one row; into how many files it was cut makes no difference. Files are mapped when they are asked,
each time anew: pages that were read through a mapping stay resident until it goes.

The axis letters: `B` windows, `T` ids in a window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from octavo import files
from octavo.errors import OctavoError

_AT_ONCE = 1 << 22  # ids


@dataclass(frozen=True)
class Shard:
    """One file of ids: from `offset` bytes on, `length` of them."""

    path: Path
    dtype: np.dtype[Any]
    offset: int
    length: int

    def mapped(self) -> np.ndarray:
        """The ids, read where they are touched."""
        return np.memmap(self.path, self.dtype, "r", self.offset, (self.length,))


def npy(path: Path) -> Shard:
    """A `.npy` file of ids. Raises `OctavoError` where it is something else, or cut short; nothing is unpickled."""
    try:
        ids = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise OctavoError(f"{path} is no token file: {error}", "prepare the text again") from None
    if not isinstance(ids, np.memmap) or ids.ndim != 1 or ids.dtype not in (np.uint16, np.uint32):
        raise OctavoError(f"{path} is no token file: {ids.ndim} axes of {ids.dtype}", "prepare the text again")
    return Shard(path, ids.dtype, ids.offset, len(ids))


def write(path: Path, ids: np.ndarray) -> None:
    """Write ids (T,) as a `.npy` file that is there whole, or not at all."""
    with files.atomic_file(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(ids))
        file.write(np.ascontiguousarray(ids).data)


class Shards:
    """Files of ids, one after another, as one row."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self._ends = np.cumsum([shard.length for shard in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.shards else 0

    def __getitem__(self, part: slice) -> np.ndarray:
        """The ids of a stretch, as they lie in the files."""
        start, stop, step = part.indices(len(self))
        assert step == 1
        found = [np.empty(0, self.shards[0].dtype)]
        for shard, end in zip(self.shards, self._ends.tolist(), strict=True):
            begin = end - shard.length
            if start < end and stop > begin:
                found.append(shard.mapped()[max(0, start - begin) : stop - begin])
        return np.concatenate(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.shards[0].dtype)

    def __iter__(self) -> Iterator[int]:
        for piece in self.pieces():
            yield from piece.tolist()

    def pieces(self, size: int = _AT_ONCE) -> Iterator[np.ndarray]:
        """All ids in order, some at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def max(self) -> int:
        """The largest id."""
        return max((int(piece.max()) for piece in self.pieces()), default=0)

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The ids from each of the starts (B,) on, int64 (B, T)."""
        out = np.empty((len(starts), length), dtype=np.int64)
        first = np.searchsorted(self._ends, starts, side="right")
        last = np.searchsorted(self._ends, starts + length - 1, side="right")
        for number in np.unique(first[first == last]):
            rows = (first == number) & (last == number)
            shard = self.shards[number]
            within = starts[rows] - (self._ends[number] - shard.length)
            out[rows] = shard.mapped()[within[:, None] + np.arange(length)]
        for row in np.flatnonzero(first != last):
            out[row] = self[int(starts[row]) : int(starts[row]) + length]
        return out
