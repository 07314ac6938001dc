"""SIGINT and SIGTERM at random moments end a command cleanly: the right exit code, and nothing half left behind."""

import dataclasses
import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest

import octavo
from folders import contents
from octavo.data.dataset import open_dataset
from reliability.forked import Forks, Result
from reliability.signals import PHASES
from reliability.torture import IS_TORTURE, SHORT, TEXT, Outcome, Report, leftovers, newest_intact, train_words

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
TRIALS = 10 if IS_TORTURE else 1  # for each phase
TRAIN = ["train", "text.txt", *SHORT, "--out=run"]
WORDS: dict[str, list[object]] = {
    "preparation": ["prepare", "text.txt", "--tokenizer=bpe:300", "--out=out"],
    "sample": ["sample", "run", "--max-new-tokens=20"],
}


def check_training(forks: Forks, folder: Path, result: Result, undisturbed: Outcome) -> None:
    """The run has a checkpoint that loads, if it made a step; resumed, it ends with the bits of an undisturbed one."""
    run = folder / "run"
    if (run / "settings.toml").exists():
        newest = newest_intact(octavo.Run(run))
        steps = [line["step"] for line in octavo.Run(run).lines("metrics")]
        assert max(steps, default=0) == (newest[0].info["step"] if newest else 0), result
    again = forks.run(train_words(run, TRAIN), folder)
    assert again.code == 0, f"{result}\nthen: {again}"
    outcome = Outcome.of(run)  # its checkpoints are others: one is of the step at which it was stopped
    assert dataclasses.replace(outcome, checkpoints=undisturbed.checkpoints) == undisturbed, result


def check_preparation(forks: Forks, folder: Path, result: Result, undisturbed: dict[str, bytes]) -> None:
    """The dataset is complete or missing; the same command then makes it."""
    if not (folder / "out").exists():
        again = forks.run(WORDS["preparation"], folder)
        assert again.code == 0, f"{result}\nthen: {again}"
    open_dataset(folder / "out", verify=True)
    assert contents(folder / "out") == undisturbed, result


@pytest.mark.parametrize("phase", PHASES)
def test_a_signal_ends_a_command_cleanly(phase: str, forks: Forks, tmp_path: Path, report: Report) -> None:
    words = WORDS.get(phase, TRAIN)
    pristine, undisturbed, counts_file = tmp_path / "pristine", tmp_path / "undisturbed", tmp_path / "counts.json"
    pristine.mkdir()
    (pristine / "text.txt").write_text(TEXT, encoding="utf-8")
    if phase == "sample":
        assert forks.run(TRAIN, pristine).code == 0
    arm = {"hook": "reliability.signals:arm"}
    shutil.copytree(pristine, undisturbed)
    result = forks.run(words, undisturbed, SIGNAL_COUNTS=str(counts_file), **arm)
    assert result.code == 0, result
    calls = json.loads(counts_file.read_text(encoding="utf-8"))[phase]
    assert calls > 20

    generator, complete = random.Random(f"signals {phase}"), 0
    for trial in range(TRIALS):
        number = generator.choice([signal.SIGINT, signal.SIGTERM])
        # Half of the moments are early: nine tenths of the calls of all saves are in the last one.
        moment = round(calls ** generator.random()) if trial % 2 else generator.randint(1, calls)
        folder = tmp_path / f"trial-{trial}"
        shutil.copytree(pristine, folder)
        chosen = {"SIGNAL_PHASE": phase, "SIGNAL_CALL": str(moment), "SIGNAL_NUMBER": str(int(number))}
        result = forks.run(words, folder, **chosen, **arm)
        case = f"{number.name} at call {moment} of {calls}: {result}"
        assert "Traceback" not in result.err, case
        assert leftovers(folder) == [], case
        if result.code == 0:  # the result was complete, or nearly, and only that was left which can't be interrupted
            match phase:
                case "preparation":  # C code of a library can discard the exception while the dataset is verified
                    assert (folder / "out").exists(), case
                case "sample":
                    raise AssertionError(case)
                case _:
                    assert newest_intact(octavo.Run(folder / "run"))[0].info["step"] == 4, case  # type: ignore[index]
            complete += 1
        else:
            assert result.code == 128 + number, case
        match phase:
            case "preparation":
                check_preparation(forks, folder, result, contents(undisturbed / "out"))
            case "sample":
                assert contents(folder / "run") == contents(pristine / "run"), case
            case _:
                check_training(forks, folder, result, Outcome.of(undisturbed / "run"))
    report(f"SIGINT or SIGTERM during {phase}", TRIALS, clean_exits=TRIALS, half_files=0, was_complete_already=complete)
