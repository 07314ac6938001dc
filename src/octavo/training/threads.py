"""How many threads a step runs in on a CPU: fewer while other programs need the cores.

The threads of a matmul wait for each other. If another program takes a core from one of them, all wait until it runs
again, hundreds of times in a step: on two cores beside two busy programs, a step in two threads took twenty times as
long as in one. So when there are many involuntary context switches, fewer threads are tried, and kept if steps are
faster. From time to time more are tried again.

Steps have the same bits in any number of threads (`octavo.training.fused_step`), so losses do not depend on this.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

_MAX_SWITCHES = 40.0  # per second and thread; beyond that, threads compete: Linux's time slices are some milliseconds
_STEPS = 3  # threads compete in this many steps before fewer are tried; a trial has as many, without its first
_RETRY_SECONDS = 10.0  # until the same number is tried again


def count_context_switches() -> int:
    """The involuntary context switches of this process so far; 0 if the system does not report them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource else 0


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
    ) -> None:
        self.most = torch.get_num_threads()
        self._clock, self._context_switches = clock, context_switches
        self._threads = self.most  # of the next step
        self._trial: _Trial | None = None
        self._seconds: list[float] = []  # of the last steps with this number of threads
        self._competing_steps = 0  # the last steps in a row in which threads competed for the cores
        self._start = (0.0, 0)
        self._try_fewer_after = self._try_more_after = -1.0
        self._notices: list[str] = []
        self._has_noticed = False

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
        self._competing_steps = self._competing_steps + 1 if is_competing else 0
        if self._trial:
            if len(self._seconds) == _STEPS:
                self._end_trial(self._trial, now)
        elif self._competing_steps >= _STEPS and now > self._try_fewer_after:
            self._use(self._threads // 2, _Trial(self._threads, min(self._seconds)))
        elif self._threads < self.most and now > self._try_more_after:
            self._use(min(self.most, 2 * self._threads), _Trial(self._threads, min(self._seconds)))

    def take_notices(self) -> list[str]:
        """Return a notice, once, after steps have begun to run in fewer threads."""
        notices, self._notices = self._notices, []
        return notices

    def _use(self, threads: int, trial: _Trial | None = None) -> None:
        self._threads, self._trial, self._seconds, self._competing_steps = threads, trial, [], 0

    def _end_trial(self, trial: _Trial, now: float) -> None:
        """Keep the number of threads if steps are faster with it. If not, try even fewer, or return to the former."""
        is_faster, is_fewer = min(self._seconds[1:]) < 0.9 * trial.seconds_before, self._threads < trial.threads_before
        if is_fewer and not is_faster and self._threads > 1:
            self._use(self._threads // 2, trial)
            return
        if is_fewer and is_faster and not self._has_noticed:
            self._has_noticed = True
            count = f"{self._threads} of {self.most} threads"
            self._notices.append(f"other programs use the processor: steps run in {count} until it is free")
        if is_fewer and not is_faster:
            self._try_fewer_after = now + _RETRY_SECONDS
        if is_fewer == is_faster:  # fewer are faster, or more are not
            self._try_more_after = now + _RETRY_SECONDS
        self._use(self._threads if is_faster else trial.threads_before)
