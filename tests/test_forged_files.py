"""Files of a model or dataset that somebody has forged: names cannot leave their folder, a pipe is not waited for."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from octavo import checkpoint
from octavo.checkpoint import Checkpoint
from octavo.data.dataset import open_dataset
from octavo.data.prepare import prepare
from octavo.errors import OctavoError

NAMES = ["../victim", "..", ".", "", "/etc/passwd", "a/b", "..\\victim", "C:\\victim", "C:victim", "a\0b", "x" * 300]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_names_files_of_its_folder_alone(name: str, small: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(small.folder, folder)
    rewrite(folder / "manifest.json", lambda manifest: manifest["files"].update({name: {"size": 1, "sha256": "0"}}))
    with pytest.raises(OctavoError, match=r"manifest\.json is damaged"):
        checkpoint.load(folder)


@pytest.mark.parametrize("field", ["files", "shards", "name"])
@pytest.mark.parametrize("name", NAMES)
def test_a_dataset_names_files_of_its_folder_alone(name: str, field: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 50, encoding="utf-8")
    folder = prepare(tmp_path / "text.txt", tmp_path / "tokens", tokenizer="char").folder

    def change(dataset: dict[str, Any]) -> None:
        if field == "name":
            dataset["name"] = name
        elif field == "shards":
            dataset["shards"]["train"] = [name]
        else:
            dataset["files"][name] = next(iter(dataset["files"].values()))

    rewrite(folder / "dataset.json", change)
    with pytest.raises(OctavoError, match=r"dataset\.json is damaged"):
        open_dataset(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["config.json", "manifest.json", "octavo.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_in_place_of_a_file_is_an_error(name: str, small: Checkpoint, tmp_path: Path) -> None:
    """Nobody writes to the pipe, so a program that opens it as a file waits for ever."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(small.folder, folder)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(OctavoError, match=name):
        checkpoint.load(folder)
