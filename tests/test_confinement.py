"""A file name that is read from a file cannot leave its folder, whoever wrote that file."""

import json
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
