"""Find the files that a source names: a file, the files of a folder, or those that match a glob.

A folder and a glob leave out files that are not the user's text: hidden ones, and the folders of `reason_to_skip`,
among them all that Octavo writes. So `octavo train .` reads the same files again after it has written a run there.
"""

import contextlib
import fnmatch
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from octavo import files
from octavo.errors import SourceNotFoundError
from octavo.run_layout import SETTINGS, is_run

# Folders that are left out by their name, wherever they are. Octavo writes runs/, and its logger wandb/.
SKIPPED_FOLDERS = ("runs", "wandb", "node_modules", "__pycache__", "site-packages")


class SourceFile(NamedTuple):
    """A file of a source. If the user named it, it is an error that it cannot be read; otherwise it is skipped."""

    path: str
    is_named: bool = False


class Search:
    """The `files` that a source names, in a fixed order, and the number of `skipped_folders` by reason."""

    def __init__(self, source: str) -> None:
        self._skipped: dict[Path, str] = {}  # folders, and why
        self.files = self._find(source)
        self.skipped_folders = Counter(self._skipped.values())

    def _find(self, source: str) -> list[SourceFile]:
        path = Path(source)
        if os.path.isdir(source):
            paths = set(self._match(path, ["**"]))
        elif os.path.exists(source) or not glob.has_magic(source):
            os.stat(source)  # raises FileNotFoundError
            return [SourceFile(source, is_named=True)]
        else:
            anchor = Path(path.anchor)  # "" for a relative path
            paths = set(self._match(anchor, list(path.relative_to(anchor).parts)))
            if not paths:
                raise SourceNotFoundError(f"no file matches {source!r}", "** for any folder, * for any name")
        in_order = sorted(paths, key=lambda path: path.parts)
        return [SourceFile(str(path)) for path in in_order if not _is_stdout_or_stderr(path)]

    def _match(self, folder: Path, pattern: list[str]) -> Iterator[Path]:
        """Yield the files in `folder` that match a glob pattern, given as the list of its parts.

        A part that is the name of an existing file or folder means that one, even if it has brackets or asterisks. `**`
        means any number of folders, but does not follow links to folders: a link could lead back to `folder`.
        """
        if not pattern:
            if folder.is_file():
                yield folder
            return
        part, rest = pattern[0], pattern[1:]
        if part == "**":
            yield from self._match(folder, rest or ["*"])
            for path in _visible(folder):
                if path.is_dir() and not path.is_symlink() and not self._is_skipped(path):
                    yield from self._match(path, pattern)
        elif not glob.has_magic(part) or (folder / part).exists():
            yield from self._match(folder / part, rest)
        elif folder.is_dir():
            for path in folder.iterdir() if part.startswith(".") else _visible(folder):
                if fnmatch.fnmatch(path.name, part) and not (rest and path.is_dir() and self._is_skipped(path)):
                    yield from self._match(path, rest)

    def _is_skipped(self, folder: Path) -> bool:
        reason = reason_to_skip(folder)
        if reason is not None:
            self._skipped[folder] = reason
        return reason is not None


def reason_to_skip(folder: Path) -> str | None:
    """Why a folder within a source is left out; None if it is not."""
    if folder.name in SKIPPED_FOLDERS:
        return folder.name
    if (written := kind_of_output(folder)) is not None:
        return f"{written} ({folder.name})"
    if (folder / "pyvenv.cfg").is_file():
        return f"a virtual environment ({folder.name})"
    with contextlib.suppress(OSError):
        if folder.samefile(files.cache_dir()):
            return f"Octavo's cache ({folder.name})"
    return None


def kind_of_output(folder: Path) -> str | None:
    """What Octavo has written into a folder: a run, a checkpoint or a prepared text. None for any other folder."""

    def has(*names: str) -> bool:
        return all(os.path.isfile(folder / name) for name in names)

    if is_run(folder) and _begins_with(folder / SETTINGS, b"preset = "):
        return "a run"
    if has("config.json") and any(map(has, ("model.safetensors", "pytorch_model.bin", "model.bin", "octavo.json"))):
        return "a checkpoint"
    return "a prepared text" if has("dataset.json", "tokenizer.json") else None


def _begins_with(path: Path, start: bytes) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(start)) == start
    except OSError:
        return False


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files and folders in a folder that are not hidden."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))


def _is_stdout_or_stderr(path: Path) -> bool:
    """Whether this command writes to the file: `octavo train . > log`."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream may have no descriptor
            if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                return True
    return False
