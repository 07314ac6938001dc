"""The ids of the words of a text, from a hash table in C: words.c, which `octavo.native_library` loads.

Equal to `WordCache` of `octavo.data.encoder`, but faster and without Python's global interpreter lock.

Axis letters: `L` bytes of a text, `W` words of a text, `T` their ids, `N` numbers given to words.
"""

import ctypes
from collections.abc import Callable

import numpy as np

_ROOM = 1 << 23  # ids; memory that is not used yet is only reserved
_PADDING = 16  # bytes, as in words.c
_pointer, _long = ctypes.c_void_p, ctypes.c_int64
_SLOT_BYTES = 16


class _Table(ctypes.Structure):
    """`WordTable` of words.c, field by field."""

    _fields_ = (
        ("slots_count", _long),
        ("longest", _long),
        ("max_kept", _long),
        ("N", _long),
        ("kept", _long),
        ("L", _long),
        ("slots", _pointer),
        ("bytes", _pointer),
    )


class WordTable:
    """The ids of up to `size` words, none longer than `longest` bytes. Cleared when it is full.

    `encode_words` returns the ids of words (T,), and the end of each word's ids (W,). `end` are the ids of the byte
    0xFF, at most one.
    """

    def __init__(
        self,
        functions: ctypes.CDLL,
        encode_words: Callable[[list[bytes]], tuple[np.ndarray, np.ndarray]],
        end: np.ndarray,
        size: int,
        longest: int,
        room: int = _ROOM,
    ) -> None:
        self._find_words, self._copy_ids = functions.octavo_find_words, functions.octavo_copy_ids
        self._find_words.argtypes = (_pointer, ctypes.c_char_p, _long, _pointer, _pointer)
        self._copy_ids.argtypes = (_pointer, _long, _pointer, _pointer, _pointer)
        self._find_words.restype = self._copy_ids.restype = _long
        self._encode_words, self._end = encode_words, end
        self._bytes = np.empty(size * longest, np.uint8)  # memory that is not used yet is only reserved
        slots_count = 1 << (2 * size - 1).bit_length()  # at most half of the slots are used
        self._table = _Table(slots_count, longest, size, bytes=self._bytes.ctypes.data)
        self._room = room
        self._clear(0)

    def __len__(self) -> int:
        return int(self._table.kept)

    def encode(self, text: bytes) -> np.ndarray:
        """The ids of all words of a text, (T,)."""
        table, L = self._table, len(text)
        # A text has at most L words, and at most L ids.
        if table.kept == table.max_kept or max(table.N, self._used) + L > self._room:
            self._clear(L)
        first_new = table.N
        numbers, new_words = np.empty(L, np.uint32), np.empty((L, 2), np.uint32)  # (W,), and the spans of new words
        W = self._find_words(ctypes.byref(table), text, L, numbers.ctypes.data, new_words.ctypes.data)
        if first_new < table.N:
            try:
                self._add_ids(text, new_words[: table.N - first_new], first_new)
            except BaseException:  # the table has numbers of words whose ids are not known
                self._clear(L)
                raise
        ids = np.empty(L + _PADDING, self._end.dtype)
        size = self._copy_ids(numbers.ctypes.data, W, self._ends.ctypes.data, self._ids.ctypes.data, ids.ctypes.data)
        return ids[: size // ids.itemsize].copy()  # without the memory of the rest

    def _add_ids(self, text: bytes, spans: np.ndarray, first_new: int) -> None:
        """Compute the ids of the new words of a text from their starts and ends (words, 2)."""
        ids, ends = self._encode_words([text[start:end] for start, end in spans.tolist()])
        self._ids[self._used : self._used + len(ids)] = ids
        self._ends[first_new : self._table.N] = (self._used + ends) * ids.itemsize
        self._used += len(ids)

    def _clear(self, L: int) -> None:
        """Remove all words, and have room for a text of L bytes."""
        self._slots = np.zeros((self._table.slots_count, _SLOT_BYTES), np.uint8)
        self._table.slots = self._slots.ctypes.data
        self._table.N, self._table.kept, self._table.L = 1, 0, 0  # the word 0 is the byte 0xFF
        self._room = max(self._room, 2 + L)
        self._ends, self._ids = np.empty(self._room, np.uint32), np.empty(self._room + _PADDING, self._end.dtype)
        self._used = len(self._end)  # ids
        self._ids[: self._used], self._ends[0] = self._end, self._end.nbytes
