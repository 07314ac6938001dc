"""Simulate a power loss after each write-side system call of a log.

A file system keeps what was flushed by fsync: the content of a file at its last fsync, the names in a folder at the
folder's last fsync. Of everything later it may keep any part. `Disk` replays a log and builds the folder that a power
loss would leave now, in one of the ways of `MODELS`.

The library safetensors writes a file .tmpXXXXXX and renames it by a direct system call, not through libc, so the
rename is not in the log. `Disk` infers it: Octavo then sets the mode of the final name.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from reliability.call_log import Call

Content = dict[str, bytes | None]  # relative paths, and the bytes of a file, or None for a folder


class _File:
    def __init__(self, content: bytes = b"") -> None:
        self.content, self.flushed = content, content

    @property
    def zeros(self) -> bytes:
        """What is flushed, and zeros where the size was written, but not the rest of the content."""
        return self.flushed + bytes(max(0, len(self.content) - len(self.flushed)))


class _Folder:
    def __init__(self) -> None:
        # The names of the folder now, last, and as they were after each change since its last fsync.
        self.versions: list[dict[str, _File | _Folder]] = [{}]

    @property
    def entries(self) -> dict[str, "_File | _Folder"]:
        return self.versions[-1]

    def change(self, **entries: "_File | _Folder | None") -> None:
        changed = self.entries | entries
        self.versions.append({name: entry for name, entry in changed.items() if entry is not None})  # type: ignore[misc]

    def flush(self) -> None:
        self.versions = self.versions[-1:]


class Disk:
    """The files below `folder`, as they were before the first call of a log, and then as changed by `replay`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._root = _Folder()
        self._unnamed: str | None = None  # the temporary file of safetensors
        for path, data in read_content(folder).items():
            parent, name = self._locate(folder / path)
            parent.change(**{name: _Folder() if data is None else _File(data)})
            parent.flush()

    def replay(self, call: Call) -> None:
        """Apply a call of the log."""
        if call.path == self.folder:
            assert call.kind == "s"
            self._root.flush()
            return
        parent, name = self._locate(call.path)
        entry = parent.entries.get(name)
        match call.kind:
            case "p":
                pass
            case "m":
                if self._unnamed is not None:
                    parent.change(**{self._unnamed: None, name: parent.entries[self._unnamed]})
                    self._unnamed = None
            case "s":
                if isinstance(entry, _Folder):
                    entry.flush()
                elif entry is not None:
                    entry.flushed = entry.content
            case "w" | "t":
                if entry is None:  # removed while it was open
                    return
                assert isinstance(entry, _File)
                before = entry.content[: call.offset].ljust(call.offset, b"\0")
                after = entry.content[call.offset + len(call.data) :] if call.kind == "w" else b""
                entry.content = before + call.data + after
            case "c" | "o":
                if entry is None:
                    parent.change(**{name: _File()})
                    self._unnamed = name if name.startswith(".tmp") else self._unnamed
                elif call.kind == "c":
                    assert isinstance(entry, _File)
                    entry.content = b""
            case "d":
                parent.change(**{name: _Folder()})
            case "u" | "x":
                parent.change(**{name: None})
            case "r":
                new_parent, new_name = self._locate(call.to)
                assert new_parent is parent, "a rename between folders could be half done after a power loss"
                assert entry is not None
                parent.change(**{name: None, new_name: entry})
            case _:
                raise NotImplementedError(f"{call}")

    def content_after_power_loss(self, model: str, generator: random.Random) -> Content:
        """The files and folders that a power loss would leave now, see `MODELS`."""
        choose_names, choose_content = MODELS[model]

        def walk(folder: _Folder, prefix: str) -> Iterator[tuple[str, bytes | None]]:
            for name, entry in choose_names(folder, generator).items():
                if isinstance(entry, _Folder):
                    yield prefix + name, None
                    yield from walk(entry, f"{prefix}{name}/")
                else:
                    yield prefix + name, choose_content(entry, generator)

        return dict(walk(self._root, ""))

    def _locate(self, path: Path) -> tuple[_Folder, str]:
        """The folder that `path` is in, and its name there."""
        folder = self._root
        *parents, name = path.relative_to(self.folder).parts
        for parent in parents:
            entry = folder.entries[parent]
            assert isinstance(entry, _Folder)
            folder = entry
        return folder, name


def _any_version(folder: _Folder, generator: random.Random) -> dict[str, _File | _Folder]:
    return generator.choice(folder.versions)


def _any_content(file: _File, generator: random.Random) -> bytes:
    if file.content == file.flushed:
        return file.content
    is_appended = file.content.startswith(file.flushed)
    part = file.content[: generator.randint(len(file.flushed) if is_appended else 0, len(file.content))]
    return generator.choice([file.flushed, file.content, file.zeros, part])


# For each model the names that a folder keeps, and the content that a file keeps.
MODELS: dict[
    str,
    tuple[
        Callable[[_Folder, random.Random], dict[str, _File | _Folder]],
        Callable[[_File, random.Random], bytes],
    ],
] = {
    "everything": (lambda folder, _: folder.entries, lambda file, _: file.content),  # as after kill -9
    "only what was flushed": (lambda folder, _: folder.versions[0], lambda file, _: file.flushed),
    "names without data": (lambda folder, _: folder.entries, lambda file, _: file.flushed),  # ext4 in writeback mode
    "names and sizes without data": (lambda folder, _: folder.entries, lambda file, _: file.zeros),  # XFS
    "any part": (_any_version, _any_content),
}


def write_content(content: Content, folder: Path) -> None:
    """Write the files and folders that a power loss left."""
    folder.mkdir(parents=True)
    for name, data in content.items():  # folders come before what is in them
        if data is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)


def read_content(folder: Path) -> Content:
    """All files and folders in a folder."""
    paths = {path: None if path.is_dir() else path.read_bytes() for path in sorted(folder.rglob("*"))}
    return {str(path.relative_to(folder)): data for path, data in paths.items()}
