"""`octavo sample`: prompts, stop strings, --best-of, --json, and options that are rejected."""

import io
import sys
from pathlib import Path

import pytest

from commands import AssertRejected, RunCommand

SEPARATOR = "\n---------------\n"


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("--temperature nan", ["temperature=nan", "between 0 and 100"]),
        ("--temperature -1", ["temperature=-1.0"]),
        ("--top-k -1", ["top_k=-1"]),
        ("--top-p 0", ["top_p=0.0"]),
        ("--top-p 2", ["top_p=2.0"]),
        ("--top-q 1", ["--top-q", "try: --top-"]),
        ("--max-new-tokens -1", ["max_new_tokens=-1"]),
        ("--max-new-tokens 999999999999", ["max_new_tokens=999999999999"]),
        ("--num-samples 0", ["num_samples=0"]),
        ("--seed -1", ["seed=-1"]),
        ("--seed 1e3", ["'1e3'", "integer"]),
        ("--unknown ignore", ["'ignore'"]),
        ("--device gpu", ["'gpu'"]),
        ("--stop=", ["stop=''"]),
        ("--prompt a --prompt-file b", ["--prompt", "--prompt-file"]),
    ],
)
def test_an_invalid_option_is_rejected(
    arguments: str, names: list[str], run_folder: Path, assert_rejected: AssertRejected
) -> None:
    assert_rejected(["sample", run_folder, *arguments.split()], *names)


@pytest.mark.parametrize("content", [None, b"caf\xe9"])
def test_a_prompt_file_that_is_missing_or_not_utf_8_is_rejected(
    content: bytes | None, run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    if content is not None:
        (workdir / "prompt.txt").write_bytes(content)
    assert_rejected(["sample", run_folder, "--prompt-file", "prompt.txt"], "prompt.txt")


def test_a_prompt_is_an_argument_a_file_or_stdin(
    run_folder: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompt.txt").write_bytes(b"\xef\xbb\xbfthe cat")  # with a byte order mark, as editors on Windows write it
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the cat")))
    ways = (["--prompt", "the cat"], ["--prompt-file", "prompt.txt"], ["--prompt-file", "-"])
    texts = [run_command("sample", run_folder, *way, "--max-new-tokens", 5, "--seed", 2).out for way in ways]
    assert texts[0].startswith("the cat")
    assert len(texts[0]) == len("the cat") + 5 + len("\n")
    assert texts[0] == texts[1] == texts[2]


def test_json_has_the_documented_keys(run_folder: Path, run_command: RunCommand) -> None:
    arguments = ["--prompt", "the ", "--max-new-tokens", 5, "--num-samples", 2, "--json"]
    result = run_command("sample", run_folder, *arguments)
    assert (result.code, result.err) == (0, "")
    assert list(result.json) == ["prompt", "samples"]
    assert result.json["prompt"] == "the "
    assert len(result.json["samples"]) == 2
    for sample in result.json["samples"]:
        assert list(sample) == ["text", "token_ids", "finish_reason"]
        assert len(sample["text"]) == len(sample["token_ids"]) <= 5
        assert sample["finish_reason"] == ("length" if len(sample["token_ids"]) == 5 else "end_of_text")


def test_text_and_json_agree_and_are_deterministic(run_folder: Path, run_command: RunCommand) -> None:
    arguments = ["sample", run_folder, "--prompt", "the ", "--max-new-tokens", 12, "--num-samples", 2, "--seed", 5]
    texts = ["the " + sample["text"] for sample in run_command(*arguments, "--json").json["samples"]]
    assert run_command(*arguments).out == SEPARATOR.join(texts) + "\n"
    assert texts[0] != texts[1]
    assert run_command(*arguments).out == run_command(*arguments).out
    assert run_command(*arguments, "--seed", 6).out != run_command(*arguments).out


def test_best_of_prints_complete_texts(run_folder: Path, run_command: RunCommand) -> None:
    arguments = ["--prompt", "the ", "--max-new-tokens", 12, "--num-samples", 2, "--best-of", 5]
    samples = run_command("sample", run_folder, *arguments, "--json").json["samples"]
    for sample in samples:
        assert len(sample["text"]) == 12 or sample["finish_reason"] == "end_of_text"
    expected = SEPARATOR.join("the " + sample["text"] for sample in samples)
    assert run_command("sample", run_folder, *arguments).out == expected + "\n"


def test_a_text_ends_before_a_stop_string(run_folder: Path, run_command: RunCommand) -> None:
    arguments = ["sample", run_folder, "--prompt", "the ", "--max-new-tokens", 40, "--seed", 4, "--json"]
    text = run_command(*arguments).json["samples"][0]["text"]
    stop = text[10:12]
    (stopped,) = run_command(*arguments, "--stop", "qqq", "--stop", stop).json["samples"]
    assert stopped["text"] == text[: text.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_unknown_characters_in_a_prompt_are_an_error_skipped_or_replaced(
    run_folder: Path, run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    def samples(prompt: str, *arguments: str) -> object:
        result = run_command("sample", run_folder, "--prompt", prompt, "--max-new-tokens", 9, "--json", *arguments)
        return result.json["samples"]

    assert_rejected(["sample", run_folder, "--prompt", "theω X"], "'X', 'ω'", "--unknown skip")
    assert samples("theω X", "--unknown", "skip") == samples("the ")
    assert samples("theω X", "--unknown", "replace") == samples("the   ")
    result = run_command("sample", run_folder, "--prompt", "theω X", "--max-new-tokens", 0, "--unknown", "skip")
    assert "2 unknown characters, the first 'ω' at offset 3" in result.err
    assert result.out == "the \n"


def test_a_prompt_longer_than_the_context_is_cropped_with_a_note(run_folder: Path, run_command: RunCommand) -> None:
    result = run_command("sample", run_folder, "--prompt", "the cat sat on the mat", "--max-new-tokens", 3)
    assert result.err.startswith("note: ")
    assert "22 tokens" in result.err
    assert "last 8" in result.err
    assert result.out.startswith("the cat sat on the mat")


def test_a_damaged_best_checkpoint_is_reported_and_another_one_is_used(
    run_folder: Path, run_command: RunCommand
) -> None:
    best = run_folder / "checkpoints" / (run_folder / "best").read_text(encoding="utf-8").strip()
    (best / "model.safetensors").write_bytes(b"damaged")
    result = run_command("sample", run_folder, "--max-new-tokens", 3)
    assert result.code == 0
    assert str(best / "model.safetensors") in result.err
    assert result.err.startswith("note: ")
