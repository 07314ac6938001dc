"""Output goes where the caller sent it: a closed stream, a full disk or a narrow terminal ends no command badly."""

import functools
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import octavo
from commands import SMALL
from octavo.units import escape_control_characters
from reliability.forked import Forks, Process

pytestmark = [
    pytest.mark.usefixtures("workdir"),
    pytest.mark.skipif(os.name == "nt", reason="redirections as a POSIX shell writes them"),
]
OCTAVO = f"{shlex.quote(sys.executable)} -m octavo"
COMMANDS = {
    "train": ["train", "text.txt", "--out", "run2", *SMALL],
    "sample": ["sample", "runs/mine", "--max-new-tokens", "5"],
    "eval": ["eval", "runs/mine"],
    "inspect": ["inspect", "runs/mine", "shapes"],
    "list": ["list", "runs"],
    "info": ["info", "runs/mine"],
    "prepare": ["prepare", "text.txt", "--out", "prepared"],
    "convert": ["convert", "runs/mine", "converted", "--to", "nanogpt"],
    "stats": ["stats", "text.txt"],
    "estimate": ["estimate", "text.txt", *SMALL],
    "bench": ["bench", "generate", *SMALL[:6], "--rounds", "1"],
    "json": ["train", "text.txt", "--out", "run3", "--json", *SMALL],
    "version": ["--version"],
    "error": ["sample", "nothing"],
}
REDIRECTIONS: dict[str, dict[int, str | None]] = {
    ">&-": {1: None},
    "2>&-": {2: None},
    ">&- 2>&-": {1: None, 2: None},
    "<&-": {0: None},
    ">/dev/full": {1: "/dev/full"},
}


Start = Callable[..., Process]


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    """Starts commands in forked processes."""
    with Forks() as forks:
        yield forks


@pytest.fixture
def start(forks: Forks, workdir: Path) -> Start:
    """A function that starts a command in `workdir`."""
    return functools.partial(forks.start, folder=workdir, OCTAVO_CACHE=os.environ["OCTAVO_CACHE"])


def run_in_shell(command: str, **environment: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("redirection", REDIRECTIONS)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_or_full_stream_causes_no_traceback(
    name: str, redirection: str, run_folder: Path, start: Start
) -> None:
    done = start(COMMANDS[name], streams=REDIRECTIONS[redirection]).wait()
    assert "Traceback" not in done.err
    assert "Exception" not in done.err
    expected = {0} if name != "error" else {2}
    if redirection == ">/dev/full" and name not in ("train", "error", "version"):
        expected = {3}  # the result could not be written
        assert "No space left" in done.err
    assert done.code in expected


@pytest.mark.parametrize("redirection", REDIRECTIONS)
def test_python_starts_with_a_closed_or_full_stream(redirection: str) -> None:
    done = run_in_shell(f"{OCTAVO} --version {redirection}")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("redirection", [">&-", ">/dev/full"])
def test_training_continues_if_its_output_cannot_be_written(redirection: str, start: Start) -> None:
    assert start(COMMANDS["train"], streams=REDIRECTIONS[redirection]).wait().code == 0
    assert octavo.Run("run2").last is not None


def test_progress_is_printed_with_any_number_of_columns(run_folder: Path, start: Start) -> None:
    for columns in ("0", "1", "80"):
        done = start(["train", "--resume", "runs/mine", "--max-steps", "5"], COLUMNS=columns).wait()
        assert "runs/mine" in done.out


def test_commands_to_run_next_quote_their_paths(start: Start) -> None:
    out = start([*COMMANDS["train"], "--out", "a run; with $HOME"]).wait().out
    commands = [line.removeprefix("next:").strip() for line in out.splitlines() if " sample " in line]
    assert shlex.split(commands[0])[2] == "a run; with $HOME"


def test_a_file_gets_utf_8_whatever_the_locale(run_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "octavo", "stats", "text.txt"],
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0
    assert "?" not in done.stdout.decode("utf-8")


def test_control_characters_are_shown_not_obeyed() -> None:
    assert escape_control_characters("a\x1b[2Jb\n\tc\x07\x9b\x7f é 🦉") == "a\\x1b[2Jb\n\tc\\x07\\x9b\\x7f é 🦉"


@pytest.mark.parametrize("raw", [False, True])
def test_a_sample_on_a_terminal_shows_control_characters(raw: bool, start: Start) -> None:
    escape = "\x1b[31m"
    Path("log.txt").write_text(f"{escape}red\n" * 100, encoding="utf-8")
    assert start(["train", "log.txt", "--out", "log", *SMALL, "--max-steps", "1"]).wait().code == 0
    words = ["sample", "log", "--prompt", escape, "--max-new-tokens", "1", *["--raw"] * raw]
    primary, secondary = pty.openpty()
    process = start(words, streams={1: os.ttyname(secondary)})
    assert process.wait().code == 0
    os.close(secondary)
    output = b""
    while chunk := _read(primary):
        output += chunk
    os.close(primary)
    assert (escape.encode() in output) == raw
    assert (b"\\x1b[31m" in output) == (not raw)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # on Linux, the end of a pseudo-terminal
        return b""
