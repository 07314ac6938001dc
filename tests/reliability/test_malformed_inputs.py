"""Malformed data, settings, checkpoints and prompts: one message, the right exit code, nothing left behind."""

import io
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import pytest

from commands import RunCommand, snapshot
from reliability import malformed

pytestmark = pytest.mark.skipif(os.name == "nt", reason="some inputs are pipes and links")
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
@pytest.mark.parametrize("command", malformed.COMMANDS, ids=lambda command: command[-60:])
def test_a_malformed_input_gives_one_message_and_changes_nothing(
    command: str, inputs: Inputs, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(inputs.folder)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    result = run_command(*shlex.split(command))
    assert result.code in (2, 3), result
    assert "Traceback" not in result.err
    assert len([line for line in result.err.splitlines() if line.startswith("error: ")]) == 1, result.err
    assert result.out == ""
    inputs.assert_unchanged()
