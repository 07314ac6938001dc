"""Turn the SOURCE that a user names into a `Corpus`: a named document collection that can be read repeatedly.

A source is a built-in corpus, a file, a folder, a glob, a dataset of the Hugging Face hub, or standard input. Only one
chunk of text is in memory at a time. Nothing is tokenized here. The network is used only for `hf:` names and, once, for
`shakespeare`.
"""

import codecs
import dataclasses
import difflib
import fnmatch
import functools
import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from octavo import files, remote
from octavo.data import hub, pydocs, readers
from octavo.data.file_state import file_state
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.readers import BinaryFileError, Chunk, TextFormat
from octavo.errors import OctavoError, OctavoWarning, SourceNotFoundError
from octavo.settings import DataSettings

BUILT_IN: tuple[str, ...] = ("pydocs", "shakespeare")

_SHAKESPEARE = (
    "tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass(frozen=True)
class Corpus:
    """The documents of a source, and a name for them that is valid as the name of a folder."""

    name: str
    source: str
    text_format: TextFormat
    paths: list[str] | None  # files that change when the text does; None if it can be known only by reading the text
    identity: str | None  # of these files when the source was opened; see `_file_identity`
    _read: Callable[[], Iterator[Chunk]]
    may_be_empty: bool = False

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield all documents from the beginning, in chunks. Raises `OctavoError` if no text can be read."""
        is_empty = True
        try:
            for chunk in self._read():
                is_empty = False
                yield chunk
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path, or raised by a codec
            raise _unreadable(self.source, error) from error
        if is_empty and not self.may_be_empty:
            hint = "a source with text, or --text-field NAME if another field has the text"
            raise OctavoError(f"{self.source} has no text in it", hint)

    def is_unchanged(self) -> bool:
        """Whether the files have not changed since the source was opened. False if that cannot be known."""
        return self.identity is not None and self.identity == _file_identity(self.paths)


class CorpusHash:
    """The sha256 that identifies a corpus, updated chunk by chunk."""

    def __init__(self) -> None:
        self._sha256, self._document_ended, self._has_several_documents = hashlib.sha256(), False, False

    def update(self, content: bytes, ends_document: bool) -> None:
        if self._document_ended:
            self._sha256.update(b"\xff")
            self._has_several_documents = True
        self._sha256.update(content)
        self._document_ended = ends_document

    def hexdigest(self) -> str:
        if self._has_several_documents:
            self._sha256.update(b"\xff")
        return self._sha256.hexdigest()


def open_source(settings: DataSettings, limits: Limits = DEFAULT_LIMITS) -> Corpus:
    """The corpus that `settings.source` names.

    A source is a file, a folder, a glob such as `notes/**/*.md`, the URL of one of these, which is copied into the
    cache, a dataset `hf:NAME`, `-` for standard input, or one of the names in `BUILT_IN`. Such a name takes precedence
    over a file of that name, which is reached by `./pydocs`. A folder is read recursively, sorted by path, without
    hidden files, binary files and symbolic links to folders. A glob skips the same files. A part of a glob that is the
    name of an existing file or folder means that one.

    A text file is one document, unless lines `<|endoftext|>` separate several. `.jsonl`, `.csv` and `.parquet` files,
    and `.json` files with an array of objects, have one document in each row, in the field `text_field`. `.gz` and
    `.zst` are decompressed. Raises `OctavoError` if the source does not exist. If it exists but cannot be read,
    `Corpus.chunks` raises it.
    """
    source = settings.source
    keeps_nul = settings.tokenizer == "byte"
    text_format = TextFormat(_normalize_encoding(settings.encoding), settings.errors, settings.text_field, keeps_nul)
    try:
        return _open_source(source, text_format, limits)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def open_units(settings: DataSettings, limits: Limits = DEFAULT_LIMITS) -> tuple[Corpus, list[Corpus]]:
    """The corpus that `settings.source` names, and its units: consecutive files, `limits.unit_bytes` or more of them.

    A unit may have no text. Raises `OctavoError` if the source is not made of files.
    """
    source = settings.source
    if source in (*BUILT_IN, "-") or source.startswith("hf:") or (whole := open_source(settings, limits)).paths is None:
        raise OctavoError(f"{source} is not made of files", "a file, a folder or a glob, or leave out --together")
    groups: list[list[str]] = [[]]
    size = 0
    for path in whole.paths:
        if size >= limits.unit_bytes:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += os.path.getsize(path)

    def unit(paths: list[str]) -> Corpus:
        warn = functools.cache(_warn)
        read = functools.partial(_read_files, source, paths, whole.text_format, limits, warn, may_be_empty=True)
        return dataclasses.replace(whole, paths=paths, identity=None, may_be_empty=True, _read=read)

    return whole, list(map(unit, groups))


def _open_source(source: str, text_format: TextFormat, limits: Limits) -> Corpus:
    def corpus(read: Callable[[], Iterator[Chunk]], paths: list[str] | None = None) -> Corpus:
        return Corpus(_corpus_name(source), source, text_format, paths, _file_identity(paths), read)

    match source:
        case "pydocs":
            text = functools.cache(pydocs.text)
            return corpus(lambda: readers.chunk_rows([text()], limits), pydocs.identity_files())
        case "shakespeare":
            path = str(files.fetch(*_SHAKESPEARE))
            return corpus(lambda: readers.read_file(path, TextFormat(), limits), [path])
        case "-":  # a program without a terminal may have no standard input
            return corpus(_copy_stream(getattr(sys.stdin, "buffer", None), "standard input", text_format, limits))
    if remote.is_url(source):
        return dataclasses.replace(_open_source(str(remote.fetch(source)), text_format, limits), source=source)
    if source.startswith("hf:"):
        rows = hub.cached_rows(source, text_format)
        return corpus(
            lambda: readers.chunk_rows(hub.read_rows(source, text_format), limits),
            None if rows is None else [str(rows)],
        )
    paths = _find_files(source)
    if paths == [source] and not os.path.isfile(source):  # a pipe
        with open(source, "rb") as stream:
            return corpus(_copy_stream(stream, source, text_format, limits))
    warn = functools.cache(_warn)  # a corpus is read several times, and the warning is given once
    return corpus(lambda: _read_files(source, paths, text_format, limits, warn), paths)


def _normalize_encoding(encoding: str) -> str:
    """Python's name for the encoding. `utf-8-sig` becomes `utf-8`: readers remove the byte order mark themselves."""
    try:
        "a".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError) as error:
        hint = "--encoding utf-8, latin-1, cp1252 or utf-16"
        raise OctavoError(f"there is no text encoding {encoding!r}", hint) from error
    return codecs.lookup(encoding).name.removesuffix("-sig")


def _corpus_name(source: str) -> str:
    """The stem of a file, or the name of a folder; for a glob, the name of the folder that it searches."""
    if source in BUILT_IN or source == "-":
        return source if source in BUILT_IN else "stdin"
    if source.startswith("hf:"):
        return hub.name(source)
    path = Path(os.path.abspath(source))
    while not path.exists():  # the folder that a glob searches
        path = path.parent
    name = path.name if path.is_dir() else readers.stem(path)
    return re.sub(r"[^\w.-]+", "-", name)[:60].strip(".-") or "text"


def _unreadable(source: str, error: OSError | ValueError) -> OctavoError:
    path = getattr(error, "filename", None) or source
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return OctavoError(f"{path!r} cannot be read: {reason}", "check its name, permissions and encoding")
    nearest = difflib.get_close_matches(source.lower(), BUILT_IN, n=1)
    choices = f"a file, a folder, a glob, a URL, hf:NAME, - for standard input, {' or '.join(BUILT_IN)}"
    return SourceNotFoundError(f"there is no file or folder {path!r}", nearest[0] if nearest else choices)


# Files


def _read_files(
    source: str,
    paths: list[str],
    text_format: TextFormat,
    limits: Limits,
    warn: Callable[[str], None],
    may_be_empty: bool = False,
) -> Iterator[Chunk]:
    """Yield the documents of all files. Files without text are skipped; `warn` reports binary ones."""
    binary: list[str] = []
    is_empty = True
    for path in paths:
        try:
            for chunk in readers.read_file(path, text_format, limits):
                is_empty = False
                yield chunk
        except BinaryFileError as error:
            if path == source:
                raise _binary_error(source, error) from None
            binary.append(f"{path}: {error}")
    if is_empty and not may_be_empty:
        problem = (
            "is empty" if paths == [source] else f"has no text in it ({len(paths)} files, {len(binary)} of them binary)"
        )
        raise OctavoError(f"{source} {problem}", "give a text file, or a folder of text files")
    if binary:
        warn(f"{source}: {len(binary)} binary files are skipped, such as {binary[0]}")


def _warn(message: str) -> None:
    warnings.warn(message, OctavoWarning, stacklevel=3)


def _binary_error(name: str, error: BinaryFileError) -> OctavoError:
    hint = "a text file; the tokenizer byte accepts a text with NUL characters"
    return OctavoError(f"{name} is binary, not text: {error}", hint)


def _find_files(source: str) -> list[str]:
    """The files that `source` names, sorted by the parts of their paths."""
    path = Path(source)
    if os.path.isdir(source):
        paths = set(_match(path, ["**"]))
    elif os.path.exists(source) or not glob.has_magic(source):
        os.stat(source)  # raises FileNotFoundError
        return [source]
    else:
        anchor = Path(path.anchor)  # "" for a relative path
        paths = set(_match(anchor, list(path.relative_to(anchor).parts)))
        if not paths:
            raise SourceNotFoundError(f"no file matches {source!r}", "** for any folder, * for any name")
    return [str(path) for path in sorted(paths, key=lambda path: path.parts)]


def _match(folder: Path, pattern: list[str]) -> Iterator[Path]:
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
        yield from _match(folder, rest or ["*"])
        for path in _visible(folder):
            if path.is_dir() and not path.is_symlink():
                yield from _match(path, pattern)
    elif not glob.has_magic(part) or (folder / part).exists():
        yield from _match(folder / part, rest)
    elif folder.is_dir():
        for path in folder.iterdir() if part.startswith(".") else _visible(folder):
            if fnmatch.fnmatch(path.name, part):
                yield from _match(path, rest)


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files and folders in a folder that are not hidden."""
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if not path.name.startswith("."))


def _file_identity(paths: list[str] | None) -> str | None:
    """A hash of the path, size and modification time of each file; None if `file_state` is None for one of them."""
    if paths is None:
        return None
    identity = hashlib.sha256()
    for path in paths:
        try:
            state = file_state(path)
        except OSError:
            return None
        if state is None:
            return None
        identity.update(repr((os.path.abspath(path), state)).encode())
    return identity.hexdigest()


def _copy_stream(
    stream: BinaryIO | None, name: str, text_format: TextFormat, limits: Limits
) -> Callable[[], Iterator[Chunk]]:
    """Copy a stream, which can be read only once, to an unnamed file, and return a function that reads the copy."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `weakref.finalize` below
    with files.translate_disk_errors(Path(tempfile.gettempdir())):
        if stream is not None:
            shutil.copyfileobj(stream, copy)

    def read() -> Iterator[Chunk]:
        copy.seek(0)
        is_empty = True
        try:
            for chunk in readers.read_text(copy, name, text_format, limits):
                is_empty = False
                yield chunk
        except BinaryFileError as error:
            raise _binary_error(name, error) from None
        if is_empty:
            raise OctavoError(f"{name} is empty", "pipe a text into it, or give a file")

    weakref.finalize(read, copy.close)  # when the corpus, which holds `read`, is garbage-collected
    return read
