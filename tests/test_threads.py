"""Steps run in fewer threads while other programs need the cores, and in all again when they end."""

from collections.abc import Iterator

import pytest
import torch

from octavo.training.threads import ThreadControl, count_context_switches


class Machine:
    """A machine with four cores, of which other programs use some. Time passes only in steps."""

    def __init__(self) -> None:
        self.now, self.context_switches, self.busy = 0.0, 0, 0
        self.control = ThreadControl(lambda: self.now, lambda: self.context_switches)

    def step(self) -> float:
        """Run a step: its threads wait for those whose core another program has. Returns its seconds."""
        start = self.now
        with self.control:
            threads = torch.get_num_threads()
            is_contended = threads + self.busy > 4
            self.now += 1 / threads * (20 if is_contended and threads > 1 else 1)
            self.context_switches += 1 + int(is_contended * 500 * (self.now - start))
        return self.now - start

    def run(self, seconds: float) -> list[float]:
        end = self.now + seconds
        return [self.step() for _ in iter(lambda: self.now < end, False)]


@pytest.fixture
def machine() -> Iterator[Machine]:
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield Machine()
    torch.set_num_threads(threads)


def test_a_quiet_machine_uses_all_threads(machine: Machine) -> None:
    assert max(machine.run(60)) == 0.25
    assert machine.control.take_notices() == []


@pytest.mark.parametrize(("busy", "threads"), [(1, 2), (2, 2), (3, 1), (9, 1)])
def test_beside_busy_programs_steps_run_in_the_threads_that_are_fastest(
    machine: Machine, busy: int, threads: int
) -> None:
    machine.busy = busy
    machine.run(100)
    [notice] = machine.control.take_notices()
    assert f"in {threads} of 4 threads" in notice
    seconds = machine.run(100)
    assert sorted(seconds)[len(seconds) // 2] == 1 / threads  # all but the trials of more threads
    assert machine.control.take_notices() == []


def test_all_threads_are_used_again_when_the_other_programs_end(machine: Machine) -> None:
    machine.busy = 3
    machine.run(100)
    machine.busy = 0
    machine.run(100)
    assert max(machine.run(20)) == 0.25


def test_threads_that_are_interrupted_but_not_slower_stay(machine: Machine) -> None:
    threads = []
    for _ in range(100):
        with machine.control:
            machine.now += 1 / torch.get_num_threads()
            machine.context_switches += 500
        threads.append(torch.get_num_threads())
    assert sorted(threads)[len(threads) // 4] == 4  # the others are trials


def test_context_switches_are_counted() -> None:
    assert count_context_switches() >= 0
