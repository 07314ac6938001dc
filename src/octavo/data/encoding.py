"""Documents to ids, many at a time, in this process or in several.

What is encoded is UTF-8 in which the byte 0xFF, which no UTF-8 has, ends a document; it becomes `<|endoftext|>`.

Text is cut into words, where a token can't lie across: before a space or a line's end that follows something else. What
a word was once encoded to is remembered: tiny Shakespeare's 203,000 words are 27,000 different ones. Of text in which
every fiftieth word is new, one core encodes 25 MB a second, by tiktoken alone 16 to 17. Processes, since all this holds
Python's lock; started as a program each, so whoever calls this needs no guard against being imported again.
"""

import json
import os
import queue
import re
import struct
import subprocess
import sys
import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from octavo import files, tokenizers
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

END = b"\xff"  # of a document
_CUT = b"\xfe"  # no UTF-8 has this either
_REMEMBERED = 300_000  # words, some 60 MB
_FEW = 16 << 20  # characters that are encoded before a second process has started
# White space of more than one byte, before a place that looks like a word's beginning.
_WIDE_SPACE = re.compile(
    rb"(?:\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)(?=[ \n])"
)


class Encoder:
    """A tokenizer for whole pieces of a corpus. `unknown` is `Tokenizer.encode`'s."""

    def __init__(self, tokenizer: Tokenizer, unknown: str = "error") -> None:
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
        self._tokenizer, self._unknown = tokenizer, unknown
        self._end = np.array([] if tokenizer.end_of_text is None else [tokenizer.end_of_text], self.dtype)
        self._words = _Words(self._word) if tokenizer.splits_at_spaces else None

    def encode(self, piece: bytes) -> np.ndarray:
        """The ids of a piece (T,), as small as the vocabulary allows."""
        if self._words is not None:
            return np.frombuffer(b"".join(map(self._words.__getitem__, words(piece))), self.dtype)
        first, *others = (self._ids(document) for document in piece.split(END))
        return np.concatenate([first, *(part for ids in others for part in (self._end, ids))])

    def _ids(self, document: bytes) -> np.ndarray:
        return self._tokenizer.encode(document.decode(), self._unknown).astype(self.dtype)

    def _word(self, word: bytes) -> bytes:
        if word == END:
            return self._end.tobytes()
        return array(self.dtype.char, self._tokenizer.encode_word(word.decode())).tobytes()


class _Words(dict[bytes, bytes]):
    """The ids of every word met so far, as bytes."""

    def __init__(self, ids: Callable[[bytes], bytes]) -> None:
        self._of = ids

    def __missing__(self, word: bytes) -> bytes:
        if len(self) >= _REMEMBERED:
            self.clear()
        self[word] = ids = self._of(word)
        return ids


def words(piece: bytes) -> list[bytes]:
    """The piece, cut before each space or line's end that follows something else, and around each document's end."""
    letters = np.frombuffer(piece, np.uint8)
    space, end = (letters == 0x20) | (letters == 0x0A), letters == 0xFF
    white = space | ((letters >= 0x09) & (letters <= 0x0D))
    begins = np.zeros(len(letters), dtype=bool)
    begins[1:] = (space[1:] & ~white[:-1]) | end[:-1] | end[1:]
    for found in _WIDE_SPACE.finditer(piece):
        begins[found.end()] = False
    return np.insert(letters, np.flatnonzero(begins), _CUT[0]).tobytes().split(_CUT)


def encoded(tokenizer: Tokenizer, pieces: Iterable[bytes], size: int) -> Iterator[np.ndarray]:
    """The ids of each piece, in order. A corpus of more than a few characters is encoded on all cores.

    `size` is about how many characters there are. Raises `OctavoError` for characters without an id.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if size < _FEW or cores == 1:
        yield from map(Encoder(tokenizer).encode, pieces)
        return
    with ExitStack() as stack:
        with files.translate_disk_errors(Path(tempfile.gettempdir())):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tokenizer.save(folder)
        idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(cores):
            idle.put(stack.enter_context(_Worker(folder)))

        def ask(piece: bytes) -> np.ndarray:
            worker = idle.get()
            try:
                return worker.encode(piece)
            finally:
                idle.put(worker)

        pool = ThreadPoolExecutor(cores)
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting: deque[Future[np.ndarray]] = deque()
        for piece in pieces:
            waiting.append(pool.submit(ask, piece))
            if len(waiting) > 2 * cores:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# Another process. Frames of eight bytes of length and what is meant: pieces there, ids or an error back.


class _Worker:
    """A process that encodes what it is given."""

    def __init__(self, folder: Path) -> None:
        program = (  # Ctrl-C is for whoever started this
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"sys.path[:] = {sys.path!r}; from octavo.data import encoding; encoding.work()"
        )
        self._process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE)  # fmt: skip

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def encode(self, piece: bytes) -> np.ndarray:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            _send(self._process.stdin, piece)
            answer = _received(self._process.stdout)
        except OSError:
            answer = None
        if answer is None:
            raise OctavoError("a process that encoded the text was ended from outside, perhaps for want of memory",
                              "the same again: what was finished stays")  # fmt: skip
        kind, content = answer[:1], answer[1:]
        if kind == b"!":
            raise OctavoError(*json.loads(content))
        return np.frombuffer(content, np.uint16 if kind == b"2" else np.uint32)


def work() -> None:
    """What such a process does: load a tokenizer, and answer until nothing more comes."""
    encoder = Encoder(tokenizers.load(Path(sys.argv[1])))
    while (piece := _received(sys.stdin.buffer)) is not None:
        try:
            ids = encoder.encode(piece)
            _send(sys.stdout.buffer, str(ids.itemsize).encode() + ids.tobytes())
        except OctavoError as error:
            _send(sys.stdout.buffer, b"!" + json.dumps([error.message, error.hint]).encode())


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(struct.pack("<Q", len(content)))
    stream.write(content)
    stream.flush()


def _received(stream: IO[bytes]) -> bytes | None:
    """A frame; None where no more comes."""
    length = stream.read(8)
    if len(length) < 8:
        return None
    (size,) = struct.unpack("<Q", length)
    content = stream.read(size)
    return content if len(content) == size else None
