"""Read the documents in a file, whatever its format: the suffix of its name determines what reads it (see `formats`).

A text is read in chunks, so memory does not depend on the size of the file. Only a row of JSON, CSV or Parquet, or a
document of another program, is in memory as a whole.
"""

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from octavo.data import archives, formats, rows
from octavo.data.chunks import Chunk, chunk_rows, chunk_text
from octavo.data.conversion import Converter, is_converted
from octavo.data.decoding import READ_BYTES, TextFormat, decode, decompress
from octavo.data.file_search import SourceFile
from octavo.data.formats import Format
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.data.report import Report
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import OctavoError

_HTML = re.compile(r"\s*(<!doctype html|<html[\s>])", re.IGNORECASE)
_JSON = re.compile(r'\s*(\{\s*["}]|\[\s*[\[{"])')


class Reader:
    """Reads files in one pass over a source, and counts them in `report`.

    A context manager, because it may start a process.
    """

    def __init__(self, text_format: TextFormat, limits: Limits = DEFAULT_LIMITS, report: Report | None = None) -> None:
        self._text_format, self._limits, self._report = text_format, limits, report or Report()
        self._converter = Converter(limits)
        self._archive: Format | None = None  # the archive whose files are read: they are counted, and it is not

    def __enter__(self) -> "Reader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._converter.__exit__(kind, error, trace)

    def read_file(self, file: SourceFile) -> Iterator[Chunk]:
        """Yield the documents of a file in chunks. A file without text is skipped, unless the user named it.

        Raises `OctavoError` that names the file and the line.
        """
        with open(file.path, "rb") as raw:
            yield from self._read_or_skip(raw, file.path, file.is_named)

    def read_stream(self, file: BinaryIO, name: str) -> Iterator[Chunk]:
        """Yield the documents of a stream of text."""
        yield from self._read_text(file, name, formats.TEXT)

    def _read_or_skip(self, raw: BinaryIO, name: str, is_named: bool) -> Iterator[Chunk]:
        is_empty = True
        try:
            for chunk in self._read(raw, name):
                is_empty = False
                yield chunk
        except UnreadableFileError as error:
            if is_named or not is_empty:
                raise
            self._report.skip(error.reason, name)
        else:
            if is_empty and not is_named:
                self._report.skip("empty", name)

    def _read(self, raw: BinaryIO, name: str) -> Iterator[Chunk]:
        format = formats.find_format(name)
        if format is formats.PARQUET and formats.is_compressed(name):
            raise OctavoError(f"{name}: a compressed Parquet file cannot be read", "decompress it to a .parquet file")
        with decompress(raw, name, self._limits) as file:
            if is_converted(format):
                content = self._read_whole(file, name).getvalue()
                text = self._converter.convert(content, name, format, self._text_format.encoding)
                yield from self._count(format.name, chunk_text([text], self._limits))
            elif format is formats.PARQUET:
                texts = rows.read_parquet(self._seekable(file, name), name, self._text_format, self._limits)
                yield from self._count(format.name, chunk_rows(texts, self._limits))
            elif format in formats.ARCHIVES:
                yield from self._read_archive(file, name, format)
            else:
                yield from self._read_text(file, name, format)

    def _read_archive(self, file: BinaryIO, name: str, format: Format) -> Iterator[Chunk]:
        if format is formats.ZIP:
            file = self._seekable(file, name)
        self._archive = format
        try:
            for member, content in archives.open_members(file, name, format, self._limits, self._report):
                yield from self._read_or_skip(content, member, is_named=False)
        finally:
            self._archive = None

    def _read_text(self, file: BinaryIO, name: str, format: Format) -> Iterator[Chunk]:
        """Yield the documents of a file that is text, perhaps with rows."""
        text_format, limits = self._text_format, self._limits
        texts = decode(file, name, text_format)
        head = next(texts, "")
        texts = itertools.chain([head], texts)
        row_texts: Iterable[str]
        if format is formats.JSON_LINES or (format is formats.JSON and rows.LINES_OF_OBJECTS.match(head)):
            row_texts = rows.read_json_lines(texts, name, text_format, limits)
        elif format is formats.JSON and rows.ARRAY_OF_OBJECTS.match(head):
            row_texts = rows.read_json_array(texts, name, text_format, limits)
        elif format is formats.CSV:
            row_texts = rows.read_csv(texts, name, text_format, limits)
        else:
            if format is formats.JSON:
                chat, start = rows.read_json_object(texts, limits)
                if chat is not None:
                    yield from self._count(format.name, chunk_rows([chat], limits))
                    return
                texts = itertools.chain([start], texts)
            yield from self._count(_kind_of_text(head, format), chunk_text(texts, limits))
            return
        yield from self._count(format.name, chunk_rows(row_texts, limits))

    def _count(self, kind: str, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Count a file when its first chunk is read."""
        for number, chunk in enumerate(chunks):
            if number == 0:
                self._report.add(f"{kind} in a {self._archive.name}" if self._archive else kind)
            yield chunk

    def _seekable(self, file: BinaryIO, name: str) -> BinaryIO:
        """The file itself, or a copy in memory of one that can only be read from its beginning to its end."""
        return file if hasattr(file, "seek") and file.seekable() else self._read_whole(file, name)

    def _read_whole(self, file: BinaryIO, name: str) -> io.BytesIO:
        whole = io.BytesIO()
        while block := file.read(READ_BYTES):
            whole.write(block)
            if whole.tell() > self._limits.converted_bytes:
                limit = self._limits.converted_bytes
                raise UnreadableFileError(f"{name} has more than {limit:,} bytes", "too large")
        whole.seek(0)
        return whole


def stem(path: Path) -> str:
    """A file's name without its suffix, and without the suffix of its compression."""
    name = path.stem if path.suffix.lower() in formats.COMPRESSED else path.name
    return Path(name).stem


def _kind_of_text(head: str, format: Format) -> str:
    """What the report counts a text as: `text`, or the markup that is read as it is."""
    if _HTML.match(head):
        return f"HTML {AS_IT_IS}"
    return f"JSON {AS_IT_IS}" if format is formats.JSON or _JSON.match(head) else format.name


AS_IT_IS = "as it is, with its markup"
