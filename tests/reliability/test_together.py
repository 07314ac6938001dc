"""Processes of `octavo prepare --together` are killed, at random moments and at random system calls."""

import functools
import os
import random
import time
from pathlib import Path

import pytest

from folders import contents
from octavo.data import prepare, together
from octavo.data.limits import Limits
from reliability.forked import Forks
from reliability.torture import TEXT, Report

pytestmark = [pytest.mark.torture, pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX's")]
TRIALS = 60
CALLS = 150  # write-side system calls of one process, about


def use_small_units() -> None:
    """Make many units and shards of a small text, and let a dead process be replaced after a second."""
    limits = Limits(chunk=500, shard_characters=7000, unit_bytes=2000, progress_seconds=0.01)
    together.prepare_together = functools.partial(  # type: ignore[assignment]
        together.prepare_together, limits=limits, stale_seconds=1.0
    )
    prepare.prepare_into_folder = functools.partial(prepare.prepare_into_folder, limits=limits)  # type: ignore[assignment]


def test_processes_that_are_killed_are_replaced_and_the_files_are_those_of_one_process(
    forks: Forks, tmp_path: Path, report: Report
) -> None:
    generator = random.Random("together")
    (tmp_path / "source").mkdir()
    for i in range(12):
        (tmp_path / "source" / f"{i}.txt").write_text(TEXT[: generator.randint(500, 5000)] + str(i), encoding="utf-8")
    hook = "reliability.test_together:use_small_units"
    words: list[object] = ["prepare", "source", "--tokenizer", "bpe:300", "--out"]
    start = time.monotonic()
    plain = forks.run([*words, "plain"], tmp_path, hook=hook)
    seconds = 2 * (time.monotonic() - start)
    assert plain.code == 0, plain
    expected = contents(tmp_path / "plain")
    killed = 0
    for trial in range(TRIALS):
        out = f"out-{trial}"
        helpers = []
        for number in range(3):
            environment = {}
            if number < 2 and trial % 2 == 0:
                call = str(generator.randint(1, CALLS))
                environment = {"CALLS_SIGNAL": "9", "CALLS_BELOW": str(tmp_path), "CALLS_NUMBER": call}
            helpers.append(forks.start([*words, out, "--together"], tmp_path, hook, **environment))
            time.sleep(generator.uniform(0, seconds / 3))
            if number < 2 and trial % 2:
                helpers[-1].kill()
        for helper in helpers:
            result = helper.wait()
            assert result.code in (0, -9), result
            killed += result.code == -9
        assert helpers[-1].poll() == 0
        assert contents(tmp_path / out) == expected, trial
        assert not (tmp_path / f".{out}.together").exists()
    report("processes of `prepare --together` killed", killed, same_files=TRIALS)
