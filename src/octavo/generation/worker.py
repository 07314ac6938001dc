"""A thread that steps an engine, for a caller that must not wait for a model, such as an event loop.

Everything that touches the engine happens in the worker's thread, detokenization included. So a stop string frees its
slot at once.
"""

import asyncio
import collections
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence

from octavo.errors import OctavoError
from octavo.generation.engine import Engine
from octavo.generation.stream import TextStream

_LOGGER = logging.getLogger(__name__)


class QueueFullError(OctavoError):
    """The queue is full: no more texts may wait for a slot."""


class EngineFailedError(OctavoError):
    """The engine raised an unexpected exception, and is not used again."""


class Worker:
    """Steps one engine in a thread, which sleeps while there is nothing to generate."""

    def __init__(self, engine: Engine, max_queue: int) -> None:
        """At most `max_queue` texts may wait for a slot."""
        self.engine = engine
        self.broken = False  # whether the engine raised an unexpected exception; it is not used again
        self._max_queue = max_queue
        self._inbox: collections.deque[TextStream] = collections.deque()
        self._running: list[TextStream] = []
        self._posted: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._closing = False
        self._wake = threading.Event()
        self._retired = False
        self._lock = threading.Lock()  # guards `_thread`, and `_inbox` while `submit` adds to it
        self._thread: threading.Thread | None = None
        self._start_thread()

    @property
    def waiting(self) -> int:
        """How many texts have no slot yet."""
        return len(self._inbox) + self.engine.waiting

    @property
    def streams(self) -> list[TextStream]:
        """The texts that were started and are not complete."""
        return [stream for stream in list(self._running) if stream.finish_reason is None]

    def submit(self, streams: Sequence[TextStream]) -> None:
        """Queue all of these texts or none. Raises `QueueFullError` or `EngineFailedError`."""
        self._require_working()
        capacity = self.engine.slots + self._max_queue
        free = capacity - self.engine.running - self.waiting
        # A request larger than the whole capacity would never be accepted, so it is accepted if nothing else waits.
        oversized = len(streams) > capacity and not self.waiting
        if len(streams) > free and not oversized:
            raise QueueFullError(f"{self.waiting} texts are waiting already: try again in a moment")
        with self._lock:
            self._inbox.extend(streams)
            if self._thread is None:
                self._start_thread()
        self._wake.set()
        self._require_working()  # it may have failed a moment ago, without an error for these texts

    def _require_working(self) -> None:
        if self.broken:
            raise EngineFailedError("the model has failed")

    def post(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        """Schedule a call in an event loop at the end of the current step. For the worker's thread only."""
        self._posted.append((loop, call))

    def close(self) -> None:
        """Finish the current step and end the thread."""
        self._closing = True
        self._wake.set()
        if (thread := self._thread) is not None:
            thread.join(timeout=10)

    def retire(self) -> None:
        """End the thread once all texts are complete, because another worker has taken this one's place.

        A request that found this worker before can still submit its texts: then the thread starts again.
        """
        self._retired = True
        self._wake.set()

    @property
    def has_ended(self) -> bool:
        """Whether this worker is retired and all its texts are complete, or its engine has failed."""
        return self.broken or self._thread is None

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()  # before the inbox is read, so that a text that arrives later wakes the thread
                while self._inbox:
                    self._start(self._inbox.popleft())
                worked = self.engine.step()
                self._running = self.streams
                self._flush()
                if not worked:
                    with self._lock:
                        if self._retired and not self._inbox:
                            self._thread = None
                            return
                    self._wake.wait()
        except Exception:  # a bug: without this, the texts would never end
            self.broken = True
            _LOGGER.exception("an engine failed")
            for stream in [*self.streams, *self._inbox]:
                with contextlib.suppress(Exception):  # the others have to learn of it too
                    stream.fail(EngineFailedError("the model failed; the log has the traceback"))
            self._flush()

    def _start(self, stream: TextStream) -> None:
        self._running.append(stream)
        try:
            stream.start(self.engine)
        except OctavoError as error:
            stream.fail(error)

    def _flush(self) -> None:
        """Run all posted calls with one wake-up of each event loop: every wake-up costs the engine time."""
        posted, self._posted = self._posted, []
        for loop in {loop for loop, _ in posted}:
            calls = [call for target, call in posted if target is loop]
            with contextlib.suppress(RuntimeError):  # the loop is closed: its program ends
                loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
