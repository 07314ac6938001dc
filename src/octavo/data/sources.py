"""Where text comes from: a corpus that has a name, files, a dataset of the hub, or standard input.

`read` turns a SOURCE into a `Corpus`, whose documents can be read through as often as is wanted; nothing is held but
the piece that is read. Nothing is tokenized or written here, and no network is reached but for `shakespeare`, once, and
for `hf:` names.
"""

import codecs
import difflib
import glob
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from octavo import files
from octavo.data import hub, pydocs, readers
from octavo.data.readers import BinaryFileError, Piece, Reading
from octavo.errors import OctavoError

NAMED: tuple[str, ...] = ("pydocs", "shakespeare")

_SHAKESPEARE = (
    "tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(frozen=True)
class Corpus:
    """Documents, and a name for them that can be a folder's."""

    name: str
    source: str
    _read: Callable[[], Iterator[Piece]]

    def pieces(self) -> Generator[Piece, None, None]:
        """All documents from the first on, in pieces. Raises `OctavoError` where there is no text to be read."""
        empty = True
        try:
            for piece in self._read():
                empty = False
                yield piece
        except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it, or a codec that has its own
            raise _unreadable(self.source, error) from error
        if empty:
            raise OctavoError(f"{self.source} has no text in it", "a text, or --text-field for its rows")


def read(source: str, encoding: str = "utf-8", errors: str = "strict", text_field: str = "text") -> Corpus:
    """The corpus that `source` names.

    `source` is one of `NAMED` (the name wins: a file of that name is `./pydocs`), a file, a folder, a glob such as
    `notes/**/*.md`, a dataset `hf:NAME`, or `-` for standard input. A folder is read through and through, in the order
    of paths, except for what is hidden, what is binary (a NUL byte in its first 64 KiB) and folders behind links. A
    glob leaves out the same, but follows links.

    A text file is a document. `.jsonl` and `.parquet` hold one in each row, in the field `text_field`. `.gz` and `.zst`
    are read as what they pack. `encoding` and `errors` (strict, replace or ignore) are those of `bytes.decode`.
    Raises `OctavoError` where there is nothing of that name; `Corpus.pieces` where it can't be read.
    """
    how = Reading(_checked(encoding, errors), errors, text_field)
    try:
        return Corpus(_name(source), source, _reader(source, how))
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _reader(source: str, how: Reading) -> Callable[[], Iterator[Piece]]:
    """What reads a source from its beginning, each time that it is called."""
    match source:
        case "pydocs":
            text = pydocs.text()
            return lambda: readers.rows_in_pieces([text])
        case "shakespeare":
            path = str(files.fetch(*_SHAKESPEARE))
            return lambda: readers.documents(path, Reading())
        case "-":  # a program without a terminal may have none
            return _read_once(getattr(sys.stdin, "buffer", None), "standard input", how)
    if source.startswith("hf:"):
        return lambda: readers.rows_in_pieces(hub.rows(source, how))
    paths = _paths(source)
    if paths == [source] and not os.path.isfile(source):  # a pipe
        with open(source, "rb") as stream:
            return _read_once(stream, source, how)
    return lambda: _files(source, paths, how)


def _checked(encoding: str, errors: str) -> str:
    """The encoding's own name. `utf-8-sig` is `utf-8` here: the mark goes, and offsets count it."""
    try:
        "a".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        hint = "--encoding utf-8, latin-1, cp1252 or utf-16"
        raise OctavoError(f"there is no text encoding {encoding!r}", hint) from error
    if errors not in ("strict", "replace", "ignore"):
        raise OctavoError(f"errors is {errors!r}, not strict, replace or ignore", "--errors replace")
    return codecs.lookup(encoding).name.removesuffix("-sig")


def _name(source: str) -> str:
    """A corpus's name, a file's stem, or the name of a folder: for a glob, the one it looks in."""
    if source in NAMED or source == "-":
        return source if source in NAMED else "stdin"
    if source.startswith("hf:"):
        return hub.name(source)
    path = Path(os.path.abspath(source))
    while not path.exists():
        path = path.parent
    name = path.name if path.is_dir() else readers.stem(path)
    return re.sub(r"[^\w.-]+", "-", name)[:60].strip(".-") or "text"


def _unreadable(source: str, error: OSError | ValueError) -> OctavoError:
    path = getattr(error, "filename", None) or source
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return OctavoError(f"{path!r} can't be read: {reason}", "check its name, permissions and encoding")
    near = difflib.get_close_matches(source.lower(), NAMED, n=1)
    others = f"a file, a folder, a glob, hf:NAME, - for standard input, {' or '.join(NAMED)}"
    return OctavoError(f"there is no file or folder {path!r}", near[0] if near else others)


# Files


def _files(source: str, paths: list[str], how: Reading) -> Iterator[Piece]:
    """The documents of all files, those without text left out."""
    binary, empty = 0, True
    for path in paths:
        try:
            for piece in readers.documents(path, how):
                empty = False
                yield piece
        except BinaryFileError:
            binary += 1
    if empty:
        what = f"has no text in it ({len(paths)} files, {binary} of them binary)"
        if paths == [source]:
            what = "is binary, not text" if binary else "is empty"
        raise OctavoError(f"{source} {what}", "give a text file, or a folder of them")


def _paths(source: str) -> list[str]:
    """The files that `source` names, sorted by the parts of their paths."""
    if os.path.isdir(source):
        found = list(_walk(Path(source)))
    elif os.path.exists(source) or not glob.has_magic(source):
        os.stat(source)  # where there is none, this says so
        found = [source]
    else:
        found = [path for path in set(glob.glob(source, recursive=True)) if os.path.isfile(path)]
        if not found:
            raise OctavoError(f"no file matches {source!r}", "** for any folder, * for any name")
    return sorted(found, key=lambda path: Path(path).parts)


def _walk(folder: Path) -> Iterator[str]:
    """The files in `folder` and in the folders in it, except for what is hidden and folders behind links."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        elif path.is_file():
            yield str(path)


def _read_once(stream: BinaryIO | None, where: str, how: Reading) -> Callable[[], Iterator[Piece]]:
    """A stream, put down in a file that nobody sees: it comes once, and is read more often."""
    kept = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as the corpus
    with files.translate_disk_errors(Path(tempfile.gettempdir())):
        if stream is not None:
            shutil.copyfileobj(stream, kept)

    def pieces() -> Iterator[Piece]:
        kept.seek(0)
        empty = True
        try:
            for piece in readers.text(kept, where, how):
                empty = False
                yield piece
        except BinaryFileError:
            raise OctavoError(f"{where} is binary, not text", "pipe a text into it, or give a file") from None
        if empty:
            raise OctavoError(f"{where} is empty", "pipe a text into it, or give a file")

    weakref.finalize(pieces, kept.close)
    return pieces
