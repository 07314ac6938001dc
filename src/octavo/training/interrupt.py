"""Ctrl-C and SIGTERM end a run with a checkpoint."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Handle SIGINT and SIGTERM. Yields the function `should_stop` for `events`: true after one of these signals.

    Before the first step there is nothing to save, so a signal raises `KeyboardInterrupt`; so does a second Ctrl-C.
    Only the main thread can handle signals; in another one, `should_stop` always returns false.
    """
    requested, has_stepped = threading.Event(), threading.Event()

    def should_stop() -> bool:
        has_stepped.set()  # `events` calls this after each step
        return requested.is_set()

    if threading.current_thread() is not threading.main_thread():
        yield should_stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: object) -> None:
        if not has_stepped.is_set():
            raise KeyboardInterrupt
        requested.set()
        signal.signal(signal.SIGINT, previous[signal.SIGINT])
        print("\nsaving a checkpoint after this step, then stopping (Ctrl-C again stops at once)", file=sys.stderr)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield should_stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
