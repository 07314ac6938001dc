"""`octavo train`: settings and folders that are rejected, its output, --json, --resume, and a loss that diverges."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import safetensors.torch
import torch

import octavo
from commands import RECIPE, SMALL, TEXT, AssertRejected, RunCommand, copy_as_foreign, last_checkpoint
from folders import system_call_error
from octavo import cli, files

pytestmark = pytest.mark.usefixtures("workdir")


# Settings that are rejected


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--preset tinny", ["'tinny'", "try: --preset tiny"]),
        ("--n-embd 384 --n-head 5", ["n_embd=384", "n_head=5", "try: --n-head 6"]),
        ("--learning-rate nan", ["learning_rate=nan"]),
        ("--learning-rate inf", ["learning_rate=inf"]),
        ("--dropout NaN", ["dropout=nan"]),
        ("--learning-rate -1", ["learning_rate=-1.0", "between 0 and 100"]),
        ("--learning-rate 1e9", ["learning_rate=1000000000.0", "between"]),
        ("--learning-rate 1e-9 --min-learning-rate 1e-4", ["min_learning_rate=0.0001", "learning_rate=1e-09"]),
        ("--batch-size 0", ["batch_size=0", "between 1 and"]),
        ("--batch-size -4", ["batch_size=-4", "between 1 and"]),
        ("--n-layer 0", ["n_layer=0", "between"]),
        ("--n-layer 99999999999999999999", ["n_layer=99999999999999999999", "between"]),
        ("--n-embd 1000000", ["n_embd=1000000", "between"]),
        ("--max-steps -1", ["max_steps=-1", "between"]),
        ("--dropout 1", ["dropout=1.0", "between"]),
        ("--val-fraction 1", ["val_fraction=1.0", "between"]),
        ("--seed -1", ["seed=-1", "between"]),
        ("--schedule cosin", ["'cosin'", "try: --schedule cosine"]),
        ("--precision fp8", ["'fp8'"]),
        ("--precision fp16", ["fp16", "CPU", "try: --precision bf16 or"]),
        ("--device gpu", ["'gpu'"]),
        ("--device meta", ["'meta'"]),
        ("--tokenizer chars", ["'chars'"]),
        ("--tokenizer bpe:1", ["bpe:1", "257"]),
        ("--vocab-size 5", ["vocab_size=5", "tokenizer"]),
        ("--encoding utf-99", ["'utf-99'"]),
        ("--errors shrug", ["'shrug'"]),
        ("--config missing.toml", ["missing.toml"]),
        ("--config text.txt", ["text.txt", "TOML"]),
        ("--name a/b", ["'a/b'"]),
        ("--name ..", ["'..'"]),
        ("--init nothing", ["nothing does not exist"]),
        ("--processes two", ["'two' is not an integer"]),
        ("--timeout nan", ["--timeout nan", "try: --timeout 600"]),
        ("--timeout -1", ["--timeout -1"]),
        ("--processes 2 --timeout inf", ["--timeout inf", "try: --timeout 600"]),
        ("--processes 2 --restarts -1", ["--restarts -1", "try: --restarts 0"]),
    ],
)
def test_an_invalid_setting_is_rejected_and_nothing_is_written(
    arguments: str, names: list[str], assert_rejected: AssertRejected
) -> None:
    assert_rejected(["train", "text.txt", *(RECIPE if "--init" in arguments else SMALL), *arguments.split()], *names)


@pytest.mark.skipif(os.name == "nt", reason="the size of the memory is unknown on Windows")
@pytest.mark.parametrize("arguments", ["--n-embd 65536 --n-layer 1024", "--n-embd 65536 --vocab-size 16777216"])
def test_a_model_larger_than_the_memory_is_rejected(arguments: str, assert_rejected: AssertRejected) -> None:
    assert_rejected(["train", "text.txt", *SMALL, *arguments.split()], "GB")


def test_a_text_shorter_than_the_context_is_rejected_with_a_block_size_that_works(
    run_command: RunCommand, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "short.txt").write_text("the cat sat on the mat\n" * 2, encoding="utf-8")
    arguments = ["train", "short.txt", *SMALL]
    error = assert_rejected([*arguments, "--block-size", 64], "block_size + 1 = 65")
    assert run_command(*arguments, *re.findall(r"--block-size \d+", error)[0].split()).code == 0


# Folders that are rejected


def test_an_existing_folder_is_not_overwritten(
    run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "file").touch()
    for place in (["--out", run_folder], ["--name", "mine"], ["--out", workdir], ["--out", "file"]):
        assert_rejected(["train", "text.txt", *SMALL, *place], "already exists")
    assert_rejected(["train", "text.txt", *SMALL, "--out", "file/run"], "file/run")


@pytest.mark.parametrize("flag", ["--out", "--name"])
def test_a_run_name_that_is_too_long_is_rejected(flag: str, assert_rejected: AssertRejected) -> None:
    assert_rejected(["train", "text.txt", *SMALL, flag, "a" * 5_000])


# What it prints


def test_runs_are_named_after_their_text_and_numbered(run_command: RunCommand) -> None:
    for number in (1, 2):
        assert run_command("train", "text.txt", *SMALL, "--json").json["run"] == str(Path(f"runs/text-{number}"))
    assert run_command("train", "text.txt", *SMALL, "--name", "mine", "--json").json["run"] == str(Path("runs/mine"))


def test_training_prints_its_progress_and_the_next_commands(run_command: RunCommand) -> None:
    result = run_command("train", "text.txt", *SMALL)
    assert (result.code, result.err) == (0, "")
    for part in (
        "text.txt",
        "tokenizer char",
        "step 4/4 100%",
        "val loss",
        "octavo sample runs/text-1",
        "octavo eval runs/text-1",
        "octavo train --resume runs/text-1",
    ):
        assert part in result.out
    assert "\x1b" not in result.out  # plain lines if stdout is not a terminal


def test_the_next_commands_work(run_command: RunCommand) -> None:
    next_commands = re.findall(r"octavo (\w+ .*)", run_command("train", "text.txt", *SMALL).out.partition("next:")[2])
    assert [arguments.split()[0] for arguments in next_commands] == ["sample", "eval", "train"]
    for arguments in next_commands:
        more = ["--max-new-tokens", 3] if arguments.startswith("sample") else []
        assert run_command(*shlex.split(arguments), *more).code == 0


KEYS = [
    "run",
    "checkpoint",
    "step",
    "tokens",
    "train_loss",
    "val_loss",
    "best_val_loss",
    "seconds",
    "tokens_per_second",
    "parameters",
]


def test_json_has_the_documented_keys(trained_folder: Path) -> None:
    assert list(json.loads((trained_folder / "report.json").read_text(encoding="utf-8"))) == KEYS


def test_json_reports_the_run_and_its_losses(run_command: RunCommand) -> None:
    result = run_command("train", "text.txt", *SMALL, "--json")
    report = result.json
    assert result.code == 0
    assert "step 4/4" in result.err  # the progress
    assert report.keys() >= set(KEYS)
    run = Path("runs/text-1")
    assert (Path(report["run"]), Path(report["checkpoint"])) == (run, last_checkpoint(run))
    assert (report["step"], report["tokens"]) == (4, 4 * 2 * 8)
    assert report["parameters"] == sum(p.numel() for p in octavo.load(run).model.parameters())
    line = octavo.Run(run).lines("metrics")[-1]
    assert (line["train_loss"], line["val_loss"]) == (report["train_loss"], report["val_loss"])
    assert report["best_val_loss"] == report["val_loss"]
    assert report["seconds"] > 0
    assert report["tokens_per_second"] > 0


# --resume


def test_a_resumed_run_continues_after_its_last_step(run_folder: Path, run_command: RunCommand) -> None:
    result = run_command("train", "--resume", run_folder, "--max-steps", 6)
    assert (result.code, result.err) == (0, "")
    assert "resuming after step 4" in result.out
    assert octavo.Run(run_folder).lines("metrics")[-1]["step"] == 6


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("other.txt", ["other.txt", "trained on"]),
        ("--tokenizer byte", ["tokenizer", "'char'", "'byte'"]),
        ("--n-layer 2", ["n_layer is 1", "2"]),
        ("--block-size 4", ["block_size is 8"]),
        ("--vocab-size 99", ["vocab_size is"]),
        ("--no-bias", ["bias is True"]),
        ("--val-fraction 0.2", ["val_fraction is 0.1"]),
        ("--encoding latin-1", ["encoding is 'utf-8'"]),
        ("--preset baby", ["resumed run"]),
        ("--config some.toml", ["resumed run"]),
        ("--init runs/mine", ["resumed run"]),
        ("--out another", ["folder"]),
        ("--name another", ["folder"]),
        ("--learning-rate 1000", ["learning_rate=1000.0", "between"]),
        ("--max_iters=10", ["nanoGPT"]),
    ],
)
def test_changes_that_a_resumed_run_does_not_allow_are_rejected(
    arguments: str, names: list[str], run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "other.txt").write_text(TEXT.swapcase(), encoding="utf-8")
    assert_rejected(["train", *arguments.split(), "--resume", run_folder], *names)


def test_resuming_something_that_is_not_a_run_is_rejected(assert_rejected: AssertRejected) -> None:
    assert_rejected(["train", "--resume", "nothing"], "nothing is not a run")


def test_a_checkpoint_with_only_weights_cannot_be_resumed(run_folder: Path, assert_rejected: AssertRejected) -> None:
    assert_rejected(["train", "--resume", run_folder / "checkpoints" / "step-000001"], "only weights")


HOLD_LOCK = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_in_use_can_be_evaluated_and_sampled_but_not_resumed(
    run_folder: Path, run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, run_folder / ".lock"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert_rejected(["train", "--resume", run_folder, "--max-steps", 6], f"{run_folder} is in use")
        assert run_command("eval", run_folder).code == 0
        assert run_command("sample", run_folder, "--max-new-tokens", 3).code == 0
        process.communicate("")
    assert run_command("train", "--resume", run_folder, "--max-steps", 6).code == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_gets_one_note_and_training_continues(
    number: int, run_folder: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", system_call_error(number))
    monkeypatch.setattr(files, "_warned", set())
    result = run_command("train", "--resume", run_folder, "--max-steps", 6)
    assert result.code == 0
    assert result.err.count("note:") == result.err.count("cannot lock") == 1


# A loss that is not a finite number


DIVERGING = [
    *SMALL,
    *("--max-steps", 50, "--learning-rate", 100, "--weight-decay", 100, "--grad-clip", 0, "--warmup-steps", 0),
    *("--log-every", 1, "--out", "run"),
]


def train_until_it_diverges(run_command: RunCommand, *arguments: object) -> Path:
    """The checkpoint that the error names as the last good one."""
    result = run_command("train", "text.txt", *DIVERGING, *arguments)
    assert result.code == 2
    assert re.match(r"error: training .* step \d+", result.err)
    assert "\n  try: --learning-rate " in result.err
    return Path(re.findall(r"the last good checkpoint is (\S+)", result.err)[0])


def test_a_diverging_run_ends_with_the_last_good_checkpoint(run_command: RunCommand) -> None:
    checkpoint = train_until_it_diverges(run_command, "--eval-every", 1)
    assert checkpoint == last_checkpoint(Path("run"))
    assert np.isfinite(run_command("eval", checkpoint, "--json").json["loss"])
    assert run_command("sample", checkpoint, "--max-new-tokens", 3).code == 0


def test_the_last_good_checkpoint_has_finite_weights_even_if_it_was_not_evaluated(run_command: RunCommand) -> None:
    checkpoint = train_until_it_diverges(run_command, "--eval-every", 1000, "--save-every", 1)
    assert run_command("sample", checkpoint, "--max-new-tokens", 3).code == 0


def test_a_model_with_nan_weights_is_rejected(run_folder: Path, assert_rejected: AssertRejected) -> None:
    folder = copy_as_foreign(run_folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["transformer.ln_f.weight"][0] = torch.nan
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    assert_rejected(["sample", folder], "weights")
    assert_rejected(["eval", folder, "text.txt"], "weights")


def test_the_error_of_a_run_that_diverges_before_its_first_checkpoint_says_so(run_command: RunCommand) -> None:
    result = run_command("train", "text.txt", *DIVERGING)
    assert result.code == 2
    assert "no checkpoint yet" in result.err
    assert "\n  try: --learning-rate" in result.err


# --serve


def test_serve_ends_with_the_training(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is another process."""
    servers: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def start_server(words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if "serve" not in words:
            return start(words, **options)
        arguments = cli.parse(words[words.index("serve") :])
        assert (arguments.runs, arguments.port) == (["runs/mine"], 8123)
        assert (Path("runs/mine") / "settings.toml").is_file()
        servers.append(start([sys.executable, "-c", "import time; time.sleep(60)"], **options))
        return servers[-1]

    monkeypatch.setattr(subprocess, "Popen", start_server)
    result = run_command("train", "text.txt", *SMALL, "--name", "mine", "--serve", "--port", 8123)
    assert result.code == 0
    assert "http://127.0.0.1:8123/" in result.out
    [server] = servers
    assert server.returncode is not None


def test_the_server_does_not_survive_a_training_that_is_killed(run_folder: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from octavo.cli.train import _serving
with _serving(Path({str(run_folder)!r}), 0):
    print(flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as training:
        assert training.stdout is not None
        training.stdout.readline()
        servers = psutil.Process(training.pid).children()
        training.kill()
    assert len(servers) == 1
    assert psutil.wait_procs(servers, timeout=60)[1] == []
