"""Every write-side system call of a command fails once, or kills it: nothing is lost, and there is one message."""

import dataclasses
import errno
import itertools
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import octavo
from folders import contents
from octavo import files, native_build
from octavo.data.dataset import open_dataset
from reliability.call_log import read_log
from reliability.forked import Forks, Result
from reliability.torture import IS_TORTURE, SHORT, TEXT, Outcome, Report, leftovers, train_words

pytestmark = pytest.mark.skipif(os.name == "nt", reason="LD_PRELOAD is Linux's")
COMPILER = "compiler"
FAULTS = {
    "EIO": {"CALLS_ERRNO": str(errno.EIO)},
    "ENOSPC": {"CALLS_ERRNO": str(errno.ENOSPC)},
    "a short write": {"CALLS_ERRNO": "0"},
    "ENOSPC from then on": {"CALLS_ERRNO": str(errno.ENOSPC), "CALLS_FROM": "1"},
    "kill -9": {"CALLS_SIGNAL": "9"},
}


@dataclass(frozen=True)
class Command:
    """A command that writes, run in a folder whose files and cache are counted."""

    words: list[object]
    prepare: Callable[[Forks, Path], None]  # fills the folder
    check: Callable[[Forks, Path, Path, Result, str], None]  # the folder, the undisturbed one, the result, the call
    stride: int = 1  # CI lets every stride-th call fail


def write_text(forks: Forks, folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")


def train_half(forks: Forks, folder: Path) -> None:
    """A run that was stopped at step 2 of 4."""
    write_text(forks, folder)
    result = forks.run([*TRAIN, "--max-steps=2"], folder)
    assert result.code == 0, result


def train_and_sample(forks: Forks, folder: Path) -> None:
    """The same run, and the native library in the cache."""
    train_half(forks, folder)
    assert forks.run(SAMPLE, folder, **compiling(folder)).code == 0


def compiling(folder: Path) -> dict[str, str]:
    """The environment of a command that compiles the native library, instead of loading the package's."""
    return {"OCTAVO_NATIVE": "native", "CC": str(folder.parent / COMPILER)}


@pytest.fixture(scope="module")
def compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that takes a compiler's arguments and copies a library that was compiled before, to save time."""
    folder = tmp_path_factory.mktemp("compiler")
    with native_build.build_library(native_build.find_compiler(), native_build.NATIVE) as library:
        shutil.copy(library, folder / "library.so")
    program = folder / COMPILER
    lines = [
        "#!/bin/sh",
        'while [ $# -gt 1 ] && [ "$1" != -o ]; do shift; done',
        f'[ $# = 1 ] || cp {folder}/library.so "$2"',
    ]
    program.write_text("\n".join([*lines, ""]), encoding="utf-8")
    program.chmod(0o755)
    return program


def assert_nothing_left(folder: Path, case: str) -> None:
    """Assert that no temporary file is left; those in the cache are removed by a preparation, an hour later."""
    for path in leftovers(folder / "cache"):
        os.utime(path, (0, 0))
    files.remove_old_leftovers(folder / "cache")
    assert leftovers(folder) == [], case


def check_training(forks: Forks, folder: Path, undisturbed: Path, result: Result, case: str) -> None:
    """The previous checkpoint loads, and the run ends with the bits of an undisturbed one."""
    run = folder / "run"
    if result.code != 0:
        if (run / "settings.toml").exists() and octavo.Run(run).resumable:
            octavo.load(run)
        words = train_words(run, TRAIN)
        again = forks.run([*words, "--max-steps=4"], folder)
        assert again.code == 0, f"{case}then: {again}"
        assert_nothing_left(folder, case)
    outcome, expected = Outcome.of(run), Outcome.of(undisturbed / "run")
    if result.code == 0:  # a note names each checkpoint that could not be written, or whose folder could not be flushed
        notes = re.findall("note: no (?:checkpoint|copy of the weights) at step ([0-9]+)", result.out)
        outcome, expected = (
            dataclasses.replace(each, checkpoints=[step for step in each.checkpoints if str(step) not in notes])
            for each in (outcome, expected)
        )
    assert outcome == expected, case


def check_preparation(forks: Forks, folder: Path, undisturbed: Path, result: Result, case: str) -> None:
    """The dataset is complete or missing; the same command then makes it."""
    out = folder / "out"
    assert not out.exists() or (out / "dataset.json").exists(), case
    if not out.exists():
        assert result.code != 0, case
        again = forks.run(PREPARE, folder)
        assert again.code == 0, f"{case}then: {again}"
    open_dataset(out, verify=True)
    assert contents(out) == contents(undisturbed / "out"), case
    if result.code != 0:
        assert_nothing_left(folder, case)
        assert list(folder.rglob("*.preparing")) == [], case


def check_reading(forks: Forks, folder: Path, undisturbed: Path, result: Result, case: str) -> None:
    """The run is unchanged. The same command then succeeds."""
    assert contents(folder / "run") == contents(undisturbed / "run"), case
    again = forks.run(SAMPLE, folder, **compiling(folder))
    assert again.code == 0, f"{case}then: {again}"
    assert again.err == "", f"{case}then: {again}"


TRAIN = ["train", "text.txt", *SHORT, "--out=run"]
PREPARE = ["prepare", "text.txt", "--tokenizer=bpe:300", "--out=out"]
SAMPLE = ["sample", "run", "--max-new-tokens=20"]
COMMANDS = {
    "train": Command(TRAIN, write_text, check_training, 43),
    "resume": Command(["train", "--resume=run", "--max-steps=4"], train_half, check_training, 31),
    "prepare": Command(PREPARE, write_text, check_preparation, 11),
    "sample": Command(SAMPLE, train_half, check_reading),
    "inspect --plot": Command(["inspect", "run", "surprisal", "--plot=plot.png"], train_and_sample, check_reading),
}


@pytest.mark.parametrize("fault", FAULTS if IS_TORTURE else ["each in turn"])
@pytest.mark.parametrize("name", COMMANDS if IS_TORTURE else ["train", "resume", "prepare"])
def test_a_failing_call_loses_nothing_and_changes_no_bit(
    name: str, fault: str, forks: Forks, compiler: Path, tmp_path: Path, report: Report
) -> None:
    command = COMMANDS[name]
    environment = compiling(tmp_path / "call") if name == "sample" else {}
    shutil.copy(compiler, tmp_path)
    pristine = tmp_path / "pristine"
    pristine.mkdir()
    command.prepare(forks, pristine)
    undisturbed, log = tmp_path / "undisturbed", tmp_path / "calls.log"

    def run(folder: Path, **calls: str) -> Result:
        shutil.copytree(pristine, folder)
        return forks.run(command.words, folder, CALLS_BELOW=f"{folder}/", **environment, **calls)

    result = run(undisturbed, CALLS_LOG=str(log))
    assert result.code == 0, result
    calls = read_log(log)
    numbers = range(1, len(calls) + 1, 1 if IS_TORTURE else command.stride)
    faults = itertools.cycle([fault] if IS_TORTURE else FAULTS)
    continued = 0
    for number, fault in zip(numbers, faults, strict=False):
        folder = tmp_path / f"call-{number}"
        result = run(folder, CALLS_NUMBER=str(number), **FAULTS[fault])
        case = f"{calls[number - 1]}\n{result}\n"
        assert "Traceback" not in result.err, case
        if fault == "kill -9":
            assert result.code == -9, case
        else:
            assert result.code in (0, 3), case
            errors = [line for line in result.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == (1 if result.code == 3 else 0), case
        command.check(forks, folder, undisturbed, result, case)
        continued += result.code == 0
        shutil.rmtree(folder)
    failed = len(numbers) - continued
    report(
        f"every write-side call of `{name}` fails (EIO, ENOSPC once and for good, half a write) or kills it",
        len(numbers),
        continued=continued,
        ended_and_repeated=failed,
        lost=0,
    )
