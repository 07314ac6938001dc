"""`octavo prepare`: --json, existing folders, and prepared folders that are damaged or have another tokenizer."""

import json
from pathlib import Path

import numpy as np
import pytest

from commands import SMALL, Command, Rejected
from octavo import files

pytestmark = pytest.mark.usefixtures("workdir")


def test_json_is_the_content_of_dataset_json(command: Command) -> None:
    result = command("prepare", "text.txt", "--out", "tokens", "--tokenizer", "bpe:300", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json == json.loads(Path("tokens/dataset.json").read_text(encoding="utf-8"))


def test_an_existing_folder_is_not_overwritten(run_folder: Path, workdir: Path, rejected: Rejected) -> None:
    (workdir / "file").touch()
    rejected(["prepare", "text.txt", "--out", run_folder], "not empty")
    rejected(["prepare", "text.txt", "--out", "file"], "not empty")


def test_changed_shards_and_ids_beyond_the_vocabulary_are_rejected(
    command: Command, workdir: Path, rejected: Rejected
) -> None:
    vocab_size = command("prepare", "text.txt", "--out", "tokens", "--json").json["vocab_size"]
    shard, info_path = workdir / "tokens" / "train-00000.npy", workdir / "tokens" / "dataset.json"
    tokens = np.load(shard)
    tokens[5] = vocab_size
    np.save(shard, tokens)
    rejected(["train", "tokens", *SMALL], shard.name, "changed")
    info = json.loads(info_path.read_text(encoding="utf-8"))
    info["files"][shard.name]["sha256"] = files.sha256(shard)
    info_path.write_text(json.dumps(info), encoding="utf-8")
    rejected(["train", "tokens", *SMALL], f"id {vocab_size}", "vocabulary")


def test_a_folder_with_another_tokenizer_is_rejected(command: Command, run_folder: Path, rejected: Rejected) -> None:
    assert command("prepare", "text.txt", "--out", "bytes", "--tokenizer", "byte").code == 0
    rejected(["eval", run_folder, "bytes"], "another tokenizer")
    rejected(["train", "bytes", "--init", run_folder], "another tokenizer")
    rejected(["train", "bytes", *SMALL, "--tokenizer", "char"], "byte", "char")
    rejected(["train", "bytes", "--resume", run_folder], "bytes")
