"""Turn the SOURCE that a user names into a `Corpus`: a named document collection that can be read repeatedly.

A source is a built-in corpus, a file, a folder, a glob, a URL, a dataset of the Hugging Face hub, standard input, or
several of these. Only one chunk of text is in memory at a time. Nothing is tokenized here. The network is used only for
URLs, `hf:` names and, once, for `shakespeare`.
"""

import codecs
import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from octavo import files, remote
from octavo.data import chunks, hub, pydocs, readers
from octavo.data.chunks import Chunk
from octavo.data.decoding import TextFormat
from octavo.data.file_search import Search, SourceFile, kind_of_output
from octavo.data.file_state import file_state
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.nanogpt import is_nanogpt_folder
from octavo.data.readers import Reader
from octavo.data.report import Report, summarize
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import MachineError, OctavoError, SourceChangedError, SourceNotFoundError
from octavo.settings import DataSettings, Source, list_sources, name_source

BUILT_IN: tuple[str, ...] = ("pydocs", "shakespeare")

_SHAKESPEARE = (
    "tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


@dataclass
class Corpus:
    """The documents of a source, and a name for them that is valid as the name of a folder."""

    name: str
    source: Source
    text_format: TextFormat
    files: list[SourceFile] | None  # the files that the text depends on; None for a stream and for `hf:./folder`
    identity: str | None  # of these files when the source was opened; see `_file_identity`
    read: Callable[[], Iterator[Chunk]]  # one pass over the text, for `chunks`, which adds the checks
    report: Report = field(default_factory=Report)  # the files that the newest pass has read and skipped
    skipped_folders: Mapping[str, int] = field(default_factory=dict)  # how many, by reason
    reads_files: bool = False  # whether the text is that of `files`, in their order
    may_be_empty: bool = False
    _was_read: bool = field(default=False, init=False)  # whether `chunks` has come to the end without an error

    @property
    def source_name(self) -> str:
        """The source as messages name it."""
        return name_source(self.source)

    @property
    def recorded_source(self) -> str | list[str]:
        """The source as `dataset.json` has it."""
        return self.source if isinstance(self.source, str) else list(self.source)

    def chunks(self) -> Generator[Chunk, None, None]:
        """Yield all documents from the beginning, in chunks.

        Raises `OctavoError` if no text can be read: `SourceChangedError` if it could be read before, or if the files
        have changed since the source was opened. Another process may have written only half of one.
        """
        is_empty = True
        self.report.clear()
        try:
            for chunk in self.read():
                is_empty = False
                yield chunk
            if is_empty and not self.may_be_empty:
                raise self._empty_error()
            self._was_read = True
        except (OSError, ValueError) as error:  # ValueError: a NUL in a path, or raised by a codec
            raise _unreadable(self.source_name, error) from error
        except MachineError:
            raise
        except OctavoError as error:
            if self._was_read or (self.identity is not None and not self.is_unchanged()):
                hint = "the same command again, when the source no longer changes"
                raise SourceChangedError(f"{self.source_name} changed while it was read", hint) from error
            if not isinstance(error, UnreadableFileError) or isinstance(self.source, str):
                raise
            # A shell has perhaps named the file: `octavo train *`.
            raise OctavoError(error.message, f"{error.hint}; or their folder, which skips such files") from None

    def _empty_error(self) -> OctavoError:
        if not self.report.skipped and self.files is not None and [file.path for file in self.files] == [self.source]:
            return OctavoError(f"{self.source} is empty", "give a text file, or a folder of text files")
        hint = "a source with text"
        if self.report.read or self.report.skipped:
            hint += ", or --text-field NAME if another field has the text"
        counts = summarize(self.report.read, self.report.skipped, self.skipped_folders)
        return OctavoError(f"{self.source_name} has no text in it: {counts}", hint)

    def is_unchanged(self) -> bool:
        """Whether the files have not changed since the source was opened. False if that cannot be known."""
        return self.identity is not None and self.identity == _file_identity(self.files)


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
    over a file of that name, which is reached by `./pydocs`. A folder is read recursively, sorted by path;
    `file_search` says what it leaves out. A glob skips the same files. A part of a glob that is the name of an existing
    file or folder means that one. Several sources are read one after another, and a file that several of them name is
    read once.

    `formats` lists the formats of files, and the documents in each. Raises `OctavoError` if the source does not exist.
    If it exists but cannot be read, `Corpus.chunks` raises it.
    """
    keeps_nul = settings.tokenizer == "byte"
    text_format = TextFormat(_normalize_encoding(settings.encoding), settings.errors, settings.text_field, keeps_nul)
    report = Report()
    if isinstance(settings.source, str):
        return _open_one(settings.source, text_format, limits, report)
    corpora = [_open_one(source, text_format, limits, report) for source in settings.source]
    return _join(corpora, settings.source, limits)


def open_units(settings: DataSettings, limits: Limits = DEFAULT_LIMITS) -> tuple[Corpus, list[Corpus]]:
    """The corpus that `settings.source` names, and its units: consecutive files, `limits.unit_bytes` or more of them.

    A unit may have no text. Raises `OctavoError` if the source is not made of files.
    """
    sources = list_sources(settings.source)
    is_of_files = not any(source in (*BUILT_IN, "-") or source.startswith("hf:") for source in sources)
    if not is_of_files or not (whole := open_source(settings, limits)).reads_files:
        hint = "a file, a folder or a glob, or leave out --together"
        raise OctavoError(f"{settings.source_name} is not made of files", hint)
    groups: list[list[SourceFile]] = [[]]
    size = 0
    for file in whole.files or ():
        if size >= limits.unit_bytes:
            groups.append([])
            size = 0
        groups[-1].append(file)
        size += os.path.getsize(file.path)

    def unit(files: list[SourceFile]) -> Corpus:
        report = Report()
        read = functools.partial(_read_files, files, whole.text_format, limits, report)
        return dataclasses.replace(whole, files=files, identity=None, read=read, report=report, may_be_empty=True)

    return whole, list(map(unit, groups))


def _open_one(source: str, text_format: TextFormat, limits: Limits, report: Report) -> Corpus:
    try:
        return _open(source, text_format, limits, report)
    except (OSError, ValueError) as error:
        raise _unreadable(source, error) from error


def _open(source: str, text_format: TextFormat, limits: Limits, report: Report) -> Corpus:
    def corpus(read: Callable[[], Iterator[Chunk]], files: list[SourceFile] | None = None) -> Corpus:
        return Corpus(_corpus_name(source), source, text_format, files, _file_identity(files), read, report)

    match source:
        case "pydocs":
            text = functools.cache(pydocs.text)
            identity_files = list(map(SourceFile, pydocs.identity_files()))
            return corpus(lambda: chunks.chunk_rows([text()], limits), identity_files)
        case "shakespeare":
            found = [SourceFile(str(files.download(*_SHAKESPEARE)), is_named=True)]
            return corpus(lambda: _read_files(found, TextFormat(), limits, report), found)
        case "-":  # a program without a terminal may have no standard input
            stream = getattr(sys.stdin, "buffer", None)
            return corpus(_copy_stream(stream, "standard input", text_format, limits, report))
    if remote.is_url(source):
        return dataclasses.replace(_open(str(remote.fetch(source)), text_format, limits, report), source=source)
    if source.startswith("hf:"):
        rows = hub.cached_rows(source, text_format)
        return corpus(
            lambda: chunks.chunk_rows(hub.read_rows(source, text_format), limits),
            None if rows is None else [SourceFile(str(rows))],
        )
    _reject_nanogpt_files(Path(source))
    if (output := kind_of_output(Path(source))) is not None:
        raise OctavoError(f"{source} is {output}, not a text", _hint_for_output(source, output))
    search = Search(source)
    found = search.files
    if found == [SourceFile(source, is_named=True)] and not os.path.isfile(source):  # a pipe
        with open(source, "rb") as pipe:
            return corpus(_copy_stream(pipe, source, text_format, limits, report))
    opened = corpus(lambda: _read_files(found, text_format, limits, report), found)
    return dataclasses.replace(opened, skipped_folders=search.skipped_folders, reads_files=True)


def _reject_nanogpt_files(path: Path) -> None:
    """Raise `OctavoError` for a token file of nanoGPT, and for a folder whose prepare.py was not run yet."""
    if path.suffix == ".bin" and is_nanogpt_folder(path.parent):
        raise OctavoError(f"{path} is a token file of nanoGPT, one of two", f"its folder: {path.parent}")
    script = path / "prepare.py"
    if os.path.isfile(script) and not is_nanogpt_folder(path):
        with open(script, "rb") as file:
            writes_tokens = b"train.bin" in file.read(1 << 16)
        if writes_tokens:
            known = next((name for name in BUILT_IN if path.resolve().name.startswith(name)), None)
            hint = f"python {script}" + (f"; or octavo train {known}, which needs no script" if known else "")
            message = f"{path} has nanoGPT's prepare.py, and not yet the train.bin and val.bin that it writes"
            raise OctavoError(message, hint)


def _hint_for_output(source: str, output: str) -> str:
    match output:
        case "a run":
            return f"octavo train --resume {source}, or a text and --init {source}"
        case "a checkpoint":
            return f"a text and --init {source}"
        case _:
            return "it alone, without other sources"


def _join(corpora: list[Corpus], source: tuple[str, ...], limits: Limits) -> Corpus:
    """One corpus of several, in their order. A file that several of them have is read where it is first."""
    first, reads = corpora[0], []
    named = {os.path.abspath(file.path) for corpus in corpora for file in corpus.files or () if file.is_named}
    all_files: list[SourceFile] = []
    seen: set[str] = set()
    for corpus in corpora:
        if not corpus.reads_files:
            reads.append(corpus.read)
            all_files += corpus.files or ()
            continue
        own: list[SourceFile] = []
        for file in corpus.files or ():
            path = os.path.abspath(file.path)
            if path not in seen:
                own.append(SourceFile(file.path, path in named))
            seen.add(path)
        reads.append(functools.partial(_read_files, own, corpus.text_format, limits, corpus.report))
        all_files += own
    joined = None if any(corpus.files is None for corpus in corpora) else all_files
    folders: Counter[str] = Counter()
    for corpus in corpora:
        folders.update(corpus.skipped_folders)
    return Corpus(
        name=_joined_name(corpora),
        source=source,
        text_format=first.text_format,
        files=joined,
        identity=_file_identity(joined),
        read=lambda: itertools.chain.from_iterable(read() for read in reads),
        report=first.report,
        skipped_folders=folders,
        reads_files=all(corpus.reads_files for corpus in corpora),
    )


def _joined_name(corpora: list[Corpus]) -> str:
    """The name of the folder that all sources are in, or of the first source if no folder has all of them."""
    try:
        if all(corpus.reads_files and not remote.is_url(corpus.source) for corpus in corpora):
            return _corpus_name(os.path.commonpath([os.path.abspath(str(corpus.source)) for corpus in corpora]))
    except ValueError:  # on different drives
        pass
    return corpora[0].name


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


def _similar_paths(source: str) -> list[str]:
    """The path in the same folder whose name is the most similar one, if there is one."""
    path = Path(source)
    try:
        names = os.listdir(path.parent)
    except (OSError, ValueError):
        return []
    return [str(path.with_name(name)) for name in difflib.get_close_matches(path.name, names, n=1, cutoff=0.7)]


def _unreadable(source: str, error: OSError | ValueError) -> OctavoError:
    path = getattr(error, "filename", None) or source
    if not isinstance(error, FileNotFoundError):
        reason = getattr(error, "strerror", None) or error
        return OctavoError(f"{path!r} cannot be read: {reason}", "check its name, permissions and encoding")
    nearest = _similar_paths(source) or difflib.get_close_matches(source.lower(), BUILT_IN, n=1)
    choices = f"a file, a folder, a glob, a URL, hf:NAME, - for standard input, {' or '.join(BUILT_IN)}"
    return SourceNotFoundError(f"there is no file or folder {path!r}", nearest[0] if nearest else choices)


# Files


def _read_files(
    source_files: list[SourceFile], text_format: TextFormat, limits: Limits, report: Report
) -> Iterator[Chunk]:
    """Yield the documents of all files. Those that are not named and have no text are skipped."""
    with Reader(text_format, limits, report) as reader:
        for file in source_files:
            yield from reader.read_file(file)


def _file_identity(source_files: list[SourceFile] | None) -> str | None:
    """A hash of the path, size and modification time of each file; None if `file_state` is None for one of them."""
    if source_files is None:
        return None
    identity = hashlib.sha256()
    for path, _ in source_files:
        try:
            state = file_state(path)
        except OSError:
            return None
        if state is None:
            return None
        identity.update(repr((os.path.abspath(path), state)).encode())
    return identity.hexdigest()


def _copy_stream(
    stream: BinaryIO | None, name: str, text_format: TextFormat, limits: Limits, report: Report
) -> Callable[[], Iterator[Chunk]]:
    """Copy a stream, which can be read only once, to an unnamed file, and return a function that reads the copy."""
    copy = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `weakref.finalize` below
    with files.translate_disk_errors(Path(tempfile.gettempdir())):
        if stream is not None:
            shutil.copyfileobj(stream, copy)

    def read() -> Iterator[Chunk]:
        copy.seek(0)
        is_empty = True
        with Reader(text_format, limits, report) as reader:
            for chunk in reader.read_stream(copy, name):
                is_empty = False
                yield chunk
        if is_empty:
            raise OctavoError(f"{name} is empty", "pipe a text into it, or give a file")

    weakref.finalize(read, copy.close)  # when the corpus, which holds `read`, is garbage-collected
    return read
