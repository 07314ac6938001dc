"""Build the batch of the next step in a thread while a step runs, where that is worth it.

A batch whose tokens are in the page cache takes a few 100 microseconds, less than a thread costs beside the threads of
a step on a CPU. On a GPU, or if tokens come from a slow disk, it takes a larger part of a step.
"""

import threading
import time
from types import TracebackType

import numpy as np

from octavo.data.sampler import BatchOfStep


class Prefetch:
    """A `BatchOfStep` that returns the batches of another one, some of which it has built ahead.

    It builds a batch ahead if the one before took more than `worth` of the time between two calls, and if the next call
    may ask for it: the batches are those of steps below `max_steps`. An error is raised by the call that asks for the
    batch. As a context manager, it waits at the end for the thread.
    """

    def __init__(self, batch_of_step: BatchOfStep, max_steps: int, worth: float = 0.05) -> None:
        self._batch_of_step, self._max_steps, self._worth = batch_of_step, max_steps, worth
        self._ahead: _Build | None = None
        self._returned_at: float | None = None  # of the previous call

    def __enter__(self) -> "Prefetch":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._wait()

    def __call__(self, step: int, skipped: int = 0) -> np.ndarray:
        called_at, build = time.perf_counter(), self._wait()
        if build is None or (build.step, build.skipped) != (step, skipped):  # another after a rollback
            build = _Build(self._batch_of_step, step, skipped)
            build.run()
        if build.error is not None:
            raise build.error
        assert build.batch is not None
        interval = None if self._returned_at is None else called_at - self._returned_at
        if interval is not None and build.seconds > self._worth * interval and step + 1 < self._max_steps:
            self._ahead = _Build(self._batch_of_step, step + 1, skipped)
            self._ahead.start()
        self._returned_at = time.perf_counter()
        return build.batch

    def _wait(self) -> "_Build | None":
        """The batch that was built ahead, if there is one."""
        build, self._ahead = self._ahead, None
        if build is not None:
            build.join()
        return build


class _Build(threading.Thread):
    """Builds one batch."""

    def __init__(self, batch_of_step: BatchOfStep, step: int, skipped: int) -> None:
        super().__init__(daemon=True)  # if the disk hangs, Ctrl-C can still end the process
        self._batch_of_step, self.step, self.skipped = batch_of_step, step, skipped
        self.batch: np.ndarray | None = None
        self.error: Exception | None = None
        self.seconds = 0.0

    def run(self) -> None:
        start = time.perf_counter()
        try:
            self.batch = self._batch_of_step(self.step, self.skipped)
        except Exception as error:
            self.error = error
        self.seconds = time.perf_counter() - start
