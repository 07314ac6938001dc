"""Malformed data, settings, checkpoints and prompts: one message, the right exit code, nothing left behind.

CI tries every third command, `make torture` all of them.
"""

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from commands import Result, RunCommand, snapshot
from octavo import native_library
from reliability import malformed
from reliability.torture import IS_TORTURE, Report

pytestmark = pytest.mark.skipif(os.name == "nt", reason="some inputs are pipes and links")
COMMANDS = malformed.COMMANDS if IS_TORTURE else malformed.COMMANDS[::3]
SECONDS = 10  # after which a command counts as hanging


@dataclass
class Inputs:
    """The folder with all malformed files, and what was in it after the command before."""

    folder: Path
    before: dict[str, bytes | None]

    def assert_unchanged(self) -> None:
        before, self.before = self.before, snapshot(self.folder)
        assert self.before == before


@pytest.fixture(scope="module")
def inputs(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """A folder with all malformed files and a run."""
    folder = tmp_path_factory.mktemp("malformed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("OCTAVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        shutil.copy(trained_folder / "text.txt", folder)
        shutil.copytree(trained_folder / "run", folder / "runs" / "mine")
        malformed.build(folder, folder / "runs" / "mine")
    return Inputs(folder, snapshot(folder))


@pytest.fixture
def deadline() -> Iterator[None]:
    """Fail a test that hangs."""

    def expire(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-60:])
def test_a_malformed_input_gives_one_message_and_changes_nothing(
    command: str, inputs: Inputs, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.chdir(inputs.folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    assert_rejected(run_command(*shlex.split(command)), inputs)
    report("a command with a malformed input or environment", 1, rejected_with_one_message=1)


@pytest.mark.usefixtures("deadline")
@pytest.mark.parametrize(("variables", "command"), malformed.ENVIRONMENTS, ids=lambda value: str(value)[-50:])
def test_a_malformed_environment_gives_one_message_and_changes_nothing(
    variables: dict[str, str],
    command: str,
    inputs: Inputs,
    run_command: RunCommand,
    monkeypatch: pytest.MonkeyPatch,
    report: Report,
) -> None:
    monkeypatch.chdir(inputs.folder)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    native_library.load_library.cache_clear()  # an earlier test may have loaded it
    assert_rejected(run_command(*shlex.split(command)), inputs)
    report("a command with a malformed input or environment", 1, rejected_with_one_message=1)


def test_an_odd_environment_changes_nothing(inputs: Inputs) -> None:
    command = ["sample", "runs/mine", "--max-new-tokens", "3", "--temperature", "0", "--json"]
    expected = run_process(command, inputs.folder, {})
    result = run_process(command, inputs.folder, malformed.ODD_ENVIRONMENT)
    assert (result.code, result.out) == (0, expected.out)
    assert "Traceback" not in result.err
    inputs.assert_unchanged()


@pytest.mark.parametrize("command", ["sample runs/mine --top-p 2", "train --config config/deep.toml"])
def test_a_malformed_input_of_a_process_gives_one_message(command: str, inputs: Inputs) -> None:
    assert_rejected(run_process(shlex.split(command), inputs.folder, {}), inputs)


def run_process(words: list[str], folder: Path, variables: dict[str, str]) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", "octavo", *words],
        cwd=folder,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_rejected(result: Result, inputs: Inputs) -> None:
    assert result.code in (2, 3), result
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1, result.err
    assert result.out == ""
    inputs.assert_unchanged()
