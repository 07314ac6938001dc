"""What the tests of the command line share: run commands in this process, on a small text and small models.

The fixtures `workdir`, `run_command`, `assert_rejected`, `trained_folder` and `run_folder` are in conftest.py.
"""

import dataclasses
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import cli

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 12
RECIPE = ["--block-size", "8", "--batch-size", "2", "--max-steps", "4", "--device", "cpu", "--precision", "fp32"]
SMALL = ["--n-layer", "1", "--n-head", "1", "--n-embd", "8", *RECIPE]
# The positional arguments and required flags of each verb.
VERBS = {
    "train": [],
    "sample": ["RUN"],
    "eval": ["RUN"],
    "inspect": ["RUN", "shapes"],
    "info": ["RUN"],
    "list": [],
    "stats": ["SOURCE"],
    "serve": ["RUN"],
    "prepare": ["SOURCE", "--out", "OUT"],
    "convert": ["RUN", "OUT", "--to", "gguf"],
    "estimate": [],
    "bench": ["train"],
}


@dataclasses.dataclass
class Result:
    """The exit code and the output of a command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


RunCommand = Callable[..., Result]  # run_command("eval", folder)
AssertRejected = Callable[..., str]  # assert_rejected(["eval", folder], "a name in the message")


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    capsys.readouterr()
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as exit:  # --help and --version
        code = exit.code if isinstance(exit.code, int) else 0
    return Result(code, *capsys.readouterr())


def assert_rejected(run_command: RunCommand, folder: Path, arguments: list[object], *names: object) -> str:
    """Assert that a command prints an error of two lines that contains `names`, and changes nothing in `folder`.

    The hint may name only flags that the verb has. Returns the error.
    """
    before = snapshot(folder)
    result = run_command(*arguments)
    assert (result.code, result.out) == (2, "")
    message, hint = result.err.splitlines()
    assert message.startswith("error: ")
    assert hint.startswith("  try: ")
    for name in names:
        assert str(name) in result.err
    assert snapshot(folder) == before
    verb = str(arguments[0]) if arguments else ""
    flags = cli.parse([verb, *VERBS[verb]]).flags if verb in VERBS else []
    own_hint, _, _ = hint.partition(" octavo ")  # a whole command has other flags
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", own_hint)) <= {*flags, "--help"}, hint
    return result.err


def train_small_run(folder: Path) -> None:
    """Train a run of four steps in `folder`/run. The output of `octavo train --json` is in `folder`/report.json."""
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        patch.setattr(sys, "stdout", output)
        arguments = ["train", str(folder / "text.txt"), "--out", str(folder / "run"), "--eval-every", "2", "--json"]
        assert cli.main([*arguments, *SMALL]) == 0
    (folder / "report.json").write_text(output.getvalue(), encoding="utf-8")


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every file under `folder` with its bytes, and every folder with None."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def last_checkpoint(run: Path) -> Path:
    return run / "checkpoints" / (run / "last").read_text(encoding="utf-8").strip()


def command_with_source(verb: str, source: object) -> list[object]:
    """A command of `verb` that reads `source`."""
    match verb:
        case "prepare":
            return ["prepare", source, "--out", "out"]
        case "eval":
            return ["eval", "runs/mine", source]
        case _:
            return [verb, source, *SMALL]


def copy_as_foreign(run: Path, **config: object) -> Path:
    """Copy the last checkpoint of a run as a Hugging Face folder that Octavo did not write, with a changed config."""
    folder = Path("foreign")
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(last_checkpoint(run) / name, folder)
    original = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(original | config), encoding="utf-8")
    return folder
