"""Training is killed at random moments, and during saves: nothing is lost, and the result has the same bits."""

import os
import random
import time
from pathlib import Path

import pytest

import octavo
from reliability.forked import Forks, Process
from reliability.torture import (
    IS_TORTURE,
    SAVE_INTERVAL,
    SETTINGS,
    TEXT,
    VARIANTS,
    Outcome,
    Report,
    leftovers,
    train_words,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")
KILLS = 35 if IS_TORTURE else 1  # at random moments, for each variant
KILLS_IN_SAVES = 15 if IS_TORTURE else 1
CALLS_OF_TWO_SAVES = 90  # write-side system calls, about
# A checkpoint may be written while the next steps are made. If the process is killed then, that interval is lost too.
MAX_STEPS_LOST = 2 * SAVE_INTERVAL


@pytest.mark.parametrize("variant", list(VARIANTS) if IS_TORTURE else ["adamw-fp32", "muon-bf16"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(
    variant: str, forks: Forks, tmp_path: Path, report: Report
) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    new_run = ["train", "text.txt", *SETTINGS, *VARIANTS[variant], "--out"]
    start = time.monotonic()
    undisturbed_result = forks.run([*new_run, "undisturbed"], tmp_path)
    seconds = time.monotonic() - start
    assert undisturbed_result.code == 0, undisturbed_result
    undisturbed = Outcome.of(tmp_path / "undisturbed")

    generator = random.Random(f"kills {variant}")
    kinds = ["anywhere"] * KILLS + ["save"] * KILLS_IN_SAVES
    generator.shuffle(kinds)
    runs = late = 0
    while kinds:  # one run takes a few kills until it is complete; then the next one begins
        runs += 1
        folder = tmp_path / f"run-{runs}"
        saved_step = 0
        while True:
            words = train_words(folder, [*new_run, folder])
            match kinds[-1] if kinds else None:
                case "anywhere":
                    process = forks.start(words, tmp_path)
                    kill_after(process, generator.uniform(0, seconds))
                case "save":
                    number = generator.randint(1, CALLS_OF_TWO_SAVES)
                    below = {"CALLS_BELOW": str(folder / "checkpoints"), "CALLS_NUMBER": str(number)}
                    process = forks.start(words, tmp_path, CALLS_SIGNAL="9", **below)
                case _:
                    process = forks.start(words, tmp_path)
            result = process.wait()
            assert "Traceback" not in result.err, result
            if result.code == 0:  # complete, perhaps before it could be killed
                break
            assert result.code == -9, result
            kinds.pop()
            if (folder / "settings.toml").exists():
                run = octavo.Run(folder)
                step = checkpointed_step(run)
                assert step >= saved_step
                steps_lost = max((line["step"] for line in run.lines("metrics")), default=0) - step
                assert steps_lost <= MAX_STEPS_LOST
                late += steps_lost > SAVE_INTERVAL
                saved_step = step
        assert Outcome.of(folder) == undisturbed
        assert leftovers(folder) == []
    report(
        "kill -9 at random moments, 3 of 10 inside a save",
        KILLS + KILLS_IN_SAVES,
        unusable_runs=0,
        more_than_one_interval_lost=late,
        other_bits=0,
    )


def kill_after(process: Process, seconds: float) -> None:
    """Kill the process after this many seconds, unless it ends before."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.005))
    process.kill()


def checkpointed_step(run: octavo.Run) -> int:
    """The step of the newest checkpoint, which must load. 0 before the first one."""
    if not run.resumable:
        return 0
    return octavo.load(run.resumable[0]).info["step"]
