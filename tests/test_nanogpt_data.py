"""nanoGPT's prepared folders are trained on as they lie, and nothing in a meta.pkl is ever run."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo import evaluation, runs
from octavo.data.dataset import is_prepared, open_dataset
from octavo.data.prepare import prepare, prepare_dataset, reopen_dataset
from octavo.errors import OctavoError
from octavo.settings import DataSettings

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 40


def prepared(folder: Path, text: str = TEXT) -> Path:
    """As its data/shakespeare_char/prepare.py leaves it: sorted characters, 90% of the text, ids of 16 bits."""
    folder.mkdir(exist_ok=True)
    characters = sorted(set(text))
    stoi = {character: id for id, character in enumerate(characters)}
    cut = int(len(text) * 0.9)
    for name, part in {"train": text[:cut], "val": text[cut:]}.items():
        np.array([stoi[c] for c in part], dtype=np.uint16).tofile(folder / f"{name}.bin")
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def of(source: Path, **how: Any) -> DataSettings:
    return DataSettings(source=str(source), **how)


def refusal(call: Callable[[], object]) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        call()
    assert caught.value.hint
    return caught.value


def test_a_folder_with_characters_decodes_to_its_text(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "shakespeare_char")
    assert is_prepared(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    data = prepare_dataset(of(folder)).result
    assert (data.name, data.tokenizer.kind) == ("shakespeare_char", "char")
    assert "".join(data.tokenizer.decode(data.tokens(split)) for split in ("train", "val")) == TEXT
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before  # it is only read


def test_its_tokens_are_those_that_octavo_prepares(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text(TEXT, encoding="utf-8")
    ours = prepare(tmp_path / "input.txt", tmp_path / "ours", tokenizer="char")
    theirs = prepare_dataset(of(prepared(tmp_path / "theirs"))).result
    for split in ("train", "val"):
        assert list(ours.tokens(split)) == list(theirs.tokens(split))
    assert ours.tokenizer.token_bytes == theirs.tokenizer.token_bytes


def test_a_folder_without_a_meta_has_gpt2s_tokens(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
    for name, ids in {"train": [15496, 995, 50256], "val": [464, 886]}.items():
        np.array(ids, dtype=np.uint16).tofile(tmp_path / f"{name}.bin")
    data = open_dataset(tmp_path)
    assert data.tokenizer.kind == "gpt2"
    assert data.tokenizer.decode(data.tokens("train")) == "Hello world<|endoftext|>"


def test_it_is_trained_on_evaluated_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = prepared(tmp_path / "theirs")
    run = octavo.train(folder, max_steps=3, n_layer=1, n_embd=16, n_head=2, block_size=16, batch_size=4)
    assert run.folder.name == "theirs-1"
    loaded = runs.load(run.folder)
    known = evaluation.evaluate(loaded)
    assert evaluation.evaluate(loaded, str(folder)) == known
    assert octavo.train(resume=run.folder, max_steps=5).last is not None
    settings = loaded.settings
    assert isinstance(settings, DataSettings)
    prepared(folder, TEXT.swapcase())
    refused = refusal(lambda: reopen_dataset(settings, loaded.info["data"], loaded.tokenizer).result)
    assert "another tokenizer" in refused.message or "is not the text" in refused.message


def test_what_is_prepared_is_not_prepared_again(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "theirs")
    assert "is prepared already" in refusal(lambda: prepare(folder, tmp_path / "out")).message


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def test_no_code_in_a_meta_pkl_is_run(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "theirs")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"stoi": Bomb(tmp_path / "made")}))
    said = refusal(lambda: open_dataset(folder)).message
    assert "mkdir" in said
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "meta",
    [
        b"", b"no pickle", pickle.dumps([1]), pickle.dumps({}), pickle.dumps({"stoi": {"ab": 0}}),
        pickle.dumps({"stoi": {1: 0}}), pickle.dumps({"stoi": {"a": 1}}), pickle.dumps({"stoi": {"a": 0, "b": 0}}),
        pickle.dumps({"stoi": {"a": "0"}}), pickle.dumps({"stoi": {}}),
    ],
)  # fmt: skip
def test_a_meta_that_holds_no_characters_is_refused(tmp_path: Path, meta: bytes) -> None:
    folder = prepared(tmp_path / "theirs")
    (folder / "meta.pkl").write_bytes(meta)
    assert f"{folder / 'meta.pkl'} is not the meta.pkl" in refusal(lambda: open_dataset(folder)).message


@pytest.mark.parametrize(("content", "what"), [(b"", "0 bytes"), (b"\0", "1 bytes"), (b"\0\0\0", "3 bytes")])
def test_a_bin_that_was_cut_short_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    folder = prepared(tmp_path / "theirs")
    (folder / "val.bin").write_bytes(content)
    assert f"val.bin has {what}" in refusal(lambda: open_dataset(folder)).message


def test_an_id_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    folder = prepared(tmp_path / "theirs")
    np.array([0, 1, 999], dtype=np.uint16).tofile(folder / "train.bin")
    assert "train.bin has id 999, beyond the vocabulary of" in refusal(lambda: open_dataset(folder)).message
