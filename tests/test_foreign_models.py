"""Models of other programs that a command takes as its RUN: nanoGPT's ckpt.pt, and Hugging Face's older folders."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import octavo
from commands import AssertRejected, RunCommand
from lenses import random_checkpoint
from octavo import checkpoint, training
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.training.setup import set_up

SHAPE = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64}


def assert_same_model(loaded: Checkpoint, model: Checkpoint) -> None:
    ids = model.tokenizer.encode("the cat sat")
    assert loaded.tokenizer.encode("the cat sat").tolist() == ids.tolist()
    assert loaded.tokenizer.end_of_text == model.tokenizer.end_of_text
    assert loaded.tokenizer.beginning_of_text == model.tokenizer.beginning_of_text
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(torch.from_numpy(ids)[None]), model.model(torch.from_numpy(ids)[None]), rtol=0, atol=0
        )


# nanoGPT


@pytest.fixture
def nanogpt(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a model as nanoGPT's train.py does, and returns its output folder."""

    def write(model: Checkpoint, prefix: str = "", changes: dict[str, Any] | None = None) -> Path:
        folder = octavo.convert(model, "nanogpt", tmp_path / "out-shakespeare").out
        content = torch.load(folder / "ckpt.pt", weights_only=True)
        content["model"] = {prefix + name: value for name, value in content["model"].items()}
        content |= {"optimizer": {"state": {}, "param_groups": []}, "config": {"dataset": "shakespeare_char"}}
        torch.save(content | (changes or {}), folder / "ckpt.pt")
        return folder

    return write


def char_model(folder: Path, **options: Any) -> Checkpoint:
    return random_checkpoint(folder, "char", activation="gelu", **SHAPE | options)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_ckpt_pt_is_the_same_model(tmp_path: Path, nanogpt: Callable[..., Path], bias: bool, prefix: str) -> None:
    model = char_model(tmp_path / "model", bias=bias)
    folder = nanogpt(model, prefix)
    for run in (folder, folder / "ckpt.pt"):
        loaded = octavo.load(run)
        assert loaded.settings.activation == "gelu"
        assert loaded.settings.bias == bias
        assert_same_model(loaded, model)


def nanogpt_optimizer(model: torch.nn.Module, seed: int) -> torch.optim.AdamW:
    """An optimizer as nanoGPT's `configure_optimizers` builds it, after two updates with random gradients."""
    parameters = [p for _, p in model.named_parameters()]
    groups = [[p for p in parameters if p.dim() >= 2], [p for p in parameters if p.dim() < 2]]
    optimizer = torch.optim.AdamW([{"params": group} for group in groups], lr=1e-3, fused=True)
    for step in range(2):
        generator = torch.Generator().manual_seed(seed + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("block_size", [64, 40])
def test_adamw_starts_with_the_moving_averages_of_nanogpts(
    tmp_path: Path, nanogpt: Callable[..., Path], bias: bool, block_size: int
) -> None:
    model = char_model(tmp_path / "model", bias=bias)
    model.model.requires_grad_()
    optimizer = nanogpt_optimizer(model.model, seed=1)
    folder = nanogpt(model, changes={"optimizer": optimizer.state_dict()})
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    settings = {"device": "cpu", "precision": "fp32", "max_steps": 1, "block_size": block_size, "batch_size": 2}
    plan = training.plan(str(text), init=folder, optimizer="adamw", **settings)
    setup = set_up(plan).result
    for name, parameter in model.model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            expected = value[:block_size] if name.endswith("wpe.weight") and value.dim() else value
            assert torch.equal(setup.optimizer_state[f"{key}.{name}"], expected)
    assert [notice for notice in setup.notices if "moving averages" in notice]
    run = octavo.train(text, init=folder, out=tmp_path / "run", optimizer="adamw", **settings)
    state = checkpoint.load_trainer(run.last)
    assert state.tensors["step.transformer.wte.weight"] == 3
    assert set_up(training.plan(str(text), init=folder, optimizer="muon", **settings)).result.optimizer_state == {}


@pytest.mark.parametrize(
    "state",
    [
        {0: {"step": 1}},
        {number: {"step": 1, "exp_avg": torch.ones(2), "exp_avg_sq": torch.ones(2)} for number in range(27)},
        {number: {"step": 1, "exp_avg": "text"} for number in range(100)},
    ],
)
def test_optimizer_state_of_another_model_is_rejected(
    tmp_path: Path, nanogpt: Callable[..., Path], state: dict[int, Any], assert_rejected: AssertRejected
) -> None:
    folder = nanogpt(char_model(tmp_path / "model"), changes={"optimizer": {"state": state, "param_groups": []}})
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 200, encoding="utf-8")
    assert_rejected(["train", text, "--init", folder, "--optimizer=adamw", "--block-size=64"], "ckpt.pt")


def test_the_characters_are_found_in_nanogpts_data_folder(tmp_path: Path, nanogpt: Callable[..., Path]) -> None:
    model = char_model(tmp_path / "model")
    folder = nanogpt(model)
    data = tmp_path / "data" / "shakespeare_char"
    data.mkdir(parents=True)
    shutil.move(folder / "meta.pkl", data / "meta.pkl")
    assert_same_model(octavo.load(folder), model)


def test_without_characters_the_error_says_where_to_put_them(tmp_path: Path, nanogpt: Callable[..., Path]) -> None:
    folder = nanogpt(char_model(tmp_path / "model"))
    (folder / "meta.pkl").unlink()
    with pytest.raises(OctavoError, match="vocabulary") as caught:
        octavo.load(folder)
    assert "meta.pkl" in str(caught.value.hint)


def test_a_vocabulary_of_another_dataset_is_rejected(tmp_path: Path, nanogpt: Callable[..., Path]) -> None:
    folder = nanogpt(char_model(tmp_path / "model"))
    (folder / "meta.pkl").write_bytes(pickle.dumps({"stoi": {"a": 0, "b": 1}, "itos": {0: "a", 1: "b"}}))
    with pytest.raises(OctavoError, match="2 tokens"):
        octavo.load(folder)


def test_a_padded_vocabulary_has_gpt2s_tokens(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared / "tiktoken-cache"))
    model = random_checkpoint(tmp_path / "model", "gpt2", vocab_size=50_304, activation="gelu", **SHAPE)
    loaded = octavo.load(octavo.convert(model, "nanogpt", tmp_path / "out").out)
    assert loaded.settings.vocab_size == 50_304
    assert_same_model(loaded, model)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": 1},
        {"model": {"transformer.wte.weight": 3}},
        {"model_args": {"n_layer": 2}},
        {"model_args": {"n_layer": -1, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 9, "bias": True}},
        {"model_args": {"n_layer": "2", "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 9, "bias": 1}},
        {"config": {"dataset": "../../secret"}},
        {"config": 4},
    ],
    ids=str,
)
def test_a_forged_ckpt_pt_is_an_error(tmp_path: Path, nanogpt: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(OctavoError):
        octavo.load(nanogpt(char_model(tmp_path / "model"), changes=changes))


def test_an_output_head_of_its_own_is_rejected(tmp_path: Path, nanogpt: Callable[..., Path]) -> None:
    """minGPT and other variants don't tie it to the token embedding: without it, the logits would be wrong."""
    model = char_model(tmp_path / "model")
    weights = model.model.state_dict()
    weights["lm_head.weight"] = weights["lm_head.weight"] + 0.1
    with pytest.raises(OctavoError, match="lm_head"):
        octavo.load(nanogpt(model, changes={"model": weights}))
    folder = tmp_path / "foreign"
    stored = foreign_folder(model, folder)
    torch.save(stored | {"lm_head.weight": weights["lm_head.weight"]}, folder / "pytorch_model.bin")
    with pytest.raises(OctavoError, match="lm_head"):
        octavo.load(folder)
    torch.save(stored | {"lm_head.weight": stored["transformer.wte.weight"]}, folder / "pytorch_model.bin")
    octavo.load(folder)


def test_a_ckpt_pt_that_is_cut_short_is_an_error(tmp_path: Path, nanogpt: Callable[..., Path]) -> None:
    path = nanogpt(char_model(tmp_path / "model")) / "ckpt.pt"
    content = path.read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(OctavoError):
            octavo.load(path)


def test_every_command_takes_a_ckpt_pt(
    workdir: Path, nanogpt: Callable[..., Path], run_command: RunCommand, assert_rejected: AssertRejected
) -> None:
    folder = nanogpt(char_model(workdir / "model"))
    Path("text.txt").write_text("the cat sat on the mat.\n" * 40, encoding="utf-8")
    short = ["--max-steps", "2", "--batch-size", "2", "--device", "cpu"]
    for command in (
        ["sample", folder, "--max-new-tokens", "5"],
        ["eval", folder, "text.txt"],
        ["inspect", folder, "attention", "--text", "the cat"],
        ["convert", folder, "model.gguf", "--to", "gguf"],
        ["train", "text.txt", "--init", folder, "--out", "tuned", *short],
    ):
        result = run_command(*command)
        assert result.code == 0, result.err
    assert octavo.load("tuned").settings.activation == "gelu"
    assert_rejected(["eval", folder], "SOURCE")
    assert_rejected(["inspect", folder, "verify"], "ckpt.pt")


# Hugging Face


def foreign_folder(model: Checkpoint, folder: Path) -> dict[str, Tensor]:
    """Copy a checkpoint as a folder that Octavo did not write, without weights. Returns the weights."""
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model.folder / name, folder)
    return safetensors.torch.load_file(model.folder / "model.safetensors")


def write_shards(folder: Path, weights: dict[str, Tensor], name: str, save: Callable[..., object]) -> None:
    stem, _, suffix = name.rpartition(".")
    files = {key: f"{stem}-0000{number % 3 + 1}-of-00003.{suffix}" for number, key in enumerate(sorted(weights))}
    for file in set(files.values()):
        save({key: weights[key] for key in weights if files[key] == file}, folder / file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}), encoding="utf-8")


@pytest.mark.parametrize("layout", ["sharded safetensors", "bin", "sharded bin"])
def test_weights_in_other_files_are_the_same_model(tmp_path: Path, layout: str) -> None:
    model = random_checkpoint(tmp_path / "model", **SHAPE)
    folder = tmp_path / "foreign"
    weights = foreign_folder(model, folder)
    match layout:
        case "sharded safetensors":
            write_shards(folder, weights, "model.safetensors", safetensors.torch.save_file)
        case "bin":
            torch.save(weights, folder / "pytorch_model.bin")
        case _:
            write_shards(folder, weights, "pytorch_model.bin", torch.save)
    assert_same_model(octavo.load(folder), model)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    weights = foreign_folder(random_checkpoint(tmp_path / "model", **SHAPE), folder)
    write_shards(folder, weights, "model.safetensors", safetensors.torch.save_file)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(OctavoError, match="model-00002-of-00003"):
        octavo.load(folder)


def test_a_weight_that_no_shard_has_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    weights = foreign_folder(random_checkpoint(tmp_path / "model", **SHAPE), folder)
    del weights["transformer.ln_f.weight"]
    write_shards(folder, weights, "model.safetensors", safetensors.torch.save_file)
    with pytest.raises(OctavoError) as caught:
        octavo.load(folder)
    assert f"{folder} does not match" in caught.value.message
    assert "ln_f.weight" in caught.value.message


def test_an_index_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    foreign_folder(random_checkpoint(tmp_path / "model", **SHAPE), folder)
    index = {"weight_map": {"transformer.wte.weight": "../model/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(OctavoError, match="index"):
        octavo.load(folder)


def test_a_checkpoint_with_a_manifest_never_loads_a_pickle(tmp_path: Path) -> None:
    model = random_checkpoint(tmp_path / "model", **SHAPE)
    weights = safetensors.torch.load_file(model.folder / "model.safetensors")
    torch.save(weights, model.folder / "pytorch_model.bin")
    (model.folder / "model.safetensors").unlink()
    manifest = json.loads((model.folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["model.safetensors"]
    (model.folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(OctavoError, match=r"model\.safetensors"):
        octavo.load(model.folder)


# Mistakes in a file are answered with the file, not with a flag of the command line


@pytest.mark.parametrize("change", [{"n_embd": "32"}, {"n_head": 3}, {"n_layer": 0}, {"n_positions": 1.5}], ids=str)
def test_a_wrong_value_in_config_json_names_the_file(
    workdir: Path, change: dict[str, Any], assert_rejected: AssertRejected
) -> None:
    folder = workdir / "foreign"
    torch.save(foreign_folder(random_checkpoint(workdir / "model", **SHAPE), folder), folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), encoding="utf-8")
    for command in (["sample", folder], ["train", "text.txt", "--init", folder]):
        assert "try: --" not in assert_rejected(command, folder / "config.json")


def test_a_wrong_value_in_a_ckpt_pt_names_the_file(
    workdir: Path, nanogpt: Callable[..., Path], assert_rejected: AssertRejected
) -> None:
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 32, "block_size": 64, "vocab_size": 9, "bias": True, "dropout": 0}
    folder = nanogpt(char_model(workdir / "model"), changes={"model_args": arguments})
    assert "try: --" not in assert_rejected(["sample", folder], "ckpt.pt")


def test_a_wrong_value_in_settings_toml_names_the_file(run_folder: Path, assert_rejected: AssertRejected) -> None:
    path = run_folder / "settings.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("batch_size = 2", "batch_size = 0"), encoding="utf-8")
    assert "try: --" not in assert_rejected(["train", "--resume", run_folder], path, "batch_size=0")


def test_a_gpt2_with_another_head_is_rejected_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    weights = foreign_folder(random_checkpoint(tmp_path / "model", **SHAPE), folder)
    torch.save(weights | {"multiple_choice_head.summary.weight": torch.zeros(1, 32)}, folder / "pytorch_model.bin")
    with pytest.raises(OctavoError, match=r"multiple_choice_head\.summary\.weight") as caught:
        octavo.load(folder)
    assert "GPT2LMHeadModel" in str(caught.value.hint)
