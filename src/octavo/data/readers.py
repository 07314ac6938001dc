"""What a file holds, as documents: plain text, compressed text, a field of JSON lines or of a Parquet table.

A document comes in pieces of about a million characters, so a file of any size takes no more memory than that. A piece
ends where no token can lie across, before a space or a line's end after something else: each can be tokenized alone,
and the ids are those of the whole. The text is what the files say, line endings included; only a byte order mark at
the start of a text file goes.
"""

import codecs
import contextlib
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from octavo.errors import OctavoError

COMPRESSED = (".gz", ".zst")
LINES, TABLES = (".jsonl", ".ndjson"), (".parquet",)
PIECE = 1 << 20  # characters
_LONGEST = 1 << 24  # characters without a place to cut at, as in a text without spaces: then anywhere
_BLOCK = 1 << 20  # bytes read at a time
_HEAD = 1 << 16  # bytes that tell text from what is none


class Piece(NamedTuple):
    """Some text, and whether a document ends with it."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Reading:
    """How bytes become text: `encoding` and `errors` as `bytes.decode` has them, and the field that rows keep it in."""

    encoding: str = "utf-8"
    errors: str = "strict"
    text_field: str = "text"


class BinaryFileError(Exception):
    """A file that is no text."""


def documents(path: str, how: Reading) -> Iterator[Piece]:
    """The documents of a file, by its name's ending. Raises `BinaryFileError`, or `OctavoError` with file and line."""
    kind = _ending(path)
    if kind in TABLES:
        if Path(path).suffix.lower() in COMPRESSED:
            raise OctavoError(
                f"{path} is a packed table, which can't be read from its end", "the .parquet file, unpacked"
            )
        yield from rows_in_pieces(_table(path, how))
    else:
        with opened(path) as file:
            yield from rows_in_pieces(_lines(file, path, how)) if kind in LINES else text(file, path, how)


def stem(path: Path) -> str:
    """A file's name without what its endings say of its kind."""
    name = path.stem if path.suffix.lower() in COMPRESSED else path.name
    return Path(name).stem


def text(file: BinaryIO, where: str, how: Reading) -> Iterator[Piece]:
    """A text as one document."""
    yield from _as_document(cut(_decoded(file, where, how)))


def rows_in_pieces(rows: Iterable[str]) -> Iterator[Piece]:
    """Rows as a document each; empty ones are none."""
    for row in rows:
        if len(row) <= PIECE:
            if row:
                yield Piece(row, True)
        else:
            yield from _as_document(cut([row]))


def _as_document(texts: Iterable[str]) -> Iterator[Piece]:
    held = ""
    for each in texts:
        if held:
            yield Piece(held, False)
        held = each
    if held:
        yield Piece(held, True)


def cut(texts: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of at most `PIECE` characters, where there are places to cut at."""
    held = ""
    for each in texts:
        held += each
        start = 0
        while len(held) - start >= PIECE and (end := _end(held, start)):
            yield held[start:end]
            start = end
        held = held[start:]
    if held:
        yield held


def _end(text: str, start: int) -> int:
    """Where the piece from `start` on ends; 0 where more text must come to tell."""
    at = start + PIECE
    while (at := max(text.rfind(" ", start + 1, at), text.rfind("\n", start + 1, at))) > start:
        word = len(text[start:at].rstrip()) + start  # where the white space that it stands in begins
        if word > start and text[word] in " \n":
            return word
        at = word
    if later := re.compile(r"\S(?=[ \n])").search(text, start + PIECE - 1):
        return later.end()
    return start + _LONGEST if len(text) - start >= _LONGEST else 0


@contextlib.contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed where its name says so."""
    ending = Path(path).suffix.lower()
    with open(path, "rb") as raw:
        try:
            if ending == ".gz":
                with gzip.open(raw) as file:
                    yield cast(BinaryIO, file)
            elif ending == ".zst":
                with _zstd(path).open(raw) as file:
                    yield file
            else:
                yield raw
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OctavoError(f"{path} is damaged or cut short: {error}", "fetch or compress it again") from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":  # the class of a package that need not be there
                raise
            raise OctavoError(f"{path} is damaged: {error}", "fetch or compress it again") from error


def _zstd(path: str) -> Any:
    for home in ("compression.zstd", "backports.zstd"):  # Python's own from 3.14 on
        try:
            return __import__(home, fromlist=["open"])
        except ImportError:
            continue
    raise OctavoError(f"{path} needs the package backports.zstd to be read", "pip install 'octavo[zstd]'")


def _ending(path: str) -> str:
    inner = Path(path)
    return (Path(inner.stem) if inner.suffix.lower() in COMPRESSED else inner).suffix.lower()


def _decoded(file: BinaryIO, where: str, how: Reading) -> Iterator[str]:
    """What a text file says. Raises `BinaryFileError` where its first bytes are no text's."""
    decoder = codecs.getincrementaldecoder(how.encoding)(how.errors)
    block, before, first = file.read(_HEAD), 0, True
    if b"\0" not in "a".encode(how.encoding):  # UTF-16 and UTF-32 are full of NULs
        if block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            like = "utf-32" if block.startswith(codecs.BOM_UTF32_LE) else "utf-16"
            raise OctavoError(f"{where} looks like {like}, not {how.encoding}", f"--encoding {like}")
        if b"\0" in block:
            raise BinaryFileError(where)
    while True:
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            what = f"{where} is not {how.encoding}: {error.reason} at byte offset {before - waiting + error.start}"
            raise OctavoError(what, "--encoding latin-1 (or what it is in), or --errors replace") from error
        text.encode()  # some codecs give halves of surrogate pairs: a ValueError
        if text:
            yield text.removeprefix("\ufeff") if first else text
            first = False
        if not block:
            return
        before += len(block)
        block = file.read(_BLOCK)


# Rows


def _lines(file: BinaryIO, where: str, how: Reading) -> Iterator[str]:
    """The field of each line of JSON; blank lines are none."""
    if b"\0" in "a\n".encode(how.encoding):
        raise OctavoError(f"{where} can't be read in lines as {how.encoding}", "JSON lines in utf-8")
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        place = f"{where}, line {number:,},"
        try:
            row = json.loads(line.decode(how.encoding, how.errors))
        except (ValueError, RecursionError) as error:
            unknown = isinstance(error, UnicodeDecodeError)
            said = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
            hint = (
                "--encoding latin-1 (or what it is in), or --errors replace"
                if unknown
                else "a JSON object in each line"
            )
            raise OctavoError(
                f"{where}, line {number:,} is not {how.encoding if unknown else 'JSON'}: {said}", hint
            ) from None
        if not isinstance(row, dict):
            raise OctavoError(f"{where}, line {number:,} is no JSON object", '{"text": "..."} in each line')
        found = _field(row, place, how)
        if b"\\ud" in line.lower():  # JSON can write halves of surrogate pairs, which are no characters
            found = _whole(found, place, how)
        yield found


def _table(path: str, how: Reading) -> Iterator[str]:
    """The field of each row of a Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise OctavoError(f"{path} needs the package pyarrow to be read", "pip install 'octavo[parquet]'") from None
    try:
        with pq.ParquetFile(path) as table:
            names = table.schema_arrow.names
            if how.text_field not in names:
                raise _no_field(path, names, how)
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=[how.text_field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    yield _text_of(value, f"{path}, row {number:,},", how)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OctavoError(f"{path} is no Parquet file, or damaged: {error}", "write or fetch it again") from error


def row_text(row: dict[str, Any], place: str, how: Reading) -> str:
    """The field of a row that is a mapping already."""
    return _whole(_field(row, place, how), place, how)


def _field(row: dict[str, Any], place: str, how: Reading) -> str:
    if how.text_field not in row:
        raise _no_field(place, list(row), how)
    return _text_of(row[how.text_field], place, how)


def _text_of(value: Any, place: str, how: Reading) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise OctavoError(f"{place} has a field {how.text_field!r} that is {kind}, not text",
                          "--text-field NAME, or leave such rows out")  # fmt: skip
    return value


def _no_field(place: str, names: list[str], how: Reading) -> OctavoError:
    shown = ", ".join(map(str, names[:8])) + (", ..." if len(names) > 8 else "")
    return OctavoError(f"{place.rstrip(',')} has no field {how.text_field!r}; it has {shown or 'none'}",
                       f"--text-field {names[0] if names else 'NAME'}")  # fmt: skip


def _whole(text: str, place: str, how: Reading) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        if how.errors == "strict":
            raise OctavoError(f"{place} has half of a surrogate pair, which is no character",
                              "--errors replace, or --errors ignore") from None  # fmt: skip
        return text.encode("utf-16", "surrogatepass").decode("utf-16", how.errors)
    return text
