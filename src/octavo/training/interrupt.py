"""Ctrl-C, SIGTERM and SIGHUP end a run with a checkpoint."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

# A terminal and a wrapper such as make may both send the signal of one Ctrl-C. A second one within this many seconds
# is the same request.
REPEAT_SECONDS = 1.0

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """The `should_stop` of `events`: true after a signal. `signal` is the number of that signal, or None.

    Its attributes are plain values. A `threading.Event` has a lock: a second signal that arrives while the first is
    being handled would deadlock.
    """

    def __init__(self, previous: Mapping[int, Any] | None = None, announced: Collection[int] | None = None) -> None:
        self.previous = previous or {}  # the earlier handler of each signal
        # Signals after which a message says that training will stop.
        self.announced = _SIGNALS if announced is None else announced
        self.signal: int | None = None
        self.has_stepped = False
        self._requested_at = 0.0  # of the monotonic clock

    def __call__(self) -> bool:
        self.has_stepped = True  # `events` calls this after a step, or in an evaluation that a resumed run repeats
        return self.signal is not None

    def handle(self, number: int, frame: object) -> None:
        """Handle a signal. Raises `KeyboardInterrupt` for a second Ctrl-C.

        Before the first step there is nothing to save: calls the previous handler, then raises `KeyboardInterrupt`.
        """
        if not self.has_stepped:
            previous = self.previous.get(number)
            if callable(previous):
                previous(number, frame)
            raise KeyboardInterrupt
        if self.signal is not None:
            if number == signal.SIGINT and time.monotonic() - self._requested_at > REPEAT_SECONDS:
                raise KeyboardInterrupt
            return
        self.signal, self._requested_at = number, time.monotonic()
        if number not in self.announced:
            return
        with contextlib.suppress(OSError):  # not print: a stream is not reentrant
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _MESSAGE)


_MESSAGE = b"\nsaving a checkpoint, then stopping (Ctrl-C again stops at once)\n"


@contextlib.contextmanager
def interruptible(announced: Collection[int] | None = None) -> Iterator[Stop]:
    """Handle SIGINT, SIGTERM and SIGHUP, and yield the `should_stop` of `events`, which is true after one of them.

    A signal that is ignored when the process starts (nohup) stays ignored. Only the main thread can handle
    signals; in another one, `should_stop` always returns false. After a signal in `announced`, or after any signal if
    it is None, a message says that training will stop.
    """
    previous = {number: signal.getsignal(number) for number in _SIGNALS}
    stop = Stop(previous, announced)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number in handled:
            signal.signal(number, previous[number])
