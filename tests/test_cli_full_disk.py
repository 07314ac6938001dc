"""A full disk ends training and preparation with an error, and what was complete before stays usable."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path

import pytest

import octavo
from commands import SMALL, RunCommand, command_with_source, last_checkpoint, snapshot
from folders import file_size_limit
from octavo.data.dataset import open_dataset


@dataclasses.dataclass
class Disk:
    """Replaces fsync: the disk is full after `capacity` calls. Counts the calls that succeeded."""

    capacity: int = 10**9
    count: int = 0

    def fsync(self, descriptor: int) -> None:
        if self.count >= self.capacity:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.count += 1

    def reset(self, capacity: int = 10**9) -> None:
        self.capacity, self.count = capacity, 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    return disk


def has_no_leftovers(folder: Path) -> bool:
    """Whether no temporary file or folder remains."""
    return not [path for path in folder.rglob("*") if path.name.endswith((".partial", ".removed"))]


def test_a_run_resumes_bit_for_bit_after_the_disk_was_full(disk: Disk, run_command: RunCommand, workdir: Path) -> None:
    """The disk is full at every possible fsync in turn."""
    arguments = ["train", "text.txt", *SMALL, "--eval-every", 2, "--keep-checkpoints", 0, "--sample-every", 0, "--out"]
    assert run_command(*arguments, "undisturbed").code == 0  # prepares the text, so that later runs do not
    disk.reset()
    assert run_command(*arguments, "another").code == 0
    weights = (last_checkpoint(workdir / "undisturbed") / "model.safetensors").read_bytes()
    resumed = 0
    for capacity in range(1, disk.count):  # with capacity 0 not even settings.toml is written: see the next test
        run = workdir / f"capacity {capacity}"
        disk.reset(capacity)
        result = run_command(*arguments, run)
        assert result.code == 3
        assert "disk is full" in result.err
        assert str(run) in result.err
        assert "\n  try: " in result.err
        assert has_no_leftovers(workdir)
        disk.reset()
        if not (run / "last").exists():
            continue
        resumed += 1
        assert run_command("eval", run).code == 0
        assert run_command("train", "--resume", run).code == 0
        assert (last_checkpoint(run) / "model.safetensors").read_bytes() == weights
        assert [line["step"] for line in octavo.Run(run).lines("metrics")] == [1, 2, 4]
    assert resumed > 10


def test_a_disk_that_is_full_from_the_start_leaves_no_run_folder(
    disk: Disk, run_command: RunCommand, workdir: Path
) -> None:
    arguments = ["train", "text.txt", *SMALL, "--name", "mine"]
    assert run_command("train", "text.txt", *SMALL, "--name", "another").code == 0
    before = snapshot(workdir)
    disk.reset(capacity=0)
    assert "disk is full" in run_command(*arguments).err
    assert snapshot(workdir) == before
    disk.reset()
    assert run_command(*arguments).code == 0


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_an_interrupted_preparation_leaves_only_complete_datasets_and_continues(
    verb: str, disk: Disk, run_command: RunCommand, workdir: Path, own_cache: Path
) -> None:
    folders, capacity = (own_cache, workdir), 0
    for capacity in range(100):
        disk.reset(capacity)
        if (result := run_command(*command_with_source(verb, "text.txt"))).code == 0 or "step" in result.err:
            break
        assert result.code == 3
        assert "disk is full" in result.err
        assert has_no_leftovers(own_cache)
        assert has_no_leftovers(workdir)
        datasets = {path.parent for folder in folders for path in folder.rglob("*.npy")}
        for dataset in datasets:
            if not dataset.name.endswith(".preparing"):  # complete: only the fsync of its parent folder failed
                open_dataset(dataset)
                shutil.rmtree(dataset)
    assert capacity >= 4  # each attempt continued where the previous one had stopped
    shutil.rmtree(workdir / "out", ignore_errors=True)
    disk.reset()
    assert run_command(*command_with_source(verb, "text.txt")).code == 0
    assert not [path for folder in folders for path in folder.rglob("*.preparing")]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_disk_that_is_full_while_weights_are_written_leaves_no_checkpoint(
    run_command: RunCommand, workdir: Path
) -> None:
    with file_size_limit(50_000):
        result = run_command("train", "text.txt", *SMALL, "--n-embd", 64, "--out", "run")
    assert result.code == 3
    assert "disk is full" in result.err
    assert "run" in result.err
    assert "\n  try: " in result.err
    assert list((workdir / "run" / "checkpoints").iterdir()) == []
