"""When one of several processes fails, all end with its exit code and one message on each machine, and at once.

Each process is a thread here, with the store of `torch.distributed` but without its collectives.
`tests/reliability/test_processes.py` starts real processes.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher import api

from commands import SMALL, TEXT, RunCommand
from octavo import cli, distributed, launch
from octavo.distributed import Group
from octavo.errors import MachineError
from octavo.training import setup
from octavo.training.step import Trainer

TRAIN = ["train", "text.txt", *SMALL, "--out", "run"]


class ThreadGroup(Group):
    """One of several threads that train together."""

    def __init__(self, rank: int, size: int, local_rank: int, store: Any, barrier: threading.Barrier, sums: list[Any]):
        self.barrier, self.sums = barrier, sums
        super().__init__(rank, size, local_rank, store, timeout=60.0)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        with self.translate_errors():
            self.sums[self.rank] = [tensor.clone() for tensor in tensors]
            self.barrier.wait()
            totals = [sum(parts[1:], parts[0]) for parts in zip(*self.sums, strict=True)]
            self.barrier.wait()
        for tensor, total in zip(tensors, totals, strict=True):
            tensor.copy_(total)

    def all_gather(self, part: Tensor, count: int, group: Any = None) -> Tensor:
        with self.translate_errors():
            self.sums[self.rank] = part
            self.barrier.wait()
            whole = torch.cat(self.sums)
            self.barrier.wait()
        return whole

    def any(self, flag: bool) -> bool:
        key = self._next_key()
        self._store.set(f"{key}/{self.rank}", json.dumps(flag))
        flags = [json.loads(self._wait_for(f"{key}/{rank}", self._timeout)) for rank in range(self.size)]
        return any(flags)

    def leave(self) -> None:
        self.barrier.wait()


class Machines:
    """Runs a command in several threads, each on the machine of the same place in `hosts`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def run(self, *commands: Sequence[object], hosts: str = "aaaaaaaa") -> tuple[list[int], list[str]]:
        """The exit codes, and the messages of all."""
        size = len(commands)
        store, barrier, sums = dist.HashStore(), threading.Barrier(size), [None] * size  # type: ignore[attr-defined]
        codes: dict[int, int] = {}
        ranks: dict[int, int] = {}

        def join(timeout: float) -> ThreadGroup:
            rank = ranks[threading.get_ident()]
            return ThreadGroup(rank, size, hosts[:rank].count(hosts[rank]), store, barrier, sums)

        def run(rank: int) -> None:
            ranks[threading.get_ident()] = rank
            codes[rank] = cli.main([str(word) for word in commands[rank]])
            if codes[rank]:
                barrier.abort()  # as the connections of a process end with it

        threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
        self.capsys.readouterr()
        with self.monkeypatch.context() as patch:
            patch.setattr(distributed, "join", join)
            patch.setattr(socket, "gethostname", lambda: hosts[ranks[threading.get_ident()]])
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(timeout=60)
        output = self.capsys.readouterr().err
        assert "Traceback" not in output
        assert len(codes) == size, output
        return [codes[rank] for rank in range(size)], [line for line in output.splitlines() if "error: " in line]


@pytest.fixture
def machines(
    workdir: Path, run_command: RunCommand, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Machines:
    return Machines(capsys, monkeypatch)


def test_threads_train_the_model_of_one_process(machines: Machines, run_command: RunCommand) -> None:
    assert machines.run(TRAIN, TRAIN) == ([0, 0], [])
    assert run_command(*TRAIN[:-1], "alone", "--micro-batch", 1).code == 0
    weights = [(Path(run, "checkpoints/step-000004/model.safetensors")).read_bytes() for run in ("run", "alone")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("hosts", ["aaa", "aab", "abb", "abc"])
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--batch-size", 32], "32 sequences"),
        (["--n-layer", 0], "n_layer"),
        (["--block-size", 100_000, "--batch-size", 3], "block_size"),
        (["--precision", "fp16", "--batch-size", 3], "fp16"),
    ],
)
def test_a_mistake_that_all_make_is_reported_once_on_each_machine(
    words: list[object], reason: str, hosts: str, machines: Machines
) -> None:
    codes, messages = machines.run(*[[*TRAIN, *words]] * 3, hosts=hosts)
    assert codes == [2, 2, 2]
    assert len(messages) == len(set(hosts))
    assert all(reason in message for message in messages)
    assert not Path("run").exists()


@pytest.mark.parametrize("hosts", ["aa", "ab"])
@pytest.mark.parametrize("wrong", [0, 1])
@pytest.mark.parametrize("fault", ["missing", "another", "settings"])
def test_a_process_that_starts_with_something_else_ends_all(
    fault: str, wrong: int, hosts: str, machines: Machines
) -> None:
    Path("another.txt").write_text(TEXT + "the end")
    other = {
        "missing": ["train", "missing.txt", *TRAIN[2:]],
        "another": ["train", "another.txt", *TRAIN[2:]],
        "settings": [*TRAIN, "--n-embd", 16],
    }[fault]
    commands = [TRAIN, TRAIN]
    commands[wrong] = other
    codes, messages = machines.run(*commands, hosts=hosts)
    assert codes == [2, 2]
    assert len(messages) == len(set(hosts))
    name = {"missing": "missing.txt", "another": "the text and its tokens", "settings": "the settings"}[fault]
    assert all(name in message for message in messages)
    if fault == "missing" and hosts == "ab":
        assert any(f"process {wrong} of 2 (pid {os.getpid()} on {hosts[wrong]})" in message for message in messages)
    assert not Path("run").exists()


def test_a_run_folder_that_one_machine_does_not_see_is_named(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_VISIBLE_SECONDS", 0.0)
    broadcast_object = Group.broadcast_object

    def look_elsewhere(self: Group, value: Any) -> Any:
        first = broadcast_object(self, value)
        return "elsewhere" if self.rank == 1 and isinstance(first, str) else first

    monkeypatch.setattr(Group, "broadcast_object", look_elsewhere)
    codes, messages = machines.run(TRAIN, TRAIN)
    assert codes == [2, 2]
    assert len(messages) == 1
    assert "process 1 can't see the run folder" in messages[0]


@pytest.mark.parametrize("capacity", [0, 1, 3, 6, 10])
def test_a_disk_that_is_full_ends_all(capacity: int, machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machines.run([*TRAIN[:-1], "before"], [*TRAIN[:-1], "before"])[0] == [0, 0]  # prepares the text
    calls = []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        codes, messages = machines.run(TRAIN, TRAIN)
    assert codes == [3, 3]
    assert len(messages) == 1
    assert "disk is full" in messages[0]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("method", ["compute_gradients", "clip_gradients", "check_replicas"])
def test_an_error_of_one_process_in_training_ends_all(
    method: str, rank: int, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    original: Callable[..., Any] = getattr(Trainer, method)

    def fail(self: Trainer, *arguments: Any) -> Any:
        if self.world.rank == rank and self.step >= 2:
            raise MachineError("no memory", "a smaller model")
        return original(self, *arguments)

    monkeypatch.setattr(Trainer, method, fail)
    words = [*TRAIN, "--batch-size", 3, "--eval-every", 2]
    codes, messages = machines.run(words, words, words, hosts="aab")
    assert codes == [3, 3, 3]
    assert len(messages) == 2
    assert all("no memory" in message for message in messages)
    with contextlib.suppress(FileNotFoundError):
        assert not [path for path in Path("run").rglob(".*") if path.name.endswith(".partial")]


@pytest.mark.parametrize("words", [["--n-layer", "many"], ["--no-such-flag"], ["--processes"]])
def test_a_command_that_cannot_be_parsed_is_reported_by_one_process_of_a_machine(
    words: list[str], run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    silent = run_command("train", *words)
    assert (silent.code, silent.err) == (2, "")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "error: " in run_command("train", *words).err


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([0, 2], 2),
        ([4, 2], 2),
        ([3, 4], 3),
        ([3, -signal.SIGTERM], 3),
        ([-signal.SIGKILL, 4], "was ended by SIGKILL"),
        ([4, -signal.SIGSEGV], "was ended by SIGSEGV"),
        ([4, 4], "could not reach each other"),
        ([4, -signal.SIGTERM], "could not reach each other"),
        ([143, 143], 143),
        ([-signal.SIGTERM, -signal.SIGTERM], 143),
    ],
)
def test_all_processes_are_started_again_if_one_was_killed_or_lost(
    codes: list[int], outcome: int | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> Callable[..., None]:
        def start(*words: object) -> None:
            started.append(words)
            failures = {rank: ProcessFailure(rank, 100 + rank, code, "") for rank, code in enumerate(codes)}
            raise ChildFailedError("octavo", failures)

        return start

    started: list[object] = []
    monkeypatch.setattr(api, "elastic_launch", fail)
    if isinstance(outcome, int):
        assert launch.launch(["train"], ["train", "--resume"], 2, restarts=1) == outcome
        assert len(started) == 1
        return
    with pytest.raises(MachineError, match=f"{outcome}, after 1 restart\n"):
        launch.launch(["train"], ["train", "--resume"], 2, restarts=1)
    assert len(started) == 2
    assert f"{outcome}; restart 1 of 1" in capsys.readouterr().err
