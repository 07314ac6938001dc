"""nanoGPT's prepared folders are used in place, and no code in a meta.pkl is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo import evaluation, runs
from octavo.data.dataset import Dataset, is_prepared, open_dataset
from octavo.data.prepare import prepare, prepare_dataset, reopen_dataset
from octavo.settings import DataSettings
from preparing import error_of, write

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 40


def prepare_with_nanogpt(folder: Path, text: str = TEXT) -> Path:
    """Write what its data/shakespeare_char/prepare.py writes: sorted characters, 90% for training, ids of 16 bits."""
    folder.mkdir(exist_ok=True)
    characters = sorted(set(text))
    stoi = {character: id for id, character in enumerate(characters)}
    cut = int(len(text) * 0.9)
    for name, part in {"train": text[:cut], "val": text[cut:]}.items():
        np.array([stoi[c] for c in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return prepare_with_nanogpt(tmp_path / "shakespeare_char")


def open_source_folder(folder: Path) -> Dataset:
    return prepare_dataset(DataSettings(source=str(folder))).result


def test_a_folder_with_characters_decodes_to_its_text(folder: Path) -> None:
    assert is_prepared(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    data = open_source_folder(folder)
    assert (data.name, data.tokenizer.kind) == ("shakespeare_char", "char")
    assert "".join(data.tokenizer.decode(data.tokens[split]) for split in ("train", "val")) == TEXT
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before  # nothing was written


def test_octavo_prepares_the_same_tokens(folder: Path, tmp_path: Path) -> None:
    ours = prepare(write(tmp_path / "input.txt", TEXT), tmp_path / "ours", tokenizer="char")
    theirs = open_source_folder(folder)
    for split in ("train", "val"):
        assert list(ours.tokens[split]) == list(theirs.tokens[split])
    assert ours.tokenizer.token_bytes == [*theirs.tokenizer.token_bytes, b"<|endoftext|>"]


def test_a_folder_without_meta_pkl_has_gpt2_tokens(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
    for name, ids in {"train": [15496, 995, 50256], "val": [464, 886]}.items():
        np.array(ids, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    data = open_dataset(tmp_path)
    assert data.tokenizer.kind == "gpt2"
    assert data.tokenizer.decode(data.tokens["train"]) == "Hello world<|endoftext|>"


def test_a_folder_can_be_trained_on_evaluated_and_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = octavo.train(folder, max_steps=3, n_layer=1, n_embd=16, n_head=2, block_size=16, batch_size=4)
    assert run.folder.name == "shakespeare_char-1"
    loaded = runs.load(run.folder)
    assert evaluation.evaluate(loaded, str(folder)) == evaluation.evaluate(loaded)
    assert octavo.train(resume=run.folder, max_steps=5).last is not None
    settings = loaded.settings
    assert isinstance(settings, DataSettings)
    prepare_with_nanogpt(folder, TEXT.swapcase())
    message = error_of(lambda: reopen_dataset(settings, loaded.info["data"], loaded.tokenizer).result).message
    assert "another tokenizer" in message or "is not the text" in message


def test_a_prepared_folder_is_not_prepared_again(folder: Path, tmp_path: Path) -> None:
    message = error_of(lambda: prepare(folder, tmp_path / "out")).message
    assert str(folder) in message
    assert "prepared already" in message


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_meta_pkl_is_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "meta.pkl").write_bytes(pickle.dumps({"stoi": Bomb(tmp_path / "exploded")}))
    assert "opcode STACK_GLOBAL" in error_of(lambda: open_dataset(folder)).message
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a pickle",
        pickle.dumps([1]),
        pickle.dumps({}),
        pickle.dumps({"stoi": {"ab": 0}}),
        pickle.dumps({"stoi": {1: 0}}),
        pickle.dumps({"stoi": {"a": 1}}),
        pickle.dumps({"stoi": {"a": 0, "b": 0}}),
        pickle.dumps({"stoi": {"a": "0"}}),
        pickle.dumps({"stoi": {}}),
    ],
)
def test_a_meta_pkl_without_characters_is_rejected(folder: Path, content: bytes) -> None:
    (folder / "meta.pkl").write_bytes(content)
    assert f"{folder / 'meta.pkl'} is not the meta.pkl" in error_of(lambda: open_dataset(folder)).message


@pytest.mark.parametrize("content", [b"", b"\0", b"\0\0\0"])
def test_a_truncated_bin_file_is_rejected(folder: Path, content: bytes) -> None:
    (folder / "val.bin").write_bytes(content)
    message = error_of(lambda: open_dataset(folder)).message
    assert str(folder / "val.bin") in message
    assert f"{len(content)} bytes" in message


def test_an_id_beyond_the_vocabulary_is_rejected(folder: Path) -> None:
    np.array([0, 1, 999], dtype=np.uint16).tofile(folder / "train.bin")
    message = error_of(lambda: open_dataset(folder)).message
    for name in (str(folder / "train.bin"), "id 999", "vocabulary"):
        assert name in message
