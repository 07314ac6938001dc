"""What a wrong command suggests, and the verbs that show runs: `octavo list` and `octavo info`."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest

import octavo
from commands import SMALL, VERBS, AssertRejected, RunCommand, last_checkpoint
from octavo import cli, errors, views
from octavo.cli import suggestions
from octavo.runs import resolve_name


def test_only_one_function_says_how_an_extra_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Path(octavo.__file__).parent
    naming = [path.name for path in package.rglob("*.py") if "octavo[" in path.read_text(encoding="utf-8")]
    assert naming == ["errors.py"]
    assert errors.install_command("plot") == f"pip install -e '{package.parents[1]}[plot]'"
    monkeypatch.setattr(errors, "__file__", "/venv/lib/python3.13/site-packages/octavo/errors.py")
    assert errors.install_command("plot") == "pip install 'octavo[plot]'"


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ("train text.txt --lr 1e-3", "--learning-rate"),
        ("train text.txt --gpu", "--device cuda"),
        ("train text.txt --epochs 3", "--max-epochs"),
        ("train text.txt --steps=3", "--max-steps"),
        ("train text.txt --bs 3", "--batch-size"),
        ("train text.txt --lr_scheduler cosine", "--schedule"),
        ("train text.txt --output-dir x", "--out"),
        ("train --data my.txt", "the text as SOURCE, without a flag"),
        ("train text.txt --bogus", "octavo train --help"),
        ("sample runs/mine --bf16", "no option: the model runs in float32"),
        ("sample runs/mine --length 5", "--max-new-tokens"),
        ("sample --model runs/mine", "the run as runs/mine, without a flag"),
        ("inspect runs/mine tokens --prompt-file x", "--text-file"),
        ("sample runs/mine ROMEO:", "octavo sample runs/mine --prompt ROMEO:"),
        ("inspect runs/mine", "octavo inspect runs/mine attention"),
        ("inspect shapes runs/mine", "octavo inspect runs/mine shapes"),
        ("inspect --text abc runs/mine", "octavo inspect runs/mine attention"),
        ("sample", "octavo sample runs/mine"),
        ("resume", "octavo train --resume runs/mine"),
        ("trian text.txt --max-steps 5", "octavo train text.txt --max-steps 5"),
        ("train.py config/x.py --device=cpu", "octavo train config/x.py --device=cpu"),
        ("python sample.py runs/mine", "octavo sample runs/mine"),
        ("train text.txt --init_from=resume", "octavo train --resume runs/mine"),
        ("train text.txt --eval_only=True", "octavo eval runs/mine SOURCE"),
        ("ls", "octavo list"),
        ("chat runs/mine", "octavo sample runs/mine --prompt TEXT"),
        ("show mine", "octavo info mine"),
        ("inspect runs/mine atention --text abc", "octavo inspect runs/mine attention"),
        ("serve runs/mine --ssl-keyfile k", "a proxy adds TLS"),
        ("serve runs/mine --keys k.txt", "--api-key-file"),
        ("serve runs/mine --prefix /octavo", "--root-path"),
        ("serve runs/mine --workers 4", "--slots"),
        ("serve runs/mine --max-num-seqs 4", "--slots"),
        ("serve runs/mine --verbose", "--log-level debug"),
        ("serve runs/mine --cors x", "--allow-origin"),
        ("qqqq", "one of: train"),
    ],
)
@pytest.mark.usefixtures("run_folder")
def test_a_mistake_is_answered_by_its_meaning(words: str, hint: str, assert_rejected: AssertRejected) -> None:
    error = assert_rejected(shlex.split(words))
    assert hint in error.partition("\n  try: ")[2]


@pytest.mark.usefixtures("run_folder")
def test_inspect_without_a_view_lists_the_views(assert_rejected: AssertRejected) -> None:
    assert_rejected(["inspect", "runs/mine"], *views.VIEWS)


def test_every_suggested_flag_and_verb_exists() -> None:
    flags = {flag for verb in cli.VERBS for flag in flags_of(verb)}
    for meanings in suggestions._FLAGS.values():
        for meaning in meanings:
            assert set(re.findall(r"--[a-z-]+", meaning)) <= flags, meaning
    for command in suggestions._VERBS.values():
        if command.startswith("octavo ") and not command.startswith("octavo --"):
            assert command.split()[1] in cli.VERBS


def flags_of(verb: str) -> list[str]:
    return list(cli.parse([verb, *VERBS[verb]]).flags)


def test_a_hint_names_the_run_of_the_command(run_folder: Path) -> None:
    hint = "octavo train --resume RUN; or --init RUN"
    for words in (
        ["train", "--resume", str(run_folder)],
        ["train", f"--resume={run_folder}"],
        ["eval", str(run_folder)],
    ):
        named = suggestions.name_the_run(hint, words)
        assert named == f"octavo train --resume {run_folder}; or --init {run_folder}"
    for words in (["train", "text.txt"], ["train", ""], ["train"], []):
        assert suggestions.name_the_run(hint, words) == "octavo train --resume runs/mine; or --init runs/mine"


@pytest.mark.usefixtures("workdir")
def test_without_runs_a_hint_says_run() -> None:
    assert suggestions.name_the_run("octavo eval RUN", ["train", "text.txt"]) == "octavo eval RUN"


def test_a_file_of_weights_that_is_missing_is_not_taken_for_a_model_of_the_hub(assert_rejected: AssertRejected) -> None:
    assert "hf:" in assert_rejected(["eval", "openai/gpt-2.5"])
    assert "hf:" not in assert_rejected(["eval", "out/ckpt.pt"])


# Checkpoints by name


@pytest.mark.parametrize("name", ["last", "best"])
def test_the_pointers_of_a_run_are_names_of_checkpoints(
    name: str, run_folder: Path, run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    assert resolve_name(run_folder / name) == last_checkpoint(run_folder)
    assert run_command("eval", run_folder / name, "--json").json == run_command("eval", run_folder, "--json").json
    assert octavo.load(run_folder / name).folder == last_checkpoint(run_folder)
    assert run_command("train", "--resume", run_folder / name, "--max-steps", 5).code == 0
    (run_folder / name).write_text("step-99\n", encoding="utf-8")
    assert_rejected(["sample", run_folder / name], name, "damaged")


# Runs


LIST_KEYS = [
    "name",
    "run",
    "preset",
    "source",
    "tokenizer",
    "parameters",
    "step",
    "max_steps",
    "train_loss",
    "val_loss",
    "best_val_loss",
    "bytes",
    "modified",
    "running",
]


def test_list_shows_the_runs_the_newest_first(run_folder: Path, run_command: RunCommand) -> None:
    assert run_command("train", "text.txt", *SMALL, "--name", "zwei").code == 0
    (run_folder.parent / "broken").mkdir()
    (run_folder.parent / "broken/settings.toml").write_text("n_layer = 'x'", encoding="utf-8")
    for path in [*run_folder.rglob("*")]:
        os.utime(path, (1, 1))
    report = run_command("list", "--json").json
    assert [run["name"] for run in report["runs"]] == ["zwei", "mine"]
    assert list(report["runs"][0]) == LIST_KEYS
    run = report["runs"][1]
    loaded = octavo.load(run_folder)
    assert run["parameters"] == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert (run["step"], run["max_steps"], run["running"], run["modified"]) == (4, 4, False, 1)
    assert run["val_loss"] == json.loads((last_checkpoint(run_folder) / "octavo.json").read_text())["val_loss"]
    table = run_command("list").out
    assert re.search(rf"runs/zwei +tiny +text.txt +4/4 +{run['val_loss']:.4f}", table)


def test_a_folder_that_is_named_by_a_dot_is_shown_by_its_name(workdir: Path, run_command: RunCommand) -> None:
    (workdir / "poems").mkdir()
    (workdir / "text.txt").rename(workdir / "poems/text.txt")
    os.chdir(workdir / "poems")
    assert run_command("train", ".", *SMALL).code == 0
    run = run_command("list", "--json").json["runs"][0]
    assert run["source"] == "."
    for folder in ("runs", workdir / "poems/runs"):
        assert re.search(r"tiny +poems +4/4", run_command("list", folder).out)
    os.chdir(workdir)
    assert "text         poems, tokenizer char" in run_command("info", f"poems/{run['run']}").out


def test_info_tells_what_the_user_chose_from_what_was_resolved(workdir: Path, run_command: RunCommand) -> None:
    assert run_command("train", "text.txt", *SMALL, "--name", "mine").code == 0
    lines = run_command("info", "runs/mine").out.splitlines()
    chosen, resolved = (next(line for line in lines if word in line) for word in (" preset ", " resolved "))
    report = run_command("info", "runs/mine", "--json").json
    assert {"max_steps", "n_layer"} <= report["settings"].keys() - report["resolved"]
    assert {"vocab_size", "max_epochs"} <= {*report["resolved"]} <= report["settings"].keys()
    assert "n_layer=1" in chosen
    assert "vocab_size=" in resolved
    for name in report["resolved"]:
        assert name not in chosen


def test_list_of_an_empty_folder_says_how_to_create_a_run(run_command: RunCommand) -> None:
    assert "octavo train" in run_command("list").out
    assert run_command("list", "--json").json == {"runs": []}


def test_info_shows_settings_and_checkpoints(run_folder: Path, run_command: RunCommand) -> None:
    report = run_command("info", run_folder, "--json").json
    assert list(report) == [*LIST_KEYS, "settings", "resolved", "checkpoints", "resumable", "last", "best"]
    run = octavo.Run(run_folder)
    assert report["checkpoints"] == list(run.checkpoints)
    assert (report["last"], report["best"]) == (4, 4)
    assert report["settings"]["n_layer"] == 1
    text = run_command("info", run_folder / "last").out
    assert "4 (last, best)" in text
    assert "preset       tiny, with" in text


def test_info_of_something_else_is_rejected(assert_rejected: AssertRejected, run_folder: Path) -> None:
    assert_rejected(["info", "nothing"], "nothing does not exist")
    assert_rejected(["info", "text.txt"], "neither a run nor a checkpoint")


def test_json_does_not_escape_text(run_command: RunCommand, workdir: Path) -> None:
    (workdir / "نص.txt").write_text("كتاب " * 100, encoding="utf-8")
    assert "كتاب"[0] in run_command("stats", "نص.txt", "--json").out
