"""Cut text into chunks of about a million characters that can be tokenized separately.

A chunk ends where no token can span the cut: before a space or a newline that follows a character other than
whitespace. So the ids are those of the whole text, and memory does not depend on the size of a document.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from octavo.data.limits import DEFAULT_LIMITS, Limits
from octavo.tokenizers import END_OF_TEXT


class Chunk(NamedTuple):
    """A bounded part of a document, or all of it."""

    text: str
    ends_document: bool
    follows_separator: bool = False  # whether a line `<|endoftext|>` precedes the document in its file


def chunk_text(texts: Iterable[str], limits: Limits = DEFAULT_LIMITS) -> Iterator[Chunk]:
    """Yield a text as one document, or as several if lines `<|endoftext|>` separate them."""
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
