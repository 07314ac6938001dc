"""Encode text on all cores: threads, each with an `Encoder`, or with a worker process that has one.

Encoding in C does not hold Python's global interpreter lock, so threads are enough. All other encoders hold it: they
run in worker processes, and each thread sends a text to an idle worker and waits for its ids.

Workers are started by `subprocess`, not by `concurrent.futures.ProcessPoolExecutor`, for two reasons, both measured
with Python 3.11. A spawned worker of that pool imports the caller's `__main__` again, so a script that prepares a
text without an `if __name__ == "__main__"` guard ends with BrokenProcessPool, and a script that imports torch loads
it in every worker. And if the parent is killed by SIGKILL, the workers of that pool never end, whereas the workers of
this module end when their input is closed.
"""

import ctypes
import os
import pickle
import queue
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import numpy as np

from octavo import files, tokenizers
from octavo.data.encoder import Encoder
from octavo.data.limits import Limits
from octavo.data.word_table import WordTable
from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer

K = TypeVar("K")


def choose_cores(characters: int, limits: Limits) -> int:
    """The number of cores on which to encode a text of this many characters."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if characters < limits.single_process_characters else cores


def encode_texts(
    tokenizer: Tokenizer,
    texts: Iterable[tuple[K, bytes]],
    cores: int,
    special_tokens: bool = False,
    functions: ctypes.CDLL | None = None,
) -> Iterator[tuple[K, np.ndarray]]:
    """Yield the ids of each text, in order, with the key that came with the text.

    `functions` is the C library, if it is to be used. Raises `OctavoError` for characters that the tokenizer does not
    have, and if a worker is killed.
    """
    encoder = Encoder(tokenizer, special_tokens=special_tokens, functions=functions)
    if cores == 1:
        for key, text in texts:
            yield key, encoder.encode(text)
        return
    with ExitStack() as stack:
        idle: queue.SimpleQueue[Encoder | _Worker] = queue.SimpleQueue()
        if isinstance(encoder.words, WordTable):
            for _ in range(cores):
                idle.put(Encoder(tokenizer, special_tokens=special_tokens, functions=functions))
        else:
            with files.translate_disk_errors(Path(tempfile.gettempdir())):
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                tokenizer.save(folder)
            for _ in range(cores):
                idle.put(stack.enter_context(_Worker(folder, special_tokens)))

        def encode(text: bytes) -> np.ndarray:
            encoder = idle.get()
            try:
                return encoder.encode(text)
            finally:
                idle.put(encoder)

        threads = ThreadPoolExecutor(cores)
        stack.callback(threads.shutdown, cancel_futures=True)
        pending: deque[tuple[K, Future[np.ndarray]]] = deque()
        for key, text in texts:
            pending.append((key, threads.submit(encode, text)))
            if len(pending) > 2 * cores:
                oldest_key, oldest_ids = pending.popleft()
                yield oldest_key, oldest_ids.result()
        for key, future_ids in pending:
            yield key, future_ids.result()


class _Worker:
    """A process that receives pickled texts on standard input and answers with pickled ids, or an error."""

    def __init__(self, folder: Path, special_tokens: bool) -> None:
        program = (  # Ctrl-C interrupts the parent only, which then ends its workers
            "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
            f"sys.path[:] = {sys.path!r}; from octavo.data import encoder_pool; "
            f"encoder_pool.run_worker(sys.argv[1], {special_tokens})"
        )
        command = [sys.executable, "-c", program, str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def encode(self, text: bytes) -> np.ndarray:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(text, self._process.stdin)
            self._process.stdin.flush()
            answer: np.ndarray | OctavoError = pickle.load(self._process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            raise OctavoError(
                "a process that encoded the text was killed, perhaps because memory ran out",
                "the same command again: finished shards are kept",
            ) from None
        if isinstance(answer, OctavoError):
            raise answer
        return answer


def run_worker(folder: str, special_tokens: bool) -> None:
    """The main function of a worker: load the tokenizer, and answer until the input ends."""
    encoder = Encoder(tokenizers.load(Path(folder)), special_tokens=special_tokens)
    while True:
        try:
            text: bytes = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: np.ndarray | OctavoError
        try:
            answer = encoder.encode(text)
        except OctavoError as error:
            answer = error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()
