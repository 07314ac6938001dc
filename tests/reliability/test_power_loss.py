"""The power fails after each write-side system call, and what was not flushed is lost: the newest checkpoint loads."""

import hashlib
import os
import random
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import octavo
from folders import contents
from octavo.data.dataset import open_dataset
from octavo.errors import OctavoError, OctavoWarning
from reliability.call_log import Call, read_log
from reliability.forked import Forks
from reliability.power_loss import MODELS, Content, Disk, read_content, write_content
from reliability.torture import IS_TORTURE, SHORT, TEXT, Outcome, Report, leftovers, metrics, newest_intact, train_words

pytestmark = pytest.mark.skipif(os.name == "nt", reason="LD_PRELOAD is Linux's")
STRIDE = 1 if IS_TORTURE else 17  # of the calls after which the power fails
RESUME_STRIDE = 25 if IS_TORTURE else 30  # of the different states from which training really resumes
TRAIN = ["train", "text.txt", *SHORT, "--out=runs/mine"]


def record(words: list[object], folder: Path, forks: Forks) -> tuple[Disk, list[Call]]:
    """Run a command. Returns the disk before it, and its calls."""
    disk, log = Disk(folder), folder.with_name("calls.log")
    log.unlink(missing_ok=True)
    result = forks.run(words, folder, CALLS_BELOW=f"{folder}", CALLS_LOG=str(log))
    assert result.code == 0, result
    return disk, [call for call in read_log(log) if call.path.is_relative_to(folder)]


def states(disk: Disk, calls: list[Call]) -> Iterator[tuple[int, str, Content]]:
    """Yield each different state that a power loss can leave: the number of calls before it, the model, the files."""
    generator, seen = random.Random("power loss"), set()
    for number, call in enumerate(calls, 1):
        disk.replay(call)
        if number % STRIDE and number != len(calls):
            continue
        for model in MODELS:
            content = disk.content_after_power_loss(model, generator)
            digest = hashlib.sha256(repr([(name, content[name]) for name in sorted(content)]).encode()).digest()
            if digest not in seen:
                seen.add(digest)
                yield number, model, content


def saved_steps(calls: list[Call], run: Path) -> dict[int, int]:
    """For each checkpoint with a trainer state its step, and the number of calls after which it is durable.

    It is durable when the run folder has been flushed after the rename of `last`.
    """
    saved, steps, is_renamed = {}, iter((2, 4)), False
    for number, call in enumerate(calls, 1):
        is_renamed = is_renamed or (call.kind == "r" and call.to == run / "last")
        if is_renamed and call.kind == "s" and call.path == run:
            saved[next(steps)], is_renamed = number, False
    return saved


def check_run(folder: Path, saved_step: int, undisturbed: Path) -> None:
    """The newest checkpoint loads and has `saved_step` or a later one; no line before it is missing."""
    if not (folder / "settings.toml").exists():
        assert saved_step == 0
        return
    run = octavo.Run(folder)
    with run.lock():
        pass
    assert leftovers(folder) == []
    newest = newest_intact(run)
    step = newest[0].info["step"] if newest else 0
    assert step >= saved_step
    if newest:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OctavoWarning)
            octavo.load(run)
    else:
        assert run.is_unstarted
    whole = octavo.Run(undisturbed)
    assert [line for line in metrics(run) if line[0] <= step] == [line for line in metrics(whole) if line[0] <= step]
    for line in whole.lines("samples"):
        assert line["step"] > step or line in run.lines("samples")


@pytest.mark.parametrize("kind", ["new", "resumed"])
def test_after_a_power_loss_the_newest_checkpoint_loads_and_training_resumes(
    kind: str, forks: Forks, tmp_path: Path, report: Report
) -> None:
    folder, undisturbed, state = tmp_path / "folder", tmp_path / "undisturbed", tmp_path / "state"
    for each in (folder, undisturbed):
        each.mkdir()
        (each / "text.txt").write_text(TEXT, encoding="utf-8")
    assert forks.run(TRAIN, undisturbed).code == 0
    expected = Outcome.of(undisturbed / "runs/mine")
    words, before = TRAIN, 0
    if kind == "resumed":
        assert forks.run([*TRAIN, "--max-steps=2"], folder).code == 0
        words, before = ["train", "--resume=runs/mine", "--max-steps=4"], 2
    disk, calls = record(words, folder, forks)
    saved = saved_steps(calls, folder / "runs/mine")
    assert list(saved.values()) == sorted(saved.values())
    if kind == "resumed":
        saved = {4: next(iter(saved.values()))}
    count = resumed = 0
    for number, model, content in states(disk, calls):
        case = f"after call {number}, {calls[number - 1]}, {model}"
        shutil.rmtree(state, ignore_errors=True)
        write_content(content, state)
        saved_step = max([step for step, call in saved.items() if call <= number], default=before)
        try:
            check_run(state / "runs/mine", saved_step, undisturbed / "runs/mine")
        except (AssertionError, OctavoError) as error:
            raise AssertionError(f"{case}: {error}\n{sorted(content)}") from error
        count += 1
        is_run = (state / "runs/mine/settings.toml").exists()
        if count % RESUME_STRIDE == 0 or (STRIDE == 1 and not is_run and (state / "runs/mine").exists()):
            resumed += 1
            (state / "text.txt").write_text(TEXT, encoding="utf-8")
            result = forks.run([*train_words(state / "runs/mine", TRAIN), "--max-steps=4"], state)
            assert result.code == 0, f"{case}\n{result}"
            assert Outcome.of(state / "runs/mine") == expected, case
            assert leftovers(state) == [], case
    assert disk.content_after_power_loss("everything", random.Random()) == read_content(folder)  # the log was complete
    report(
        f"power loss after every call of a {kind} run, what was not flushed lost in {len(MODELS)} ways",
        count,
        unreadable_newest_checkpoints=0,
        gaps_in_logs=0,
        resumed=resumed,
    )


def test_after_a_power_loss_a_dataset_is_complete_or_missing(forks: Forks, tmp_path: Path, report: Report) -> None:
    folder, state = tmp_path / "folder", tmp_path / "state"
    folder.mkdir()
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    words: list[object] = ["prepare", "text.txt", "--tokenizer=bpe:300", "--out=out"]
    disk, calls = record(words, folder, forks)
    count = resumed = 0
    for number, model, content in states(disk, calls):
        case = f"after call {number}, {calls[number - 1]}, {model}"
        shutil.rmtree(state, ignore_errors=True)
        write_content(content, state)
        if (state / "out").exists():
            open_dataset(state / "out", verify=True)
        count += 1
        if count % RESUME_STRIDE == 0 and not (state / "out").exists():
            resumed += 1
            (state / "text.txt").write_text(TEXT, encoding="utf-8")
            result = forks.run(words, state)
            assert result.code == 0, f"{case}\n{result}"
            assert contents(state / "out") == contents(folder / "out"), case
    assert disk.content_after_power_loss("everything", random.Random()) == read_content(folder)
    report(
        f"power loss after every call of a preparation, what was not flushed lost in {len(MODELS)} ways",
        count,
        damaged_datasets=0,
        prepared_again=resumed,
    )
