"""Read the rows of JSON lines, JSON arrays, CSV and Parquet: the text of each is a document.

A row is in memory as a whole. Its text is the field `text_field`, or the transcript of a chat (see `chats`). Errors
name the file and the line.
"""

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from octavo.data.chats import render_chat
from octavo.data.decoding import READ_BYTES, TextFormat, check_ratio
from octavo.data.limits import Limits
from octavo.data.unreadable import UnreadableFileError
from octavo.errors import OctavoError, install_command
from octavo.schema import decode_json

_PARQUET_ROWS = 8  # rows in memory at a time: equal values are stored once in the file, but once per row in memory
ARRAY_OF_OBJECTS = re.compile(r"\s*\[\s*\{")
LINES_OF_OBJECTS = re.compile(r"\s*\{.*\}[ \t\r]*\n\s*\{")
_OPENING_BRACKET, _COMMA, _CLOSING_BRACKET = map(re.compile, (r"\s*\[\s*", r"\s*,\s*", r"\s*\]\s*"))


def read_json_lines(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each line. Blank lines are skipped."""
    for number, line in enumerate(_split_lines(texts, name, limits), 1):
        if not line.strip():
            continue
        location = f"{name}, line {number:,}"
        try:
            row = decode_json(line)
        except (ValueError, RecursionError) as error:
            raise OctavoError(f"{location}, is not JSON: {error}", "a JSON object in each line") from None
        if not isinstance(row, dict):
            raise OctavoError(f"{location}, is not a JSON object", '{"text": "..."} in each line')
        yield row_text(row, location, text_format)


def read_json_array(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
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


def read_json_object(texts: Iterator[str], limits: Limits) -> tuple[str | None, str]:
    """The transcript of a file that is one chat, and the beginning of the file that was read to find out.

    The transcript is None if the file is something else, or too large to be held in memory.
    """
    content = ""
    for text in texts:
        content += text
        if len(content) > limits.row:
            return None, content
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None, content
    return render_chat(value) if isinstance(value, dict) else None, content


def read_csv(texts: Iterable[str], name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each row. The first line names the fields; commas, semicolons or tabs separate them."""
    lines = _RowLines(_split_lines(texts, name, limits), name, limits)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    csv.field_size_limit(max(csv.field_size_limit(), limits.row))  # for the process; 131,072 by default
    rows = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if text_format.text_field not in names:
            first = next(rows, [])
            values = {column: first[i] if i < len(first) else "" for i, column in enumerate(names)}
            raise _missing_field(f"{name}, line 1", values, text_format)
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


def read_parquet(file: BinaryIO, name: str, text_format: TextFormat, limits: Limits) -> Iterator[str]:
    """Yield the text field of each row of a Parquet file."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        hint = install_command("parquet")
        raise UnreadableFileError(f"reading {name} needs the package pyarrow", f"Parquet ({hint})", hint) from None
    field = text_format.text_field
    size = file.seek(0, os.SEEK_END)
    try:
        with pq.ParquetFile(file, buffer_size=READ_BYTES) as table:
            if field not in table.schema_arrow.names:
                values = {column.name: "" if pa.types.is_string(column.type) else None for column in table.schema_arrow}
                raise _missing_field(name, values, text_format)
            # All columns together: asking for the metadata of one ends the process if the column is damaged, because
            # pyarrow does not catch the C++ exception.
            groups = (table.metadata.row_group(group) for group in range(table.num_row_groups))
            check_ratio(size, sum(max(0, group.total_byte_size) for group in groups), name, limits)
            number = 0
            for batch in table.iter_batches(batch_size=_PARQUET_ROWS, columns=[field]):
                for value in batch.column(0).to_pylist():
                    number += 1
                    location = f"{name}, row {number:,}"
                    text = _check_text(value, location, text_format)
                    if len(text) > limits.row:
                        raise _row_error(f"{location},", limits)
                    yield text
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OctavoError(f"{name} is not a Parquet file, or damaged: {error}", "write or fetch it again") from error


def row_text(row: dict[str, Any], location: str, text_format: TextFormat) -> str:
    """The text field of a row. `location` names the row in messages."""
    text = _get_field(row, location, text_format)
    return text if text.isascii() else _remove_surrogates(text, location, text_format)


def _get_field(row: dict[str, Any], location: str, text_format: TextFormat) -> str:
    value = row.get(text_format.text_field)
    if not isinstance(value, str) and (chat := render_chat(row if value is None else value)) is not None:
        return chat
    if text_format.text_field not in row:
        raise _missing_field(location, row, text_format)
    return _check_text(value, location, text_format)


def _check_text(value: Any, location: str, text_format: TextFormat) -> str:
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        raise OctavoError(
            f"{location}, has a field {text_format.text_field!r} that is {kind}, not text",
            "--text-field NAME, or remove such rows",
        )
    return value


def _missing_field(location: str, row: dict[str, Any], text_format: TextFormat) -> UnreadableFileError:
    """The error for a row without the text field. The hint names the field with the longest text."""
    names = [str(name) for name in row]
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    texts = {str(name): value for name, value in row.items() if isinstance(value, str) and not _is_number(value)}
    field = max(texts, key=lambda name: len(texts[name]), default="NAME")
    return UnreadableFileError(
        f"{location} has no field {text_format.text_field!r}; its fields: {listed or 'none'}",
        f"without the field {text_format.text_field!r} of --text-field",
        f"--text-field {shlex.quote(field)}",
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
