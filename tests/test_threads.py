"""Steps run in fewer threads while other programs need the cores, and in all again when they end."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import small_runs
from octavo import training
from octavo.training.step import Trainer
from octavo.training.threads import ThreadControl, count_context_switches, count_other_running


class Machine:
    """A machine with four cores, of which other programs use some. Time passes only in steps."""

    def __init__(self) -> None:
        self.now, self.context_switches, self.busy = 0.0, 0, 0
        self.is_writing = False  # a thread of this process, a checkpoint
        self.control = self.create_control()

    def create_control(self) -> ThreadControl:
        return ThreadControl(lambda: self.now, lambda: self.context_switches, lambda: self.busy, cores=4)

    def step(self) -> float:
        """Run a step: its threads wait for those whose core another program has. Returns its seconds."""
        start = self.now
        with self.control:
            threads = torch.get_num_threads()
            is_contended = threads + self.busy > 4
            self.now += 1 / threads * (20 if is_contended and threads > 1 else 1)
            self.context_switches += 1 + int((is_contended or self.is_writing) * 500 * (self.now - start))
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


def test_threads_of_the_process_itself_do_not_count_as_other_programs(machine: Machine) -> None:
    machine.is_writing = True
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


@pytest.mark.parametrize("busy", [0, 1, 2, 3, 9])
def test_the_first_step_has_the_threads_that_find_a_core(machine: Machine, busy: int) -> None:
    machine.busy = busy
    machine.control = machine.create_control()
    machine.step()
    assert torch.get_num_threads() == max(1, 4 - busy)
    machine.run(100)
    assert len(machine.control.take_notices()) == min(1, busy)
    machine.busy = 0
    machine.run(100)
    assert max(machine.run(20)) == 0.25


def test_long_steps_compete_less_often_before_fewer_threads_are_tried(machine: Machine) -> None:
    machine.busy = 3
    machine.step()  # five seconds
    machine.step()
    assert torch.get_num_threads() == 2


def test_after_a_run_pytorch_has_as_many_threads_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_runs.enter_folder(tmp_path, monkeypatch)
    end_step, threads = Trainer.end_step, torch.get_num_threads()

    def end_with_fewer_threads(trainer: Trainer) -> None:
        end_step(trainer)
        torch.set_num_threads(2)

    monkeypatch.setattr(Trainer, "end_step", end_with_fewer_threads)
    torch.set_num_threads(3)
    try:
        plan = training.plan("text.txt", **small_runs.SMALL)
        training.estimate_run(plan, probe_seconds=0.01).result  # noqa: B018  (the estimate is made here)
        assert torch.get_num_threads() == 3
        assert 2 in [torch.get_num_threads() for _ in training.events(plan)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_threads_of_other_processes_are_counted() -> None:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    try:
        deadline = time.monotonic() + 60
        while count_other_running() < 2:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for process in busy:
            process.kill()
            process.wait()


def test_context_switches_are_counted() -> None:
    assert count_context_switches() >= 0
