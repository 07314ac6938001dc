"""The times of a run: elapsed time, time spent in updates, and an estimate of the total time.

Throughput is computed from the time in updates, which leaves out evaluations, samples and checkpoints.
"""

import time

from octavo import estimate
from octavo.settings import Settings
from octavo.training.event import TimeEstimate


class Clock:
    """Runs from the moment it is built. A resumed run continues the times of its checkpoint."""

    def __init__(self, estimate_after: float) -> None:
        self.estimate_after = estimate_after  # seconds in updates before `estimate_total` returns an estimate
        self.update_seconds = 0.0  # spent in updates, up to the last `end_interval`
        self._start = self._counted_until = time.perf_counter()
        self._interval_seconds = 0.0  # spent in updates since the last `end_interval`
        self._baseline: tuple[int, float] | None = None  # (step, update_seconds) after the first, slow steps
        self._has_estimated = False

    def restore(self, elapsed: float, update_seconds: float) -> None:
        """Continue from a checkpoint's times. The pause between the two processes does not count."""
        self._start -= elapsed
        self.update_seconds = update_seconds

    def roll_back(self) -> None:
        """Continue at an earlier step. The time in lost updates counts, up to the last `add_update_time`.

        If the estimate is still due, it is based on the updates after this call.
        """
        self.end_interval()
        self._baseline = None

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, rounded to milliseconds."""
        return round(time.perf_counter() - self._start, 3)

    def start_updates(self) -> None:
        """Start to count time as time in updates."""
        self._counted_until = time.perf_counter()

    def add_update_time(self) -> None:
        """Add the time since `start_updates`, or since the previous call, to the time in updates.

        Call it when the device has finished the newest update.
        """
        now = time.perf_counter()
        self._interval_seconds += now - self._counted_until
        self._counted_until = now

    def end_interval(self) -> float:
        """Return the seconds in updates since the previous call."""
        seconds, self._interval_seconds = self._interval_seconds, 0.0
        self.update_seconds += seconds
        return seconds

    def estimate_total(self, step: int, settings: Settings, evaluation_tokens: int) -> TimeEstimate | None:
        """Estimate the total time of the run, once: at the end of an interval, after `estimate_after` seconds.

        Returns None at all other times. The first interval, in which caches and kernels are still cold, does not count.
        """
        if self._baseline is None:
            self._baseline = step, self.update_seconds
        steps, seconds = step - self._baseline[0], self.update_seconds - self._baseline[1]
        if self._has_estimated or not steps or seconds < self.estimate_after or step == settings.max_steps:
            return None
        self._has_estimated = True
        in_curriculum = step <= settings.curriculum_fraction * settings.max_steps
        length = settings.block_size // (settings.curriculum_splits if in_curriculum else 1)
        timing = estimate.timing_from_step(settings, seconds / steps, length)
        total = sum(estimate.seconds_by_part(settings, timing, evaluation_tokens).values())
        remaining = total * (1 - step / settings.max_steps)
        tokens = steps * settings.batch_size * settings.block_size
        return TimeEstimate(round(self.elapsed + remaining, 1), round(tokens / seconds, 1))
