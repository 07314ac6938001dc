"""Recognize files that were read before and have not changed since, by size and modification time."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from octavo import files, schema
from octavo.data.shards import Shard, Shards
from octavo.errors import OctavoError
from octavo.schema import Count

FileState = tuple[int, int]  # bytes, modification time in nanoseconds

_RACY_NS = 2_000_000_000  # the coarsest resolution of modification times: FAT's


def file_state(path: str | Path) -> FileState | None:
    """The state by which a file can be recognized later.

    None if it was modified within the last two seconds. It could change again without a change of its size or
    modification time; git's index has the same rule for its "racily clean" entries.
    """
    status = os.stat(path)
    if status.st_mtime_ns > time.time_ns() - _RACY_NS:
        return None
    return status.st_size, status.st_mtime_ns


class _Properties(msgspec.Struct, omit_defaults=True):
    """The recorded properties of a file."""

    state: list[Count]  # the result of `file_state`
    sha256: str | None = None
    largest_id: Count | None = None


class FileProperties:
    """The sha256 and the largest id of each file in a folder. Files that have not changed are not read again.

    The record of a folder is in the cache, under a hash of the folder's path. So the folder may be read-only, and a
    copy of the folder has a separate record. With `reread`, every file is read.
    """

    def __init__(self, folder: Path, reread: bool = False) -> None:
        key = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:24]
        self._folder, self._record = folder, files.cache_dir() / "verified" / f"{key}.json"
        self._entries: dict[str, dict[str, Any]] = {} if reread else self._load()
        self._is_saved = True

    def sha256(self, name: str) -> str:
        """The sha256 of a file. Raises `OSError` if it cannot be read."""
        return str(self._get(name, "sha256", lambda: files.sha256(self._folder / name)))

    def largest_id(self, shard: Shard) -> int:
        """The largest id in a token file."""
        return int(self._get(shard.path.name, "largest_id", Shards([shard]).max))

    def _get(self, name: str, key: str, compute: Callable[[], Any]) -> Any:
        """The recorded property `key` of a file if the file has not changed since, otherwise a newly computed one.

        A computed property is recorded, unless the file was modified too recently to recognize its next change.
        """
        state = file_state(self._folder / name)
        if state is None:
            self._entries.pop(name, None)
            return compute()
        entry = self._entries.setdefault(name, {})
        if entry.get("state") != list(state):
            entry.clear()
            entry["state"] = list(state)
        if key not in entry:
            entry[key] = compute()
            self._is_saved = False
        return entry[key]

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            entries = schema.read_json(self._record, dict[str, _Properties], hint="")
        except OctavoError:
            return {}
        return {name: msgspec.to_builtins(properties) for name, properties in entries.items()}

    def save(self) -> None:
        """Write the record. If the cache is not writable, the files are read again next time."""
        if self._is_saved:
            return
        try:
            self._record.parent.mkdir(parents=True, exist_ok=True)
            files.write_atomic(self._record, json.dumps(self._entries))
        except (OSError, OctavoError):
            pass
