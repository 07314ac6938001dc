"""Folders of versions whose tokenizers `char`, `byte` and `word` had no end-of-text token work as before."""

import json
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo import runs, tokenizers
from octavo.data.dataset import Dataset, open_dataset
from octavo.data.prepare import prepare, prepare_dataset
from octavo.runs import Run
from preparing import data_settings, write, write_jsonl
from small_models import without_end_of_text

TEXT = "the cat sat on the mat, and the rat sat on the hat.\n" * 30
KINDS = ("char", "byte", "word:300")
FINGERPRINTS = {  # of the tokenizers that the earlier version built
    "char": "f8ed86b10d54259e3d4b8aec75ba60731f7b1d60a78e0c37f8e422039771f6de",
    "byte": "4d5fa8ef11ce9956776d8e6be5f458522380589a5db1a098f50ba7b82a59c1bc",
    "word:300": "773919e7e4e56cc0c300bef9d13356b631f80576992ec262824d1c98641d4259",
}
SHAPE = dict(n_layer=1, n_head=2, n_embd=16)
SETTINGS = dict(block_size=16, batch_size=4, max_steps=2, eval_every=1, device="cpu")


@pytest.fixture(params=KINDS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset:
    """A prepared folder as the earlier version wrote it."""
    earlier = without_end_of_text(tokenizers.build(request.param, TEXT))
    assert earlier.fingerprint == FINGERPRINTS[request.param]
    return prepare_dataset(data_settings(write(tmp_path / "text.txt", TEXT), request.param), earlier).result


@pytest.fixture
def run(data: Dataset, tmp_path: Path) -> Run:
    """A run as the earlier version wrote it."""
    return octavo.train(data.folder, out=tmp_path / "run", **SETTINGS, **SHAPE)


def test_its_tokenizer_and_ids_are_unchanged(data: Dataset) -> None:
    loaded = open_dataset(data.folder).tokenizer
    assert loaded.fingerprint == data.tokenizer.fingerprint
    assert (loaded.end_of_text, loaded.beginning_of_text) == (None, None)
    assert (loaded.special_tokens_map, loaded.special_ids) == ({}, set())
    assert "".join(loaded.decode(data.tokens[split]) for split in ("train", "val")) == TEXT
    config = json.loads((data.folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"eos_token", "pad_token", "start_of_text"} & config.keys()


def test_a_new_tokenizer_gives_one_text_the_same_ids(data: Dataset, tmp_path: Path) -> None:
    new = prepare(tmp_path / "text.txt", tmp_path / "new", tokenizer=data.info["tokenizer"])
    for split in ("train", "val"):
        np.testing.assert_array_equal(new.tokens[split], data.tokens[split])
    assert new.tokenizer.token_bytes == [*data.tokenizer.token_bytes, b"<|endoftext|>"]
    assert new.tokenizer.beginning_of_text == new.tokenizer.encode("\n")[0]


def test_its_run_is_resumed_sampled_and_fine_tuned(run: Run, data: Dataset, tmp_path: Path) -> None:
    resumed = octavo.train(resume=run.folder, max_steps=4)
    loaded = runs.load(resumed)
    assert loaded.settings.vocab_size == loaded.tokenizer.vocab_size == data.tokenizer.vocab_size
    assert octavo.generate(loaded, max_new_tokens=5)[0].finish_reason == "length"
    config = json.loads((loaded.folder / "config.json").read_text(encoding="utf-8"))
    assert (config["bos_token_id"], config["eos_token_id"]) == (None, None)
    rows = write_jsonl(tmp_path / "rows.jsonl", ["the cat", "the rat\n", "sat on the mat"] * 20)
    tuned = octavo.train(rows, init=run, out=tmp_path / "tuned", **SETTINGS)
    assert runs.load(tuned).tokenizer.fingerprint == data.tokenizer.fingerprint


def test_a_cached_text_is_prepared_again_for_a_new_run(data: Dataset, tmp_path: Path) -> None:
    settings = data_settings(tmp_path / "text.txt", data.info["tokenizer"])
    assert prepare_dataset(settings).result.tokenizer.vocab_size == data.tokenizer.vocab_size + 1
