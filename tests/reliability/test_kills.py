"""Training is killed at random moments, and during saves: nothing is lost, and the result has the same bits."""

import random
import subprocess
import time
from pathlib import Path

import pytest

import octavo
from reliability.torture import IS_TORTURE, SETTINGS, TEXT, VARIANTS, Outcome, leftovers, start

KILLS = 70 if IS_TORTURE else 2  # at random moments, for each variant
KILLS_IN_SAVES = 30 if IS_TORTURE else 2
MAX_STEPS_LOST = 10  # the interval of checkpoints


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(variant: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    new_run = ["train", "text.txt", *SETTINGS, *VARIANTS[variant], "--out"]
    process = start([*new_run, "undisturbed"], tmp_path)
    output = process.communicate(timeout=120)
    assert process.returncode == 0, output
    undisturbed = Outcome.of(tmp_path / "undisturbed")

    generator = random.Random(f"kills {variant}")
    kinds = ["anywhere"] * KILLS + ["save"] * KILLS_IN_SAVES
    generator.shuffle(kinds)
    runs = 0
    while kinds:  # one run takes a few kills until it is complete; then the next one begins
        runs += 1
        folder = tmp_path / f"run-{runs}"
        saved_step = 0
        while True:
            words = ["train", "--resume", folder] if (folder / "settings.toml").exists() else [*new_run, folder]
            process = start(words, tmp_path)
            kind = kinds.pop() if kinds else None
            if kind == "save":
                wait_for_save(process, folder, generator.uniform(0, 0.02))
            elif kind == "anywhere":
                wait_for_start(process, folder, generator.uniform(0, 0.8))
            if kind is not None:
                process.kill()
            out, err = process.communicate(timeout=120)
            assert "Traceback" not in err
            if process.returncode == 0:
                break
            assert process.returncode == -9, out + err
            if (folder / "settings.toml").exists():
                run = octavo.Run(folder)
                step = checkpointed_step(run)
                assert step >= saved_step
                steps_made = max((line["step"] for line in run.lines("metrics")), default=0)
                assert steps_made - step <= MAX_STEPS_LOST + 1  # a step may be logged while its checkpoint is written
                saved_step = step
        assert Outcome.of(folder) == undisturbed
        assert leftovers(folder) == []


def wait_for_start(process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
    """Wait until the process writes metrics, and then this long; or until it ends."""
    deadline = time.monotonic() + 60
    before = (folder / "metrics.jsonl").stat().st_mtime_ns if (folder / "metrics.jsonl").exists() else 0
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_mtime_ns != before:
            break
        time.sleep(0.002)
    time.sleep(seconds)


def wait_for_save(process: subprocess.Popen[str], folder: Path, seconds: float) -> None:
    """Wait until a checkpoint is being written or removed, and then this long, or until the process ends."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "checkpoints").is_dir() and leftovers(folder / "checkpoints"):
            break
        time.sleep(0.0005)
    time.sleep(seconds)


def checkpointed_step(run: octavo.Run) -> int:
    """The step of the newest checkpoint, which must load. 0 before the first one."""
    if not run.resumable:
        return 0
    return octavo.load(run.resumable[0]).info["step"]
