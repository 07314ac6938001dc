"""The command line: parsing, help, errors about unknown arguments, and how the process ends."""

import dataclasses
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import octavo
from commands import SMALL, VERBS, AssertRejected, Result, RunCommand, snapshot
from octavo import cli
from octavo.cli.parser import read_text_file
from octavo.errors import OctavoError
from octavo.settings import NANOGPT_NAMES, PRESETS, SECTIONS, DataSettings, expand_home, from_toml, resolve

pytestmark = pytest.mark.usefixtures("workdir")


# Paths


def test_every_argument_that_is_a_path_expands_the_home_folder() -> None:
    """A shell does not expand `~` in `--out=~/x`."""
    takes_path = {"RUN", "RUN VIEW", "SOURCE", "DIR", "OUT", "F", "F.toml", "F.png|svg"}
    actions = [
        (name, action)
        for name, verb in cli._build_parser(resolve()).verbs.items()
        for action in verb._actions
        if action.metavar in takes_path
    ]
    assert len(actions) > 20
    for name, action in actions:
        assert action.type is expand_home, (name, action.dest)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_prompt_file_may_have_a_byte_order_mark(workdir: Path, encoding: str) -> None:
    (workdir / "prompt.txt").write_bytes("\ufeffnaïve".encode(encoding))
    assert read_text_file("prompt.txt", "--prompt") == "naïve"


# Unknown arguments


def test_no_arguments_print_the_verbs(run_command: RunCommand) -> None:
    result = run_command()
    assert result.code == 0
    assert all(verb in result.out for verb in cli.VERBS)


def test_a_misspelled_verb_is_rejected_with_the_nearest_one(assert_rejected: AssertRejected) -> None:
    assert_rejected(["trian", "my.txt"], "'trian'", "try: octavo train")


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--n-layrs 6", ["--n-layrs", "try: --n-layer"]),
        ("--n_layrs=6", ["--n_layrs", "try: --n-layer"]),
        ("--n-lay 6", ["--n-lay", "try: --n-layer"]),  # abbreviations are not accepted
        ("--qqqqq", ["--qqqqq", "try: octavo train --help"]),
        ("more.txt", ["'more.txt'"]),
        ("--n-layer", ["argument"]),
        ("--n-layer six", ["'six'", "integer"]),
        ("--max-steps 1e3", ["'1e3'", "integer"]),
        ("--learning-rate fast", ["'fast'", "number"]),
        ("--bias maybe", ["'maybe'", "true", "false"]),
    ],
)
def test_arguments_that_cannot_be_parsed_are_rejected(
    arguments: str, names: list[str], assert_rejected: AssertRejected
) -> None:
    assert_rejected(["train", "text.txt", *SMALL, *arguments.split()], *names)


@pytest.mark.parametrize("arguments", [["--n-layer", "6"], ["--versoin"], ["sample"], ["prepare", "a.txt"]])
def test_an_incomplete_command_is_rejected(arguments: list[object], assert_rejected: AssertRejected) -> None:
    assert_rejected(arguments, "--help")


@pytest.mark.parametrize("form", ["--{}=1", "--{} 1"])
@pytest.mark.parametrize("name", NANOGPT_NAMES)
def test_nanogpts_settings_are_rejected_with_their_replacement(
    name: str, form: str, assert_rejected: AssertRejected
) -> None:
    for spelling in (name, name.replace("_", "-")):
        assert_rejected(["train", "text.txt", *form.format(spelling).split()], "nanoGPT", NANOGPT_NAMES[name])


@pytest.mark.parametrize(("argument", "replacement"), [("--start=abc", "--prompt"), ("--out_dir=x", "the run itself")])
def test_options_of_nanogpts_sample_are_rejected_with_their_replacement(
    argument: str, replacement: str, assert_rejected: AssertRejected
) -> None:
    assert_rejected(["sample", "runs/mine", argument], replacement)


# How settings are spelled


WORDS = st.sampled_from(
    ["--my_dear friend", "--top_k", "--top-k", "--max_new_tokens=5 x", "_", "-", "--", "a", "=", " "]
)
VALUES = st.lists(WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=4).map("".join)


@hypothesis.settings(derandomize=True, deadline=None)
@hypothesis.given(value=VALUES, flag=st.sampled_from(["sample --prompt", "sample --stop", "inspect --text"]))
@hypothesis.example("--my_dear friend", "sample --prompt")
@hypothesis.example("--my_dear friend", "sample --stop")
@hypothesis.example("--my_dear friend", "inspect --text")
def test_a_value_is_never_rewritten(value: str, flag: str) -> None:
    verb, flag = flag.split()
    for words in ([f"{flag}={value}"], [flag, value]):
        try:
            parsed = getattr(cli.parse([verb, "runs/mine", *words]), flag.removeprefix("--"))
        except OctavoError:
            assert value.startswith("-")  # taken for a flag
            assert len(words) == 2
        else:
            assert parsed in (value, [value])


@pytest.mark.parametrize("arguments", ["--n-layer 2", "--n_layer 2", "--n-layer=2", "--n_layer=2"])
def test_a_setting_is_written_with_hyphens_or_underscores(arguments: str, run_command: RunCommand) -> None:
    assert run_command("train", "text.txt", *SMALL, "--max_steps=0", *arguments.split(), "--out", "run").code == 0
    settings = from_toml(Path("run/settings.toml"))
    assert (settings.n_layer, settings.max_steps, settings.source) == (2, 0, "text.txt")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--bias=False", "bias", False),
        ("--bias false", "bias", False),
        ("--bias=0", "bias", False),
        ("--no-bias", "bias", False),
        ("--bias", "bias", True),
        ("--bias=True", "bias", True),
        ("--bias=False --bias", "bias", True),
        ("--preset nanogpt-tiny", "bias", False),
        ("--preset nanogpt-tiny --bias", "bias", True),
        ("--compile=False", "compile", "off"),
        ("--compile=auto", "compile", "off"),
        ("--learning-rate 1", "learning_rate", 1.0),
        ("--seed=7", "seed", 7),
        ("--tokenizer byte", "tokenizer", "byte"),
        ("--config some.toml", "seed", 3),
        ("--config some.toml --seed 4", "seed", 4),
        ("--preset baby --config some.toml", "dropout", 0.5),
        ("--preset baby", "curriculum_splits", 2),
    ],
)
def test_the_run_has_the_settings_of_the_command(
    arguments: str, name: str, value: object, run_command: RunCommand
) -> None:
    Path("some.toml").write_text("[training]\nseed = 3\n[model]\ndropout = 0.5", encoding="utf-8")
    assert run_command("train", "text.txt", *SMALL, "--max-steps", 0, *arguments.split(), "--out", "run").code == 0
    assert getattr(from_toml(Path("run/settings.toml")), name) == value


# Help


def help_line(flag: str, help: str) -> str:
    """The help text of a flag, on one line."""
    (line,) = re.findall(rf"^  {flag}(?![\w-]).*(?:\n {{20,}}.*)*", help, re.MULTILINE)
    return " ".join(line.split())


def test_help_names_every_verb(run_command: RunCommand) -> None:
    result = run_command("--help")
    assert (result.code, result.err) == (0, "")
    assert all(re.search(rf"^ +{verb} ", result.out, re.MULTILINE) for verb in cli.VERBS)


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_help_lists_every_setting_with_the_default_of_the_preset(preset: str | None, run_command: RunCommand) -> None:
    arguments = [] if preset is None else [f"--preset={preset}"] if preset == "baby" else ["--preset", preset]
    text, settings = run_command("train", "--help", *arguments).out, resolve(preset)
    for each in [each for section in SECTIONS.values() for each in dataclasses.fields(section)]:
        if each.name == "source":
            continue
        line = help_line("--" + each.name.replace("_", "-"), text)
        default = getattr(settings, each.name)
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert line.endswith(f"{each.metadata['help']} ({shown})")
        assert all(choice in line for choice in each.metadata["choices"])


def test_help_of_prepare_lists_its_settings(run_command: RunCommand) -> None:
    text = run_command("prepare", "--help").out
    for each in dataclasses.fields(DataSettings):
        if each.name != "source":
            shown = str(each.default).lower() if each.type is bool else str(each.default)
            assert help_line("--" + each.name.replace("_", "-"), text).endswith(f"({shown})")
    assert "--source" not in text


@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_help_shows_the_defaults_that_parsing_gives(verb: str, run_command: RunCommand) -> None:
    text, parsed = run_command(verb, "--help").out, vars(cli.parse([verb, "RUN"]))
    for flag in parsed["flags"]:
        if not flag.startswith("--") or flag in ("--help", "--json"):
            continue
        line = help_line(flag, text)
        default = parsed[flag[2:].replace("-", "_")]
        if default not in (None, "", [], False):
            assert line.endswith(f"({default})")


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_the_help_of_a_verb_can_be_parsed(verb: str, run_command: RunCommand) -> None:
    (example,) = re.findall(rf"^    (octavo {verb} .*)", run_command(verb, "--help").out, re.MULTILINE)
    assert cli.parse(shlex.split(example)[1:]).prog == f"octavo {verb}"


def test_version(run_command: RunCommand) -> None:
    assert run_command("--version") == Result(0, f"octavo {octavo.__version__}\n", "")


HELP = """
import sys
from octavo import cli
for arguments in (["--help"], ["--version"], ["train", "--help"], ["sample", "--help"], ["train", "--n-layrs", "6"]):
    try:
        cli.main(arguments)
    except SystemExit:
        pass
print(*{"torch", "numpy", "transformers", "tokenizers", "rich"} & set(sys.modules), file=sys.stderr)
"""


def test_help_and_errors_about_unknown_arguments_do_not_import_torch() -> None:
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, encoding="utf-8", check=True)
    assert done.stderr.splitlines()[-1] == ""
    assert "--n-layer" in done.stdout


# Processes


def run_process(*arguments: object, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-m", "octavo", *map(str, arguments)],
        env=environment,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


def test_an_error_ends_the_process_with_exit_code_2(workdir: Path) -> None:
    for arguments in (["train", "text.txt", "--n-layrs", "6"], ["train", "missing.txt"]):
        done = run_process(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: .*\n  try: .*\n", done.stderr)
    assert list(snapshot(workdir)) == ["text.txt"]


@contextmanager
def closed_pipe() -> Iterator[int]:
    """The writing end of a pipe whose reading end is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "runs/mine", "--max-new-tokens", 3],
        ["eval", "runs/mine", "--json"],
        ["--help"],
    ],
)
@pytest.mark.usefixtures("run_folder")
def test_a_closed_pipe_is_not_an_error(arguments: list[Any]) -> None:
    with closed_pipe() as pipe:
        done = run_process(*arguments, stdout=pipe)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])  # cp1252: a pipe on Windows
@pytest.mark.parametrize("verb", ["train", "sample"])
def test_characters_that_stdout_cannot_encode_are_replaced(
    verb: str, encoding: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("arabic.txt").write_text("كتاب قلم\n" * 60, encoding="utf-8")
    arguments = {
        "train": ["train", "arabic.txt", *SMALL],
        "sample": ["sample", str(run_folder), "--prompt", "كتاب", "--unknown", "skip", "--max-new-tokens", "3"],
    }
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, write_through=True))
    assert cli.main(arguments[verb]) == 0
    assert out.getvalue()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such file names")
def test_a_file_name_that_is_not_utf_8_trains_or_is_rejected(run_command: RunCommand, workdir: Path) -> None:
    name = os.fsdecode(b"caf\xe9.txt")
    shutil.copy("text.txt", name)
    result = run_command("train", name, *SMALL, "--out", "run")
    if result.code == 2:
        assert not (workdir / "run").exists()
    else:
        assert result.code == run_command("eval", "run").code == 0
