"""The run folder is removed or moved during training: one message, and nothing is written in its old place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import SMALL, RunCommand
from octavo.training.step import Trainer

RUN = Path("runs/mine")
# What training writes next after step 3.
NEXT_WRITES = {
    "metrics": ["--log-every", "1"],
    "a checkpoint": ["--log-every", "1000", "--save-every", "3", "--eval-every", "1000"],
    "a sample": ["--log-every", "1000", "--sample-every", "3", "--eval-every", "1000"],
    "a copy of the weights": ["--log-every", "1000", "--eval-every", "1000", "--keep-checkpoints", "1000"],
    "the last checkpoint": ["--log-every", "1000", "--eval-every", "1000", "--max-steps", "3"],
}


def remove(folder: Path) -> None:
    """Rename first: a checkpoint may be being written in it, and `rmtree` fails if files appear meanwhile."""
    shutil.rmtree(folder.rename(folder.with_name("removed")), ignore_errors=True)


WAYS: dict[str, Callable[[Path], object]] = {
    "removed": remove,
    "moved": lambda folder: folder.rename("elsewhere"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("next_write", NEXT_WRITES)
def test_training_ends_with_one_message(
    next_write: str, way: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step = Trainer.end_step

    def end_step_and_remove(self: Trainer) -> None:
        end_step(self)
        if self.step == 3:
            WAYS[way](RUN)

    monkeypatch.setattr(Trainer, "end_step", end_step_and_remove)
    words = [*SMALL, "--max-steps", "2000", "--keep-checkpoints", "0", "--sample-every", "0", *NEXT_WRITES[next_write]]
    result = run_command("train", "text.txt", "--name", RUN.name, *words)
    assert result.code == 2
    message, hint = result.err.splitlines()
    assert message == f"error: the run folder {RUN} was removed or moved"
    assert hint.startswith("  try: ")
    assert not RUN.exists()


def test_a_resumed_run_that_is_removed_before_its_settings_are_written_is_not_created_again(
    run_command: RunCommand, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_step = Trainer.end_step

    def end_step_and_remove(self: Trainer) -> None:
        end_step(self)
        remove(run_folder)

    monkeypatch.setattr(Trainer, "end_step", end_step_and_remove)
    result = run_command("train", "--resume", run_folder, "--max-steps", 6)
    assert result.code == 2
    assert len(result.err.splitlines()) == 2
    assert not run_folder.exists()
