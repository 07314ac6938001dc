"""The thread that runs a model, and the models that are served.

Everything that touches an engine happens in the worker's thread, detokenization included. So the event loop never waits
for a model, and a stop string frees its slot at once.
"""

import asyncio
import collections
import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from octavo.checkpoint import TRAINER_FILES, Checkpoint
from octavo.errors import OctavoError
from octavo.generation.engine import Engine
from octavo.generation.stream import TextStream
from octavo.runs import Run, step_of
from octavo.server import log
from octavo.server.api_error import ApiError


class Worker:
    """Steps one engine in a thread, which sleeps while there is nothing to generate."""

    def __init__(self, engine: Engine, max_queue: int) -> None:
        """At most `max_queue` completions may wait for a slot."""
        self.engine = engine
        self.broken = False  # the engine raised an unexpected exception; it is not used again
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
        """How many completions have no slot yet."""
        return len(self._inbox) + self.engine.waiting

    @property
    def streams(self) -> list[TextStream]:
        """The completions that were started and are not complete."""
        return [stream for stream in list(self._running) if stream.finish_reason is None]

    def submit(self, streams: Sequence[TextStream]) -> None:
        """Queue all of these completions or none. Raises `ApiError` if the queue is full or the engine is broken."""
        self._require_working()
        capacity = self.engine.slots + self._max_queue
        free = capacity - self.engine.running - self.waiting
        # A request larger than the whole capacity is accepted if nothing else waits; otherwise it never could be.
        oversized = len(streams) > capacity and not self.waiting
        if len(streams) > free and not oversized:
            raise ApiError(
                429,
                f"{self.waiting} completions are waiting already: try again in a moment",
                code="rate_limit_exceeded",
            )
        with self._lock:
            self._inbox.extend(streams)
            if self._thread is None:
                self._start_thread()
        self._wake.set()
        self._require_working()  # it may have failed a moment ago, without an error for these completions

    def _require_working(self) -> None:
        if self.broken:
            raise ApiError(503, "the model has failed; the server must be restarted")

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
        """Whether this worker is retired, and all its texts are complete."""
        return self._thread is None

    def _start_thread(self) -> None:
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()  # before the inbox is read, so that a completion that arrives later wakes the thread
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
        except Exception:  # a bug: without this, requests would hang while the server looks healthy
            self.broken = True
            log.LOGGER.exception("an engine failed")
            for stream in [*self.streams, *self._inbox]:
                stream.fail(OctavoError("the model failed; the server's log has the traceback"))
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
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server was stopped by a second signal
                loop.call_soon_threadsafe(_call_all, calls)


def _call_all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


class Version(NamedTuple):
    """Which weights a run offers: a checkpoint, and the state of the files that are loaded."""

    folder: Path
    files: frozenset[tuple[str, int, int, int]]  # name, size, modification time, inode

    @classmethod
    def of_run(cls, run: Run, pointer: str | None = None) -> "Version | None":
        """The best checkpoint, else the last; or that of `pointer`. None without one, or while it is being replaced."""
        folder = {None: run.best or run.last, "best": run.best, "last": run.last}[pointer]
        try:
            entries = [(entry.name, entry.stat()) for entry in os.scandir(folder)] if folder else []
        except OSError:
            return None
        files = frozenset((name, state.st_size, state.st_mtime_ns, state.st_ino) for name, state in entries)
        return cls(folder, files) if folder else None

    @property
    def weights(self) -> "Version":
        """Without the trainer's state and the manifest, which change when training strips a checkpoint."""
        kept = (file for file in self.files if file[0] not in (*TRAINER_FILES, "manifest.json"))
        return Version(self.folder, frozenset(kept))


@dataclass(frozen=True)
class ServedModel:
    """A model and the worker that runs it."""

    id: str  # the name that clients use
    checkpoint: Checkpoint
    worker: Worker
    created: int  # when the checkpoint was written, Unix time
    overflow: str = "stop"
    run: Run | None = None  # the run that the checkpoint belongs to; None if it belongs to none
    pointer: str | None = None  # `last` or `best`, if the served checkpoint is always that one
    version: Version | None = None  # what the run offered when this was loaded; None without a run
    own_chat_template: str | None = None  # in place of the checkpoint's

    @property
    def steps(self) -> dict[int, Path]:
        """The run's checkpoints by step, as they are now."""
        return self.run.checkpoints if self.run else {}

    @property
    def step(self) -> int | None:
        """The step of the served checkpoint; None if it belongs to no run."""
        return step_of(self.checkpoint.folder) if self.run else None

    @property
    def chat_template(self) -> str | None:
        """The Jinja2 template by which conversations are written; None: as plain transcripts."""
        return self.own_chat_template or self.checkpoint.tokenizer.chat_template
