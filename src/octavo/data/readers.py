"""Read the documents in a file: plain text, compressed text, JSON lines, or a Parquet table.

A document is read in chunks of about a million characters, so memory does not depend on the size of the file. A chunk
ends where no token can span the cut: before a space or a newline that follows a character other than whitespace. So
chunks can be encoded separately, and the ids are those of the whole text. The text is kept as it is, including its
line endings; only a byte order mark at the start of a text file is removed.
"""

import codecs
import contextlib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.errors import OctavoError

COMPRESSED = (".gz", ".zst")
JSON_LINES, TABLES = (".jsonl", ".ndjson"), (".parquet",)
_READ_BYTES = 1 << 20
_HEAD_BYTES = 1 << 16  # a file with a NUL byte in its first 64 KiB is binary


class Chunk(NamedTuple):
    """A bounded part of a document, or all of it."""

    text: str
    ends_document: bool
    follows_separator: bool = False  # whether a line `<|endoftext|>` precedes the document in its file


@dataclass(frozen=True)
class TextFormat:
    """How bytes become text: `encoding` and `errors` of `bytes.decode`, and the field of a row that has the text."""

    encoding: str = "utf-8"
    errors: str = "strict"
    text_field: str = "text"


class BinaryFileError(Exception):
    """The file is not a text file: there is a NUL byte near its beginning."""


def read_file(path: str, text_format: TextFormat, limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield the documents of a file in chunks. The suffix of its name determines the format.

    Raises `BinaryFileError`, or `OctavoError` that names the file and the line.
    """
    suffix = _inner_suffix(path)
    if suffix in TABLES:
        if Path(path).suffix.lower() in COMPRESSED:
            raise OctavoError(f"{path}: a compressed Parquet file cannot be read", "decompress it to a .parquet file")
        yield from chunk_rows(_read_table(path, text_format), limits)
    else:
        with open_decompressed(path) as file:
            if suffix in JSON_LINES:
                yield from chunk_rows(_read_json_lines(file, path, text_format), limits)
            else:
                yield from read_text(file, path, text_format, limits)


def stem(path: Path) -> str:
    """A file's name without its suffix, and without the suffix of its compression."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return Path(name).stem


def read_text(file: BinaryIO, name: str, text_format: TextFormat, limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield a text file as one document, or as several if lines `<|endoftext|>` separate them."""
    numbered = number_documents(_decode(file, name, text_format))
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
        for match in _SEPARATOR.finditer(held, 0, end):
            if match.start() == 0 and not begins_line:
                continue
            yield number, held[start : match.start()]
            number, start = number + 1, match.end()
        yield number, held[start:end]
        if end:
            begins_line = held[end - 1] == "\n"
        held = held[end:]


_SEPARATOR_LINES = ("<|endoftext|>\n", "<|endoftext|>\r\n")
_SEPARATOR = re.compile(r"(?m)^<\|endoftext\|>(?:\r?\n|\r?\Z)")


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
def open_decompressed(path: str) -> Iterator[BinaryIO]:
    """Open a file, decompressing it if its suffix is `.gz` or `.zst`."""
    suffix = Path(path).suffix.lower()
    with open(path, "rb") as raw:
        try:
            if suffix == ".gz":
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, file)
            elif suffix == ".zst":
                with _import_zstd(path).open(raw) as file:
                    yield file
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OctavoError(f"{path} is damaged or truncated: {error}", "fetch or compress it again") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # its class is in a package that may not be installed
                raise
            raise OctavoError(f"{path} is damaged: {error}", "fetch or compress it again") from error


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
    """Yield the text of a file. Raises `BinaryFileError` if it is binary."""
    decoder = codecs.getincrementaldecoder(text_format.encoding)(text_format.errors)
    block, offset, is_first = file.read(_HEAD_BYTES), 0, True
    if b"\0" not in "a".encode(text_format.encoding):  # UTF-16 and UTF-32 are full of NUL bytes
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            encoding = "utf-32" if block.startswith(codecs.BOM_UTF32_LE) else "utf-16"
            raise OctavoError(f"{name} looks like {encoding}, not {text_format.encoding}", f"--encoding {encoding}")
        if b"\0" in block:
            raise BinaryFileError(name)
    while True:
        pending = len(decoder.getstate()[0])  # bytes of an unfinished character
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            message = f"{name} is not {text_format.encoding}: {error.reason} at byte offset "
            raise OctavoError(
                f"{message}{offset - pending + error.start}",
                "--encoding latin-1 (or the file's encoding), or --errors replace",
            ) from error
        text.encode()  # raises ValueError if the codec returned an unpaired surrogate; `Corpus.chunks` reports it
        if text:
            yield text.removeprefix("\ufeff") if is_first else text
            is_first = False
        if not block:
            return
        offset += len(block)
        block = file.read(_READ_BYTES)


# Rows


def _read_json_lines(file: BinaryIO, name: str, text_format: TextFormat) -> Iterator[str]:
    """Yield the text field of each line. Blank lines are skipped."""
    encoding = text_format.encoding
    if b"\0" in "a\n".encode(encoding):
        raise OctavoError(f"{name}: JSON lines cannot be read as {encoding}", "convert the file to utf-8")
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        location = f"{name}, line {number:,}"
        try:
            row = json.loads(line.decode(encoding, text_format.errors))
        except UnicodeDecodeError as error:
            raise OctavoError(
                f"{location}, is not {encoding}: {error.reason}",
                "--encoding latin-1 (or the file's encoding), or --errors replace",
            ) from None
        except (ValueError, RecursionError) as error:
            raise OctavoError(f"{location}, is not JSON: {error}", "a JSON object in each line") from None
        if not isinstance(row, dict):
            raise OctavoError(f"{location}, is not a JSON object", '{"text": "..."} in each line')
        text = _get_field(row, location, text_format)
        if b"\\ud" in line.lower():  # an escape for a surrogate, which may be unpaired
            text = _remove_surrogates(text, location, text_format)
        yield text


def _read_table(path: str, text_format: TextFormat) -> Iterator[str]:
    """Yield the text field of each row of a Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise OctavoError(f"reading {path} needs the package pyarrow", "pip install 'octavo[parquet]'") from None
    field = text_format.text_field
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise _missing_field(path, names, text_format)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _check_text(value, f"{path}, row {number:,}", text_format)
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
