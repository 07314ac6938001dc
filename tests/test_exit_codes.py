"""The exit codes of every verb: 0, 2, 3, 4 and 128 + N. docs/reliability.md has the list; `verify` has 1 as well.

The handlers are replaced, because what a code means must not depend on which verb meets the failure. Real failures of
each verb are in test_cli_*.py, real signals in test_resume.py and test_serve_command.py, and 1 is in test_inspect.py.
"""

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from commands import VERBS, RunCommand
from octavo import cli
from octavo.distributed import LostProcessError
from octavo.errors import DivergenceError, MachineError, OctavoError, SettingError

COMMANDS = {verb: [verb, *words] for verb, words in VERBS.items()} | {
    "inspect": ["inspect", "RUN", "shapes"],
    "stats": ["stats", "SOURCE"],
}


def raise_error(error: BaseException) -> Callable[[object], int]:
    def run(arguments: object) -> int:
        raise error

    return run


def send_signal(number: int) -> Callable[[object], int]:
    def run(arguments: object) -> int:
        signal.raise_signal(number)
        return 0

    return run


class _Freed:
    """An object that gets a signal while it is freed, where Python ignores exceptions."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


def free_during_a_signal(number: int) -> Callable[[object], int]:
    def run(arguments: object) -> int:
        _Freed(number)
        time.sleep(10)  # until the signal is sent again
        return 0

    return run


OUTCOMES: dict[str, tuple[int, Callable[[object], int]]] = {
    "success": (0, lambda arguments: 0),
    "a reader that closed the pipe": (0, raise_error(BrokenPipeError())),
    "a failed check": (1, lambda arguments: 1),
    "a mistake": (2, raise_error(OctavoError("a mistake", "another way"))),
    "a wrong setting": (2, raise_error(SettingError(("n_layer",), "n_layer=0", "--n-layer 1"))),
    "divergence": (2, raise_error(DivergenceError(7, "the loss is nan", "--learning-rate 1e-3"))),
    "a full disk": (3, raise_error(MachineError("the disk is full", "free some space"))),
    "a full disk under stdout": (3, raise_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))),
    "a broken disk": (3, raise_error(OSError(errno.EIO, os.strerror(errno.EIO), "/mnt/file"))),
    "no memory": (3, raise_error(MemoryError())),
    "a lost process": (4, raise_error(LostProcessError("no answer from process 1", "--resume RUN"))),
    "Ctrl-C": (128 + signal.SIGINT, send_signal(signal.SIGINT)),
    "SIGTERM": (128 + signal.SIGTERM, send_signal(signal.SIGTERM)),
    "Ctrl-C while an object is freed": (128 + signal.SIGINT, free_during_a_signal(signal.SIGINT)),
    "SIGTERM while an object is freed": (128 + signal.SIGTERM, free_during_a_signal(signal.SIGTERM)),
}


def test_every_verb_is_in_the_table() -> None:
    assert COMMANDS.keys() == cli.VERBS.keys()


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("verb", COMMANDS)
def test_an_outcome_has_the_same_exit_code_in_every_verb(
    verb: str, outcome: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, run = OUTCOMES[outcome]
    monkeypatch.setattr(cli.VERBS[verb], "run", run)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run in the background of a shell
    result = run_command(*COMMANDS[verb])
    assert (result.code, result.out) == (code, "")
    assert "Traceback" not in result.err
    if code in (2, 3, 4):
        message, hint = result.err.splitlines()
        assert message.startswith("error: ")
        assert hint.startswith("  try: ")
    elif code < 2:
        assert result.err == ""


@pytest.mark.parametrize("verb", COMMANDS)
def test_a_misspelled_flag_is_a_mistake_and_help_is_not(verb: str, run_command: RunCommand) -> None:
    assert run_command(*COMMANDS[verb], "--no-such-flag").code == 2
    assert run_command(verb, "--help").code == 0


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_commands_without_a_verb_succeed(words: list[str], run_command: RunCommand) -> None:
    assert run_command(*words).code == 0


def test_the_documentation_has_every_exit_code() -> None:
    text = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    section = text.partition("## Exit codes")[2].partition("\n## ")[0]
    documented = re.findall(r"^\| ([0-9]+)(?: \+ N)? \|", section, re.MULTILINE)
    assert documented == ["0", "1", "2", "3", "4", "128"]
    assert {min(code, 128) for code, _ in OUTCOMES.values()} == {int(code) for code in documented}
