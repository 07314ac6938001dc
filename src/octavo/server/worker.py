"""The thread that runs a model. Whoever wants something of the engine leaves it here and is told as it comes.

Everything that touches an engine happens in its own thread, the text work of a token included, so the event loop
never waits for a model, and a stop string frees its slot at once.
"""

import asyncio
import collections
import contextlib
import functools
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.engine import Engine, Job, Request, Token
from octavo.runs import Run, step_of
from octavo.server.protocol import ApiError


class Task:
    """A request to the engine and, once its thread has taken it, the job that it became."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.job: Job | None = None
        self.failed = False
        self._cancelled = False

    def deliver(self, token: Token | None) -> None:
        """Called in the engine's thread with each token, and with None at the end."""
        raise NotImplementedError

    def cancel(self, engine: Engine) -> None:
        """End it, from any thread: the slot is free at the engine's next step."""
        self._cancelled = True
        if self.job is not None:
            engine.cancel(self.job)

    def begin(self, engine: Engine, job: Job) -> None:
        """The engine has taken it. Writes `job`, reads `_cancelled`; `cancel` does the reverse, so none is lost."""
        self.job = job
        if self._cancelled:
            engine.cancel(job)


class Worker:
    """Steps one engine in a thread of its own, which sleeps while there is nothing to do."""

    def __init__(self, engine: Engine, queue: int) -> None:
        self.engine = engine
        self.broken = False  # the engine failed in a way that it doesn't know; it is asked nothing more
        self._queue = queue
        self._inbox: collections.deque[Task] = collections.deque()
        self._live: set[Task] = set()
        self._said: list[tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = []
        self._closing = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Tasks without a slot."""
        return len(self._inbox) + self.engine.waiting

    def submit(self, tasks: Sequence[Task]) -> None:
        """Take all tasks or none. Raises `ApiError` where the queue is full, or the engine broken."""
        if self.broken:
            raise ApiError(503, "the model has failed; its server must be started anew")
        holds = self.engine.slots + self._queue
        room = holds - self.engine.running - self.waiting
        alone = len(tasks) > holds and not self.waiting  # more than the queue ever holds: served when nobody waits
        if len(tasks) > room and not alone:
            raise ApiError(429, f"{self.waiting} texts are waiting already: try again in a moment",
                          code="rate_limit_exceeded")  # fmt: skip
        self._inbox.extend(tasks)
        self._wake.set()

    def say(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        """From the engine's thread: have `call` called in an event loop, when the step is over."""
        self._said.append((loop, call))

    def close(self) -> None:
        """Finish the step under way, and end the thread."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            while not self._closing:
                self._wake.clear()  # before looking, so that what comes while we look wakes us
                while self._inbox:
                    self._begin(self._inbox.popleft())
                worked = self.engine.step()
                self._flush()
                if not worked:
                    self._wake.wait()
        except Exception:  # no request's fault: else a request would hang, and the server look well
            self.broken = True
            traceback.print_exc(file=sys.stderr)
            for task in [*self._live, *self._inbox]:
                task.failed = True
                task.deliver(None)
            self._flush()

    def _flush(self) -> None:
        """Tell the event loop of all that a step brought, in one go: each waking costs the engine time."""
        said, self._said = self._said, []
        for loop in {loop for loop, _ in said}:
            with contextlib.suppress(RuntimeError):  # it is closed: the server was told twice to end
                loop.call_soon_threadsafe(_call, [call for its, call in said if its is loop])

    def _begin(self, task: Task) -> None:
        self._live.add(task)
        try:
            task.begin(self.engine, self.engine.submit(task.request, functools.partial(self._deliver, task)))
        except OctavoError:  # what a request may be was checked before it came here
            task.failed = True
            self._deliver(task, None)

    def _deliver(self, task: Task, token: Token | None) -> None:
        if token is None:
            self._live.discard(task)
        task.deliver(token)


def _call(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()


@dataclass(frozen=True)
class Served:
    """A model with its name, its worker, when its checkpoint was written, and the run that was named, if it is one."""

    id: str
    loaded: Checkpoint
    worker: Worker
    created: int
    overflow: str = "stop"
    run: Run | None = None

    @property
    def steps(self) -> dict[int, Path]:
        """The checkpoints that its run has kept, as of now."""
        return self.run.steps if self.run else {}

    @property
    def step(self) -> int | None:
        """Of its run, the one that is served."""
        return step_of(self.loaded.folder) if self.run else None
