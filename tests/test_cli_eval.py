"""`octavo eval`: its loss is the one that training reported; sources, runs, --block-size and --json."""

import io
import json
import sys
from pathlib import Path

import pytest

import octavo
from commands import TEXT, AssertRejected, RunCommand, last_checkpoint


def test_json_has_the_documented_keys(run_folder: Path, run_command: RunCommand) -> None:
    result = run_command("eval", run_folder, "--json")
    assert (result.code, result.err) == (0, "")
    assert list(result.json) == ["loss", "perplexity", "bits_per_byte", "tokens", "bytes", "block_size", "unknown"]


def test_the_default_source_gives_the_validation_loss_of_training(
    trained_folder: Path, run_folder: Path, run_command: RunCommand
) -> None:
    reported = json.loads((trained_folder / "report.json").read_text(encoding="utf-8"))
    evaluation = run_command("eval", run_folder, "--device", "cpu", "--json").json
    assert evaluation["loss"] == pytest.approx(reported["val_loss"], rel=1e-6)
    assert evaluation["block_size"] == 8
    line = octavo.Run(run_folder).lines("metrics")[-1]
    assert evaluation["bits_per_byte"] == pytest.approx(line["bits_per_byte"], rel=1e-6)


def test_the_validation_text_as_source_gives_the_same_result(
    run_folder: Path, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = TEXT[int(len(TEXT) * 0.9) :]
    Path("val.txt").write_text(text, encoding="utf-8")
    assert run_command("prepare", "text.txt", "--out", "tokens").code == 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    expected = run_command("eval", run_folder, "--json").json
    assert (expected["tokens"], expected["bytes"]) == (len(text) - 1, len(text) - 1)
    for source in ("val.txt", "tokens", "-"):
        assert run_command("eval", run_folder, source, "--json").json == expected


def test_a_run_is_given_by_name_folder_or_checkpoint(run_folder: Path, run_command: RunCommand) -> None:
    results = [run_command("eval", run, "--json").json for run in (run_folder, "mine", last_checkpoint(run_folder))]
    assert results[0] == results[1] == results[2]


def test_the_report_names_the_block_size(run_folder: Path, run_command: RunCommand) -> None:
    assert run_command("eval", run_folder, "--block-size", 4, "--json").json["block_size"] == 4
    assert "context of 8" in run_command("eval", run_folder).out


@pytest.mark.parametrize("block_size", ["-5", "0"])
def test_a_block_size_below_one_is_rejected(block_size: str, run_folder: Path, assert_rejected: AssertRejected) -> None:
    assert_rejected(["eval", run_folder, "text.txt", "--block-size", block_size], "block_size")


@pytest.mark.parametrize(("unknown", "word"), [("skip", "skipped"), ("replace", "replaced")])
def test_unknown_characters_are_reported_and_their_bytes_count(
    unknown: str, word: str, run_folder: Path, run_command: RunCommand
) -> None:
    text = TEXT[:50] + "Ω" + TEXT[:50] + "ΩЖ"
    Path("other.txt").write_text(text, encoding="utf-8")
    assert run_command("eval", run_folder, "other.txt").code == 2
    result = run_command("eval", run_folder, "other.txt", "--unknown", unknown, "--json").json
    assert result["bytes"] == len(text.encode()) - 1
    assert (result["unknown"]["count"], result["unknown"]["first"], result["unknown"]["offset"]) == (3, "Ω", 50)
    report = run_command("eval", run_folder, "other.txt", "--unknown", unknown).out
    assert f"{word} 3 unknown characters, the first 'Ω' at offset 50" in report
