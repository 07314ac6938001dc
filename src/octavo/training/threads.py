"""How many threads a step runs in on a CPU: fewer while other programs need the cores.

The threads of a matmul wait for each other. If another program takes a core from one of them, all wait until it runs
again, hundreds of times in a step: on two cores beside two busy programs, a step in two threads took twenty times as
long as in one. So when there are many involuntary context switches, and another program runs, fewer threads are tried,
and kept if steps are faster. From time to time more are tried again. The first step has only as many threads as there
are free cores: with more, it could take ten seconds.

A step computes the same bits with any number of threads (`octavo.fused_step`), so losses do not depend on it.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_TASKS = Path("/proc/self/task")
# Involuntary switches per second and thread; with more, threads compete for cores. Linux's time slices are some
# milliseconds, so a thread that shares its core is switched out a hundred times per second.
_MAX_SWITCHES = 40.0
# Fewer threads are tried after threads have competed in this many steps in a row. A trial takes as many steps, the
# first of which is not counted.
_STEPS = 3
_COMPETING_SECONDS = 0.5  # fewer are also tried if such steps together take longer than this
_RETRY_SECONDS = 10.0  # until a number of threads that was slower is tried again
_FIRST_RETRY_SECONDS = 2.0  # until more threads than in the first step are tried


def count_context_switches() -> int:
    """The involuntary context switches of this process so far; 0 if the system does not report them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


def count_other_running() -> int:
    """The threads of other processes that run or wait for a core; 0 if the system does not report them."""
    try:
        with open("/proc/stat", encoding="ascii") as lines:
            running = next(int(line.split()[1]) for line in lines if line.startswith("procs_running"))
        states = [path.read_text(errors="replace").rpartition(")")[2].split()[0] for path in _TASKS.glob("*/stat")]
    except (OSError, StopIteration):  # another system; a thread has ended
        return 0
    return max(0, running - states.count("R"))


class _Trial(NamedTuple):
    """Another number of threads is being tried: the number before, and the seconds of a step with it."""

    threads_before: int
    seconds_before: float


class ThreadControl:
    """Sets PyTorch's threads for each step. A step is the body of a `with` statement."""

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        context_switches: Callable[[], int] = count_context_switches,
        other_running: Callable[[], int] = count_other_running,
        cores: int | None = None,
    ) -> None:
        self.max_threads = torch.get_num_threads()
        self._clock, self._context_switches, self._other_running = clock, context_switches, other_running
        free_cores = (cores or os.cpu_count() or 1) - _smallest(other_running)
        self._threads = min(self.max_threads, max(1, free_cores))  # of the next step
        self._trial: _Trial | None = None
        self._seconds: list[float] = []  # of the last steps with this number of threads
        self._competing_steps: list[float] = []  # seconds of the last steps in a row in which threads competed
        self._start = (0.0, 0)
        self._try_fewer_after, self._try_more_after = -1.0, self._clock() + _FIRST_RETRY_SECONDS
        self._notices: list[str] = []
        self._has_given_notice = False

    def __enter__(self) -> None:
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        self._start = self._clock(), self._context_switches()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._clock()
        seconds, switches = now - self._start[0], self._context_switches() - self._start[1]
        self._seconds = [*self._seconds[1 - _STEPS :], seconds]
        is_competing = self._threads > 1 and switches > _MAX_SWITCHES * self._threads * seconds
        # Without another program, the switches are due to this process, whose own thread writes a checkpoint.
        is_competing = is_competing and self._other_running() > 0
        self._competing_steps = [*self._competing_steps, seconds] if is_competing else []
        has_competed = len(self._competing_steps) >= _STEPS or sum(self._competing_steps) > _COMPETING_SECONDS
        if self._trial:
            if len(self._seconds) == _STEPS:
                self._end_trial(self._trial, now)
        elif has_competed and now > self._try_fewer_after:
            self._use(self._threads // 2, _Trial(self._threads, min(self._seconds)))
        elif self._threads < self.max_threads and now > self._try_more_after:
            self._use(min(self.max_threads, 2 * self._threads), _Trial(self._threads, min(self._seconds)))

    def take_notices(self) -> list[str]:
        """Return a notice, once, after steps have begun to run in fewer threads."""
        notices, self._notices = self._notices, []
        return notices

    def _use(self, threads: int, trial: _Trial | None = None) -> None:
        self._threads, self._trial, self._seconds, self._competing_steps = threads, trial, [], []

    def _end_trial(self, trial: _Trial, now: float) -> None:
        """Keep the number of threads if steps are faster with it. If not, try even fewer, or return to the former."""
        is_faster, is_fewer = min(self._seconds[1:]) < 0.9 * trial.seconds_before, self._threads < trial.threads_before
        if is_fewer and not is_faster and self._threads > 1:
            self._use(self._threads // 2, trial)
            return
        if is_fewer == is_faster and not self._has_given_notice:  # fewer are faster, or more are not
            self._has_given_notice = True
            count = f"{min(self._threads, trial.threads_before)} of {self.max_threads} threads"
            self._notices.append(f"other programs use the processor: steps run in {count} until it is free")
        if is_fewer and not is_faster:
            self._try_fewer_after = now + _RETRY_SECONDS
        if is_fewer == is_faster:
            self._try_more_after = now + _RETRY_SECONDS
        self._use(self._threads if is_faster else trial.threads_before)


@contextlib.contextmanager
def restore_threads() -> Iterator[None]:
    """Restore PyTorch's number of threads at the end of the block, in which a `ThreadControl` may change it.

    Without this, a process would train its next model in no more threads than the last step of this one had.
    """
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _smallest(count: Callable[[], int]) -> int:
    """The smallest of several counts within some milliseconds, since other programs often run for a moment."""
    counts = []
    for _ in range(5):
        counts.append(count())
        time.sleep(0.002)
    return min(counts)
