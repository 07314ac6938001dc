"""Encode documents to token ids, faster than the tokenizer alone.

The input is UTF-8 in which the byte 0xFF, which UTF-8 never uses, marks the end of a document. It becomes
`<|endoftext|>`.

Text is cut into words where no token can span the cut: before a space or a newline that follows a character other than
whitespace. The ids of each word are cached: tiny Shakespeare has 203,000 words, 27,000 of them distinct. `WordCache` is
in Python, `WordTable` in C. On text in which every fiftieth word is new, the table takes a fifth of the CPU time.
"""

import ctypes
import dataclasses
import itertools
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from octavo.data.limits import Limits
from octavo.data.word_table import WordTable
from octavo.errors import OctavoWarning
from octavo.native_library import UnavailableError, load_library
from octavo.tokenizers import Tokenizer, UnknownCharacters

END = b"\xff"  # marks the end of a document
_CUT = b"\xfe"  # between words; UTF-8 does not use this byte either
_CACHED_WORDS = 300_000  # some 60 MB
_LONGEST_CACHED_WORD = 100  # bytes; in a text without spaces a word has up to 64 MB
# Multi-byte whitespace before a space or a newline: a token can span both, so the text is not cut between them.
_MULTIBYTE_SPACE = re.compile(
    rb"(?:\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)(?=[ \n])"
)


def load_functions(tokenizer: Tokenizer, characters: int, limits: Limits) -> ctypes.CDLL | None:
    """The C library, if a text of this many characters is encoded faster with it. Warns if it can't be used."""
    # Compiling it, which some machines must do first, could take longer than a small text.
    if characters < limits.single_process_characters or not tokenizer.can_split_at_spaces:
        return None
    try:
        return load_library().functions
    except UnavailableError as error:
        warnings.warn(f"{error}; text is encoded at a fifth of the speed", OctavoWarning, stacklevel=2)
        return None


def id_dtype(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest integer type for the ids of a vocabulary."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)


class Encoder:
    """Encodes chunks of a corpus with a tokenizer.

    `unknown` says what to do with characters that the tokenizer does not have: see `Tokenizer.encode`. `report`
    describes those that were skipped or replaced so far. With `special_tokens`, the text of a special token is encoded
    as that token. `functions` is the C library, if it is to be used.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        unknown: str = "error",
        special_tokens: bool = False,
        functions: ctypes.CDLL | None = None,
        cached_words: int = _CACHED_WORDS,
    ) -> None:
        self.dtype = id_dtype(tokenizer)
        self.report: UnknownCharacters | None = None
        self._tokenizer, self._unknown = tokenizer.without_prefix_space, unknown
        self._characters = 0  # in all documents so far, for offsets of unknown characters; not counted with `words`
        self._end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], self.dtype)
        self._special_pattern = tokenizer.special_pattern if special_tokens else None
        # Text is not cut into words if the cut could be in a special token.
        has_space = special_tokens and any(text.split() != [text] for text in tokenizer.special_texts)
        self.words: WordCache | WordTable | None = None
        if tokenizer.can_split_at_spaces and not has_space:
            arguments = self._encode_words, self._end, cached_words, _LONGEST_CACHED_WORD
            self.words = WordCache(*arguments) if functions is None else WordTable(functions, *arguments)

    def encode(self, chunk: bytes) -> np.ndarray:
        """The ids of a chunk (T,), as `id_dtype`."""
        if self.words is not None:
            return self.words.encode(chunk)
        ids: list[np.ndarray] = []
        for document in chunk.split(END):
            ids += [self._end, self._encode_document(document)]
        return np.concatenate(ids[1:])  # without the end-of-text token before the first document

    def _encode_document(self, document: bytes) -> np.ndarray:
        text = document.decode()
        ids, report = self._tokenizer.encode_and_report(text, self._unknown, self._special_pattern is not None)
        if report is not None:
            report = dataclasses.replace(report, offset=self._characters + report.offset)
            self.report = report if self.report is None else self.report.add(report)
        self._characters += len(text)
        return ids.astype(self.dtype)

    def _encode_words(self, words: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of words (T,) and, for each word, the end of its ids (W,)."""
        texts = [word.decode() for word in words]
        ids, ends = self._tokenizer.encode_words(texts, special_tokens=self._special_pattern is not None)
        return ids.astype(self.dtype), ends


class WordCache(dict[bytes, bytes]):
    """The ids of up to `size` words, as bytes, none longer than `longest`. Cleared when it is full.

    `encode_words` returns the ids of words (T,), and the end of each word's ids (W,). `end` are the ids of `END`.
    """

    def __init__(
        self,
        encode_words: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]],
        end: np.ndarray,
        size: int,
        longest: int,
    ) -> None:
        self._encode_words, self._end, self._size, self._longest = encode_words, end, size, longest

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of all words of a text, (T,)."""
        if len(self) >= self._size:
            self.clear()
        self[END] = self._end.tobytes()
        words = split_words(text)
        missing = list(set(words) - self.keys())
        if missing:
            ids, ends = self._encode_words(missing)
            content, byte_ends = ids.tobytes(), (ends * ids.itemsize).tolist()
            spans = itertools.pairwise([0, *byte_ends])
            self.update(zip(missing, (content[start:end] for start, end in spans), strict=True))
        found = np.frombuffer(b"".join(map(self.__getitem__, words)), self._end.dtype)
        for word in missing:
            if len(word) > self._longest or len(self) > self._size:
                del self[word]
        return found


def split_words(chunk: bytes) -> list[bytes]:
    """Cut before each space or newline that follows a character other than whitespace, and around document ends."""
    if not chunk:
        return []
    byte_values = np.frombuffer(chunk, np.uint8)
    is_space, is_end = (byte_values == 0x20) | (byte_values == 0x0A), byte_values == 0xFF
    is_white = is_space | ((byte_values >= 0x09) & (byte_values <= 0x0D))
    begins_word = np.zeros(len(byte_values), dtype=bool)
    begins_word[1:] = (is_space[1:] & ~is_white[:-1]) | is_end[:-1] | is_end[1:]
    for match in _MULTIBYTE_SPACE.finditer(chunk):
        begins_word[match.end()] = False
    return np.insert(byte_values, np.flatnonzero(begins_word), _CUT[0]).tobytes().split(_CUT)
