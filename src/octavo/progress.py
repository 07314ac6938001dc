"""Long work that reports its progress and ends with a result: `Preparation`.

A function that prepares something is a generator: it yields `PreparationProgress` values and returns its result.
Another such function runs it with `dataset = yield from build_dataset(...)`, which passes the progress on.

The decorator `preparation` is for functions that other code calls too. It turns them into functions that return a
`Preparation`. The caller either iterates it, as training does, which yields the progress among its events, or reads
`.result`, which sends the progress to the listener of its thread, if there is one:

    with listen(print):      # optional
        dataset = prepare_dataset(settings).result

Work that is not a generator, such as a download or a view, sends its progress to the same listener with
`ProgressReporter` or `track`.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class PreparationProgress:
    """`done` of `total` units after `seconds` of this stage; `total` is None while it is unknown."""

    stage: str  # "reading", "training the tokenizer", "writing tokens", ...
    done: int
    total: int | None
    seconds: float
    unit: str = "characters"


class Preparation(Generic[T]):
    """Work in progress: an iterable of `PreparationProgress`, and the `result` that it ends with."""

    def __init__(self, work: Generator[PreparationProgress, None, T]) -> None:
        self._steps = self._run(work)

    def _run(self, work: Generator[PreparationProgress, None, T]) -> Generator[PreparationProgress, None, T]:
        self._result = yield from work
        return self._result

    def __iter__(self) -> Generator[PreparationProgress, None, T]:
        """Continue the work; iterating again continues where the last loop stopped."""
        return self._steps

    @property
    def result(self) -> T:
        """The result. Runs the work that is left, with its progress for the listener. Raises what the work raises."""
        listener = _listener.get()
        for progress in self._steps:
            listener(progress)
        return self._result


def preparation(function: Callable[P, Generator[PreparationProgress, None, T]]) -> Callable[P, Preparation[T]]:
    """Decorator: a generator function becomes one that returns a `Preparation`, much like `contextlib.contextmanager`.

    Nothing runs before the preparation is iterated or its result is read.
    """

    @functools.wraps(function)
    def start(*args: P.args, **kwargs: P.kwargs) -> Preparation[T]:
        return Preparation(function(*args, **kwargs))

    return start


class ProgressMeter:
    """Makes the `PreparationProgress` values of one stage, at most one in every `interval` seconds."""

    def __init__(self, stage: str, total: int | None = None, interval: float = 0.2, unit: str = "characters") -> None:
        self.stage, self.total, self.interval, self.unit = stage, total, interval, unit
        self._start = self._last = time.perf_counter()

    def report(self, done: int) -> Iterator[PreparationProgress]:
        """Yield one value if it is due. Use: `yield from meter.report(done)`."""
        now = time.perf_counter()
        if now - self._last >= self.interval:
            self._last = now
            yield PreparationProgress(self.stage, done, self.total, now - self._start, self.unit)


Listener = Callable[[PreparationProgress], object]
_listener: ContextVar[Listener] = ContextVar("listener", default=lambda progress: None)


@contextlib.contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Call `listener` with the progress of the work that this thread starts in the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class ProgressReporter:
    """Sends the progress of one stage to the listener of the thread that creates it. Other threads may call it."""

    def __init__(self, stage: str, total: int | None, unit: str) -> None:
        self._meter, self._listener = ProgressMeter(stage, total, unit=unit), _listener.get()

    def __call__(self, done: int, total: int | None = None) -> None:
        """Report the progress if it is due or complete. `total`: the total, if it was not known before."""
        self._meter.total = total or self._meter.total
        self._meter.interval = 0 if done == self._meter.total else 0.2
        for progress in self._meter.report(done):
            self._listener(progress)


def track(items: Sequence[T], stage: str, unit: str) -> Iterator[T]:
    """Yield the items, and report how many of them the caller has worked through."""
    report = ProgressReporter(stage, len(items), unit)
    for done, item in enumerate(items):
        report(done)
        yield item
