"""Read the log of file_calls.c."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_HEADER = struct.Struct("<cIIQQ")  # `struct record`
NAMES = {
    "c": "open to overwrite",
    "o": "open to create or append",
    "p": "open to change",
    "w": "write",
    "t": "truncate",
    "s": "fsync",
    "r": "rename",
    "l": "link",
    "u": "unlink",
    "d": "mkdir",
    "x": "rmdir",
    "m": "chmod",
}


class Call(NamedTuple):
    """A write-side system call that succeeded. `to` is the new path of a rename or link."""

    kind: str  # a key of `NAMES`
    path: Path
    to: Path
    offset: int  # where a write starts; the new length after a truncation
    data: bytes  # of a write

    def __str__(self) -> str:
        return f"{NAMES[self.kind]} {self.to if self.kind == 'r' else self.path}"


def read_log(path: Path) -> list[Call]:
    """All calls in a log, in order."""
    return list(_calls(path.read_bytes()))


def _calls(log: bytes) -> Iterator[Call]:
    position = 0

    def take(length: int) -> bytes:
        nonlocal position
        position += length
        return log[position - length : position]

    while position < len(log):
        kind, path_length, to_length, offset, data_length = _HEADER.unpack(take(_HEADER.size))
        path, to = Path(take(path_length).decode()), Path(take(to_length).decode())
        yield Call(kind.decode(), path, to, offset, take(data_length))
