"""Read the documents in a file: text, JSON lines, a JSON array, CSV or Parquet, perhaps compressed.

A text is read in chunks of about a million characters, so memory does not depend on the size of the file. Only a row of
JSON, CSV or Parquet is in memory as a whole. A chunk ends where no token can span the cut: before a space or a newline
that follows a character other than whitespace. So chunks can be encoded separately, and the ids are those of the whole
text. The text is kept as it is, including its line endings; only a byte order mark at the start of a file is removed.
"""

import codecs
import contextlib
import csv
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from octavo.byte_order_mark import split_mark
from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.errors import OctavoError
from octavo.tokenizers import END_OF_TEXT

COMPRESSED = (".gz", ".zst")
JSON_LINES, JSON, CSV, PARQUET = (".jsonl", ".ndjson"), (".json",), (".csv", ".tsv"), (".parquet",)
_READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16
_PARQUET_ROWS = 8  # rows in memory at a time: a column of equal values needs its memory that many times
_CONTROL_CHARACTERS = bytes({*range(0x20), 0x7F} - set(b"\b\t\n\v\f\r\x1b"))  # those that no text has
_ARRAY_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
_LINES_OF_OBJECTS = re.compile(r"\s*\{.*\}[ \t\r]*\n\s*\{")
_OPENING_BRACKET, _COMMA, _CLOSING_BRACKET = map(re.compile, (r"\s*\[\s*", r"\s*,\s*", r"\s*\]\s*"))
_SURROGATE_ESCAPE = re.compile(r"\\u[dD]")


class Chunk(NamedTuple):
    """A bounded part of a document, or all of it."""

    text: str
    ends_document: bool
    follows_separator: bool = False  # whether a line `<|endoftext|>` precedes the document in its file


@dataclass(frozen=True)
class TextFormat:
    """How bytes become text: `encoding` and `errors` of `bytes.decode`, and the field of a row that has the text.

    A NUL character in a text file is an error, or replaced or dropped, as `errors` says, unless `keeps_nul`.
    """

    encoding: str = "utf-8"
    errors: str = "strict"
    text_field: str = "text"
    keeps_nul: bool = False


class BinaryFileError(Exception):
    """The file is not a text file: see `_is_binary`. The message says where its first NUL byte is."""


def read_file(path: str, text_format: TextFormat, limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield the documents of a file in chunks. The suffix of its name determines the format.

    Raises `BinaryFileError`, or `OctavoError` that names the file and the line.
    """
    suffix = _inner_suffix(path)
    if suffix in PARQUET:
        if Path(path).suffix.lower() in COMPRESSED:
            raise OctavoError(f"{path}: a compressed Parquet file cannot be read", "decompress it to a .parquet file")
        yield from chunk_rows(_read_parquet(path, text_format, limits), limits)
        return
    with open_decompressed(path, limits) as file:
        texts = _decode(file, path, text_format)
        head = next(texts, "")
        texts = itertools.chain([head], texts)
        if suffix in JSON_LINES or (suffix in JSON and _LINES_OF_OBJECTS.match(head)):
            yield from chunk_rows(_read_json_lines(texts, path, text_format, limits), limits)
        elif suffix in JSON and _ARRAY_OF_OBJECTS.match(head):
            yield from chunk_rows(_read_json_array(texts, path, text_format, limits), limits)
        elif suffix in CSV:
            yield from chunk_rows(_read_csv(texts, path, text_format, limits), limits)
        else:
            yield from _chunk_text(texts, limits)


def stem(path: Path) -> str:
    """A file's name without its suffix, and without the suffix of its compression."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return Path(name).stem


def read_text(file: BinaryIO, name: str, text_format: TextFormat, limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield a text file as one document, or as several if lines `<|endoftext|>` separate them."""
    yield from _chunk_text(_decode(file, name, text_format), limits)


def _chunk_text(texts: Iterable[str], limits: Limits) -> Iterator[Chunk]:
    numbered = number_documents(texts)
    for number, pairs in itertools.groupby(numbered, key=lambda pair: pair[0]):
        for chunk in _mark_last(cut_text((text for _, text in pairs), limits)):
            yield chunk._replace(follows_separator=number > 0)


def chunk_rows(rows: Iterable[str], limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield each row as a document. Empty rows are skipped."""
    for row in rows:
        if len(row) <= limits.chunk:
            if row:
                yield Chunk(row, True)
        else:
            yield from _mark_last(cut_text([row], limits))


def number_documents(texts: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yield the same text with the number of its document. Lines `<|endoftext|>` separate documents and are removed."""
    number, held, begins_line = 0, "", True
    for text in itertools.chain(texts, [None]):
        held += text or ""
        unfinished = held.rfind("\n") + 1  # the line that begins here may continue in the next text
        is_separator_possible = any(line.startswith(held[unfinished:]) for line in _SEPARATOR_LINES)
        end = unfinished if text is not None and is_separator_possible and (unfinished or begins_line) else len(held)
        start = 0
        # The search for the constant is much faster than that for the pattern, which most texts do not have.
        for match in _SEPARATOR.finditer(held, 0, end) if END_OF_TEXT in held else ():
            if match.start() == 0 and not begins_line:
                continue
            yield number, held[start : match.start()]
            number, start = number + 1, match.end()
        yield number, held[start:end]
        if end:
            begins_line = held[end - 1] == "\n"
        held = held[end:]


_SEPARATOR_LINES = (f"{END_OF_TEXT}\n", f"{END_OF_TEXT}\r\n")
_SEPARATOR = re.compile(rf"(?m)^{re.escape(END_OF_TEXT)}(?:\r?\n|\r?\Z)")


def _mark_last(texts: Iterable[str]) -> Iterator[Chunk]:
    previous = ""
    for text in texts:
        if previous:
            yield Chunk(previous, False)
        previous = text
    if previous:
        yield Chunk(previous, True)


def cut_text(texts: Iterable[str], limits: Limits = DEFAULT_LIMITS) -> Iterator[str]:
    """Yield the same text in chunks of at most `limits.chunk` characters.

    Text is cut where no token can span the cut. Without such a place, a chunk is longer, and is cut after
    `limits.forced_cut` characters all the same.
    """
    rest, searched = "", 0  # `rest[:searched]` has no place to cut after the first `limits.chunk` characters
    for text in texts:
        rest += text
        start = 0
        while len(rest) - start >= limits.chunk:
            end = _find_cut(rest, start, start + limits.chunk, searched)
            if not end:
                searched = len(rest)  # it is not searched again, so the time is linear also without a place to cut
                if len(rest) - start < limits.forced_cut:
                    break
                end = start + limits.forced_cut
            yield rest[start:end]
            start = end
        rest, searched = rest[start:], max(0, searched - start)
    if rest:
        yield rest


_CUT = re.compile(r"\S(?=[ \n])")


def _find_cut(text: str, start: int, end: int, searched: int) -> int:
    """The last place to cut between `start` and `end`, else the first one from `end` on, else 0.

    There is no such place before `searched` if that is `end` or more.
    """
    length = 256  # of the text that is searched, from `end` backward
    while searched < end:
        if cuts := [match.end() for match in _CUT.finditer(text, max(start, end - length), end)]:
            return cuts[-1]
        if length >= end - start:
            break
        length *= 2
    match = _CUT.search(text, max(end, searched) - 1)
    return match.end() if match else 0


@contextlib.contextmanager
def open_decompressed(path: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[BinaryIO]:
    """Open a file, decompressing it if its suffix is `.gz` or `.zst`.

    Reading raises `OctavoError` if the file is damaged, or decompresses to more than `limits` allow.
    """
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as raw:
        try:
            if suffix == ".gz":
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, _BoundedReader(cast(BinaryIO, file), raw, path, limits))
            elif suffix == ".zst":
                with _import_zstd(path).open(raw) as file:
                    yield cast(BinaryIO, _BoundedReader(file, raw, path, limits))
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OctavoError(f"{path} is damaged or truncated: {error}", "fetch or compress it again") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # its class is in a package that may not be installed
                raise
            raise OctavoError(f"{path} is damaged: {error}", "fetch or compress it again") from error


class _BoundedReader:
    """Reads a decompressed file until it has become too large for the compressed bytes that were read."""

    def __init__(self, file: BinaryIO, raw: BinaryIO, path: str, limits: Limits) -> None:
        self._file, self._raw, self._path, self._limits = file, raw, path, limits
        self._size = 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self._size += len(content)
        _check_ratio(self._raw.tell(), self._size, self._path, self._limits)
        return content


def _check_ratio(compressed: int, decompressed: int, path: str, limits: Limits) -> None:
    if decompressed > max(limits.decompressed, limits.decompression_ratio * compressed):
        raise OctavoError(
            f"{path} decompresses to more than {limits.decompression_ratio} times its size, as no ordinary text does",
            "decompress it first, if it is to be read",
        )


def _import_zstd(path: str) -> Any:
    for module in ("compression.zstd", "backports.zstd"):  # in the standard library from Python 3.14
        try:
            return __import__(module, fromlist=["open"])
        except ImportError:
            continue
    raise OctavoError(f"reading {path} needs the package backports.zstd", "pip install 'octavo[zstd]'")


def _inner_suffix(path: str) -> str:
    """The suffix of the file inside the compression: `.jsonl` for `rows.jsonl.gz`."""
    outer = Path(path)
    return (Path(outer.stem) if outer.suffix.lower() in COMPRESSED else outer).suffix.lower()


def _decode(file: BinaryIO, name: str, text_format: TextFormat) -> Iterator[str]:
    """Yield the text of a file. A byte order mark decides the encoding. Raises `BinaryFileError` if it is binary."""
    head = file.read(_HEAD_BYTES)
    encoding, block = split_mark(head)
    if encoding is None:
        encoding = text_format.encoding
        if head and encoding in ("utf-16", "utf-32"):
            raise OctavoError(
                f"{name} is not {encoding}: it does not start with a byte order mark",
                f"--encoding {encoding}-le or {encoding}-be, or utf-8",
            )
        if _is_binary(head, encoding, text_format):
            raise BinaryFileError(f"it has a NUL byte at byte offset {head.index(0)}")
    offset = len(head) - len(block)
    decoder = codecs.getincrementaldecoder(encoding)(text_format.errors)
    while True:
        start = offset - len(decoder.getstate()[0])  # of the text, which begins with an unfinished character
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise OctavoError(
                f"{name} is not {encoding}: {error.reason} at byte offset {start + error.start}",
                "--encoding latin-1 (or the file's encoding), or --errors replace",
            ) from error
        text.encode()  # raises ValueError if the codec returned an unpaired surrogate; `Corpus.chunks` reports it
        if "\0" in text and not text_format.keeps_nul:
            if text_format.errors == "strict":
                nul = start + len(text[: text.index("\0")].encode(encoding))
                raise OctavoError(
                    f"{name} has a NUL character at byte offset {nul}, which text does not have",
                    "--errors ignore or --errors replace, the tokenizer byte, which keeps it, or another --encoding",
                )
            text = text.replace("\0", "\ufffd" if text_format.errors == "replace" else "")
        if text:
            yield text
        if not block:
            return
        offset += len(block)
        block = file.read(_READ_BYTES)


def _is_binary(head: bytes, encoding: str, text_format: TextFormat) -> bool:
    """Whether a file is not text: there is a NUL byte, and more than one byte in 50 is a control character.

    Text that can be decoded is never binary if `text_format.keeps_nul`.
    """
    if b"\0" not in head or b"\0" in "a".encode(encoding):  # UTF-16 and UTF-32 are full of NUL bytes
        return False
    if text_format.keeps_nul:
        with contextlib.suppress(UnicodeDecodeError):
            codecs.getincrementaldecoder(encoding)().decode(head)
            return False
    return 50 * (len(head) - len(head.translate(None, _CONTROL_CHARACTERS))) > len(head)


# Rows


def _read_json_lines(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each line. Blank lines are skipped."""
    for number, line in enumerate(_split_lines(texts, name, limits), 1):
        if not line.strip():
            continue
        location = f"{name}, line {number:,}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise OctavoError(f"{location}, is not JSON: {error}", "a JSON object in each line") from None
        if not isinstance(row, dict):
            raise OctavoError(f"{location}, is not a JSON object", '{"text": "..."} in each line')
        text = _get_field(row, location, text_format)
        yield _remove_surrogates(text, location, text_format) if _SURROGATE_ESCAPE.search(line) else text


def _read_json_array(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each element of a JSON array. One element is in memory at a time."""
    decoder = json.JSONDecoder()
    buffer, position, needed, number = "", 0, 0, 1
    for text in itertools.chain(texts, [""]):  # the empty text marks the end
        buffer, position = buffer[position:] + text, 0
        if text and len(buffer) < needed:
            continue
        while separator := (_COMMA if number > 1 else _OPENING_BRACKET).match(buffer, position):
            try:
                row, end = decoder.raw_decode(buffer, separator.end())
            except (ValueError, RecursionError):  # not JSON, or the buffer has only a part of the element
                break
            if end - separator.end() > limits.row:
                break
            position = end
            location = f"{name}, element {number:,}"
            if not isinstance(row, dict):
                raise OctavoError(f"{location}, is not a JSON object", '[{"text": "..."}, ...]')
            yield row_text(row, location, text_format)
            number += 1
        if len(buffer) - position > limits.row:
            break
        needed = 2 * (len(buffer) - position)  # decode an element again only when twice as much of it has been read
    if not _CLOSING_BRACKET.fullmatch(buffer, position):
        raise OctavoError(
            f"{name}, element {number:,}, is not JSON, or has more than {limits.row:,} characters",
            'an array [{"text": "..."}, ...], or to read the file as text, another suffix',
        )


def _read_csv(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each row. The first line names the fields; commas, semicolons or tabs separate them."""
    lines = _RowLines(_split_lines(texts, name, limits), name, limits)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(max(csv.field_size_limit(), limits.row))  # for the process; 131,072 by default
    rows = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if text_format.text_field not in names:
            raise _missing_field(f"{name}, line 1", names, text_format)
        column = names.index(text_format.text_field)
        for row in rows:
            if row:
                if len(row) != len(names):
                    raise OctavoError(
                        f"{name}, line {rows.line_num:,}, has {len(row)} fields, and line 1 names {len(names)}",
                        "quotes around a field that has a separator or a newline",
                    )
                yield row[column]
            lines.row_characters = 0
    except csv.Error as error:
        raise OctavoError(
            f"{name}, line {rows.line_num:,}, is not CSV: {error}", "a quote within a quoted field is written twice"
        ) from None


class _RowLines(Iterator[str]):
    """The lines of a CSV file. A quoted field can have several. Raises `OctavoError` if a row becomes too long."""

    def __init__(self, lines: Iterator[str], name: str, limits: Limits) -> None:
        self._lines, self._name, self._limits = lines, name, limits
        self.row_characters = 0

    def __next__(self) -> str:
        line = next(self._lines) + "\n"
        self.row_characters += len(line)
        if self.row_characters > self._limits.row:
            raise _row_error(f"{self._name} has a row", self._limits)
        return line


def _split_lines(texts: Iterable[str], name: str, limits: Limits) -> Iterator[str]:
    """Yield lines without their line feeds. Raises `OctavoError` if one is too long to be held in memory."""
    parts: list[str] = []  # of the line that is not complete
    length, number = 0, 1
    for text in texts:
        first, *others = text.split("\n")
        parts.append(first)
        length += len(first)
        if length > limits.row:
            raise _row_error(f"{name}, line {number:,},", limits)
        if others:
            yield "".join(parts)
            last = others.pop()
            yield from others
            number += 1 + len(others)
            parts, length = [last], len(last)
    yield "".join(parts)


def _row_error(subject: str, limits: Limits) -> OctavoError:
    return OctavoError(f"{subject} has more than {limits.row:,} characters", "shorter documents, or a text file")


def _read_parquet(path: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each row of a Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise OctavoError(f"reading {path} needs the package pyarrow", "pip install 'octavo[parquet]'") from None
    field = text_format.text_field
    try:
        with pq.ParquetFile(path, buffer_size=_READ_BYTES) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise _missing_field(path, names, text_format)
            for group in range(table.num_row_groups):
                columns = [table.metadata.row_group(group).column(i) for i in range(table.metadata.num_columns)]
                for column in columns:
                    if column.path_in_schema == field:
                        _check_ratio(column.total_compressed_size, column.total_uncompressed_size, path, limits)
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    location = f"{path}, row {number:,}"
                    text = _check_text(value, location, text_format)
                    if len(text) > limits.row:
                        raise _row_error(f"{location},", limits)
                    yield text
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OctavoError(f"{path} is not a Parquet file, or damaged: {error}", "write or fetch it again") from error


def row_text(row: dict[str, Any], location: str, text_format: TextFormat) -> str:
    """The text field of a row. `location` names the row in messages."""
    return _remove_surrogates(_get_field(row, location, text_format), location, text_format)


def _get_field(row: dict[str, Any], location: str, text_format: TextFormat) -> str:
    if text_format.text_field not in row:
        raise _missing_field(location, list(row), text_format)
    return _check_text(row[text_format.text_field], location, text_format)


def _check_text(value: Any, location: str, text_format: TextFormat) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise OctavoError(
            f"{location}, has a field {text_format.text_field!r} that is {kind}, not text",
            "--text-field NAME, or remove such rows",
        )
    return value


def _missing_field(location: str, names: list[str], text_format: TextFormat) -> OctavoError:
    listed = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    return OctavoError(
        f"{location} has no field {text_format.text_field!r}; its fields: {listed or 'none'}",
        f"--text-field {names[0] if names else 'NAME'}",
    )


def _remove_surrogates(text: str, location: str, text_format: TextFormat) -> str:
    """Treat unpaired surrogates, which are not characters, as `text_format.errors` says."""
    try:
        text.encode()
    except UnicodeEncodeError:
        if text_format.errors == "strict":
            raise OctavoError(
                f"{location}, has an unpaired surrogate, which is not a character",
                "--errors replace, or --errors ignore",
            ) from None
        return text.encode("utf-16", "surrogatepass").decode("utf-16", text_format.errors)
    return text
