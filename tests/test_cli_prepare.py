"""`octavo prepare`: --json, existing folders, and prepared folders that are damaged or have another tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import SMALL, AssertRejected, RunCommand
from octavo import files
from octavo.data.dataset import checksum

pytestmark = pytest.mark.usefixtures("workdir")


def test_json_is_the_content_of_dataset_json(run_command: RunCommand) -> None:
    result = run_command("prepare", "text.txt", "--out", "tokens", "--tokenizer", "bpe:300", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == json.loads(Path("tokens/dataset.json").read_text(encoding="utf-8"))


def test_an_existing_folder_is_not_overwritten(
    run_folder: Path, workdir: Path, assert_rejected: AssertRejected
) -> None:
    (workdir / "file").touch()
    assert_rejected(["prepare", "text.txt", "--out", run_folder], "not empty")
    assert_rejected(["prepare", "text.txt", "--out", "file"], "not empty")


def test_changed_shards_and_ids_beyond_the_vocabulary_are_rejected(
    run_command: RunCommand, workdir: Path, assert_rejected: AssertRejected
) -> None:
    vocab_size = run_command("prepare", "text.txt", "--out", "tokens", "--json").json["vocab_size"]
    shard, info_path = workdir / "tokens" / "train-00000.npy", workdir / "tokens" / "dataset.json"
    tokens = np.load(shard)
    tokens[5] = vocab_size
    np.save(shard, tokens)
    assert_rejected(["train", "tokens", *SMALL], shard.name, "changed")
    info = json.loads(info_path.read_text(encoding="utf-8"))
    info["files"][shard.name]["sha256"] = files.sha256(shard)
    info["checksum"] = checksum(info)
    info_path.write_text(json.dumps(info), encoding="utf-8")
    assert_rejected(["train", "tokens", *SMALL], f"id {vocab_size}", "vocabulary")


def test_a_folder_with_another_tokenizer_is_rejected(
    run_command: RunCommand, run_folder: Path, assert_rejected: AssertRejected
) -> None:
    assert run_command("prepare", "text.txt", "--out", "bytes", "--tokenizer", "byte").code == 0
    assert_rejected(["eval", run_folder, "bytes"], "another tokenizer")
    assert_rejected(["train", "bytes", "--init", run_folder], "another tokenizer")
    assert_rejected(["train", "bytes", *SMALL, "--tokenizer", "char"], "byte", "char")
    assert_rejected(["train", "bytes", "--resume", run_folder], "bytes")
