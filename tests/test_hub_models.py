"""`hf:NAME`, a model of the Hugging Face hub: from the cache of its client, or downloaded into it. No network here."""

import fnmatch
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import octavo
from commands import AssertRejected, RunCommand
from lenses import random_checkpoint
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError

NAME = "openai-community/gpt2-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 32}
    return random_checkpoint(tmp_path_factory.mktemp("model") / "model", "bpe:300", **shape)


@pytest.fixture(autouse=True)
def hub_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client; a test that would use the network fails."""
    cache = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def fill_cache(cache: Path, model: Checkpoint, name: str = NAME, without: tuple[str, ...] = ()) -> Path:
    """Put a model into the cache as the hub's client does, with links to its blobs."""
    folder = snapshot(cache, name)
    blobs, refs = folder.parents[1] / "blobs", folder.parents[1] / "refs"
    for each in (folder, blobs, refs):
        each.mkdir(parents=True, exist_ok=True)
    (refs / "main").write_text(COMMIT, encoding="utf-8")
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        if file not in without:
            shutil.copy(model.folder / file, blobs / file)
            (folder / file).symlink_to(blobs / file)
    return folder


@pytest.fixture
def downloads(hub_cache: Path, model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Replaces the client's download by copies of files that match its patterns. Returns the patterns of each call."""
    calls: list[list[str]] = []

    def download(name: str, allow_patterns: list[str], **_: Any) -> str:
        calls.append(allow_patterns)
        folder = snapshot(hub_cache, name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder.parents[1] / "refs").mkdir(exist_ok=True)
        (folder.parents[1] / "refs" / "main").write_text(COMMIT, encoding="utf-8")
        for path in model.folder.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                (folder / path.name).unlink(missing_ok=True)
                shutil.copy(path, folder)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize("name", [NAME, f"hf:{NAME}"])
def test_every_command_takes_a_model_in_the_cache(
    name: str, hub_cache: Path, model: Checkpoint, workdir: Path, run_command: RunCommand
) -> None:
    fill_cache(hub_cache, model)
    short = ["--max-steps", "1", "--batch-size", "2", "--block-size", "8", "--device", "cpu"]
    for command in (
        ["sample", name, "--max-new-tokens", "5"],
        ["eval", name, "text.txt"],
        ["inspect", name, "attention", "--text", "the cat"],
        ["convert", name, "out", "--to", "nanogpt"],
        ["train", "text.txt", "--init", name, "--out", "tuned", *short],
    ):
        result = run_command(*command)
        assert result.code == 0, result.err


def test_a_model_that_is_not_in_the_cache_is_downloaded_once(downloads: list[list[str]], model: Checkpoint) -> None:
    folders = {octavo.load(f"hf:{NAME}").folder for _ in range(2)}
    [patterns] = downloads
    names = ["config.json", "model.safetensors", "tokenizer.json", "vocab.json", "model.safetensors.index.json"]
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in names)
    unwanted = ["flax_model.msgpack", "tf_model.h5", "pytorch_model.bin", "rust_model.ot"]
    assert not any(fnmatch.fnmatch(name, pattern) for pattern in patterns for name in unwanted)
    assert [folder.name for folder in folders] == [COMMIT]


def test_pickled_weights_are_downloaded_only_if_there_are_no_others(
    downloads: list[list[str]], model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download: Callable[..., str] = huggingface_hub.snapshot_download

    def download_pickles(name: str, **options: Any) -> str:
        folder = Path(download(name, **options))
        (folder / "model.safetensors").unlink(missing_ok=True)
        if any("pytorch_model" in pattern for pattern in options["allow_patterns"]):
            (folder / "pytorch_model.bin").write_bytes(b"no pickle")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download_pickles)
    with pytest.raises(OctavoError, match=r"pytorch_model\.bin"):
        octavo.load(f"hf:{NAME}")
    assert len(downloads) == 2


def test_an_incomplete_model_in_the_cache_is_completed(
    hub_cache: Path, model: Checkpoint, downloads: list[list[str]]
) -> None:
    fill_cache(hub_cache, model, without=("tokenizer.json",))
    with pytest.raises(OctavoError, match="does not exist"):
        octavo.load(NAME)
    octavo.load(f"hf:{NAME}")
    assert len(downloads) == 1


def test_a_name_without_hf_never_uses_the_network(
    assert_rejected: AssertRejected, downloads: list[list[str]], run_folder: Path
) -> None:
    for name in ("gpt2", NAME):
        assert_rejected(["sample", name], f"{name} does not exist", f"hf:{name}", run_folder)
        assert_rejected(["train", "text.txt", "--init", name], f"{name} does not exist", f"hf:{name}")
    assert "hf:" not in assert_rejected(["sample", "runs/min"], "runs/min does not exist")
    assert not downloads


def test_a_path_and_a_run_take_precedence_over_the_cache(
    hub_cache: Path, model: Checkpoint, run_folder: Path, assert_rejected: AssertRejected
) -> None:
    fill_cache(hub_cache, model, run_folder.name)
    assert octavo.load(run_folder.name).folder.parents[1] == run_folder
    shutil.rmtree(run_folder)
    assert octavo.load(run_folder.name).folder == snapshot(hub_cache, run_folder.name)
    Path(run_folder.name).mkdir()
    assert_rejected(["sample", run_folder.name], "neither a run nor a checkpoint")


def test_a_path_that_cannot_be_a_name_on_the_hub_is_one_message(assert_rejected: AssertRejected) -> None:
    for path in ("my--run", "my..run", "run.git", "run.", "a./run", "a/b/c"):
        assert "hf:" not in assert_rejected(["eval", path, "text.txt"], "does not exist")


@pytest.mark.parametrize(
    "name", ["hf:no/such", "hf:", "hf:a/b/c", "hf:../secret", "hf:gpt2 ", "hf:\x00", "hf:a--b", "hf:a..b", "hf:a.git"]
)
def test_a_model_that_cannot_be_downloaded_is_one_message(name: str, assert_rejected: AssertRejected) -> None:
    assert_rejected(["sample", name], "hub" if name != "hf:no/such" else name)
