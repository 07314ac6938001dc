"""A checkpoint is a Hugging Face GPT-2 folder: its files, and transformers and Octavo load each other's models."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

import octavo
from checkpoints import (
    INFO,
    TEXT,
    TRAINER,
    TRAINER_FILES,
    WEIGHT_FILES,
    assert_same_function,
    has_same_weights,
    load_error,
    random_ids,
    remove_octavo_files,
    save,
    small_model,
)
from folders import contents
from generating import generate_ids
from octavo import checkpoint, cli
from octavo.checkpoint import TrainerState
from octavo.generation.sampling import Sampling
from octavo.model import GPT


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all its files; tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "step-000007"
    save(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "step-000007"))


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same model in a Hugging Face folder without the files that only Octavo writes."""
    return remove_octavo_files(folder)


# Hugging Face transformers


@pytest.fixture
def transformers_warnings() -> Iterator[list[str]]:
    """The warnings that transformers logs."""
    messages: list[str] = []

    class ListHandler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = ListHandler(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe:300"])
def test_transformers_loads_a_checkpoint_without_conversion(
    kind: str, bias: bool, activation: str, tmp_path: Path, transformers_warnings: list[str]
) -> None:
    model, tokenizer, settings = small_model(kind, seed=6, bias=bias, activation=activation)
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO, TRAINER)

    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "step", output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected, mismatched or newly initialized
    assert_same_function(model, theirs)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "step")
    ids = tokenizer.encode(TEXT).tolist()
    assert their_tokenizer(TEXT, verbose=False)["input_ids"] == ids
    assert their_tokenizer(TEXT, truncation=True)["input_ids"] == ids[:16]  # block_size
    assert their_tokenizer.decode(ids) == TEXT

    texts = set()
    for prompt in random_ids(model)[:, :5].tolist():
        steps = generate_ids(model, prompt, Sampling(temperature=0), torch.Generator())
        ours = [next(steps) for _ in range(8)]
        (ids,) = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8).tolist()
        assert ids == prompt + ours[: len(ids) - 5]
        assert len(ids) == 13 or ids[-1] == tokenizer.end_of_text
        texts.add(tuple(ours))
    assert len(texts) == 3  # different prompts have different completions, so that equality means something
    assert not transformers_warnings


def save_in_several_files(folder: Path, bias: bool = True) -> GPT:
    """Save a checkpoint with its weights in four files. Returns the model."""
    model, tokenizer, settings = small_model(bias=bias)
    checkpoint.save(folder, model, tokenizer, settings, INFO, TRAINER, max_file_bytes=9000)
    assert sorted(path.name for path in folder.glob("model*")) == [
        *(f"model-0000{number}-of-00004.safetensors" for number in (1, 2, 3, 4)),
        "model.safetensors.index.json",
    ]
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_weights_in_several_files_are_the_same_model(bias: bool, tmp_path: Path) -> None:
    """For Octavo, for the reference that computes from the files, and for transformers."""
    folder = tmp_path / "step"
    model = save_in_several_files(folder, bias)
    assert all(path.stat().st_size < 9000 + 3000 for path in folder.glob("model-*"))  # a header and its names
    assert has_same_weights(model, checkpoint.load(folder).model)
    assert octavo.inspect(folder, "verify").ok
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert_same_function(model, theirs)
    assert checkpoint.load_trainer(folder).values == TRAINER.values


def test_octavo_samples_from_weights_in_several_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer, settings = small_model()
    outputs = []
    for name, max_file_bytes in (("one", 10**9), ("several", 9000)):
        checkpoint.save(tmp_path / name, model, tokenizer, settings, INFO, TRAINER, max_file_bytes=max_file_bytes)
        assert cli.main(["sample", str(tmp_path / name), "--max-new-tokens", "20", "--prompt", "a"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != ""


@pytest.mark.parametrize("damage", ["changed", "missing", "not in the manifest"])
@pytest.mark.parametrize(
    "name", [*(f"model-0000{number}-of-00004.safetensors" for number in (1, 4)), "model.safetensors.index.json"]
)
def test_each_of_several_files_is_verified(name: str, damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "step"
    save_in_several_files(folder)
    if damage == "changed":
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        (folder / name).write_bytes(content)
    elif damage == "missing":
        (folder / name).unlink()
    else:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        del manifest["files"][name]
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert name in load_error(folder).message


@pytest.mark.parametrize("bias", [True, False])
def test_a_model_that_transformers_saved_again_is_unchanged(bias: bool, tmp_path: Path) -> None:
    model, tokenizer, settings = small_model("bpe:300", bias=bias, activation="gelu")
    checkpoint.save(tmp_path / "ours", model, tokenizer, settings, INFO)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    loaded = octavo.load(tmp_path / "theirs")
    assert_same_function(loaded.model, model)
    assert loaded.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert loaded.tokenizer.end_of_text == tokenizer.end_of_text


def test_transformers_reads_the_architecture_from_config_json(tmp_path: Path) -> None:
    shape = dict(block_size=8, n_layer=3, n_head=4, n_embd=12, dropout=0.2, attention_dropout=0.1, activation="gelu")
    for kind in ("char", "bpe:300"):
        model, tokenizer, settings = small_model(kind, **shape)
        checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO)
        config = json.loads((tmp_path / "step" / "config.json").read_text(encoding="utf-8"))
        expected = {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": tokenizer.vocab_size,
            "n_positions": 8,
            "n_ctx": 8,
            "n_embd": 12,
            "n_layer": 3,
            "n_head": 4,
            "n_inner": None,
            "activation_function": "gelu",
            "embd_pdrop": 0.2,
            "resid_pdrop": 0.2,
            "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-5,
            "scale_attn_weights": True,
            "tie_word_embeddings": True,
            "bos_token_id": tokenizer.beginning_of_text,
            "eos_token_id": tokenizer.end_of_text,
            "pad_token_id": tokenizer.end_of_text,
        }
        assert {name: config[name] for name in expected} == expected
        assert config.keys() <= transformers.GPT2Config().to_dict().keys() | {"n_ctx"}
        loaded = transformers.GPT2Config.from_pretrained(tmp_path / "step")
        assert {name: getattr(loaded, name) for name in expected} == expected


# The files of a checkpoint


def test_a_checkpoint_has_the_documented_files_and_no_pickle(pristine: Path, tmp_path: Path) -> None:
    save(tmp_path / "weights", trainer=None)
    assert set(contents(tmp_path / "weights")) == WEIGHT_FILES
    assert set(contents(pristine)) == WEIGHT_FILES | TRAINER_FILES
    for path in pristine.iterdir():  # each file has the format of its suffix, so none is a pickle
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            safetensors.torch.load_file(path)


def test_json_files_are_written_for_people(folder: Path) -> None:
    model, tokenizer, settings = small_model()
    checkpoint.save(folder, model, tokenizer, settings, INFO | {"data": {"source": "für Elise"}}, TRAINER)

    def assert_readable(*names: str) -> None:
        for name in names:
            text = (folder / name).read_text(encoding="utf-8")
            assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"

    assert_readable("octavo.json", "trainer.json", "manifest.json")
    assert "für Elise" in (folder / "octavo.json").read_text(encoding="utf-8")
    checkpoint.strip_trainer(folder)
    assert_readable("manifest.json")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_all_files_have_the_same_permissions(pristine: Path) -> None:
    assert len({path.stat().st_mode for path in pristine.iterdir()}) == 1


@pytest.mark.parametrize("trainer", [None, TRAINER])
def test_the_manifest_covers_every_other_file(trainer: TrainerState | None, tmp_path: Path) -> None:
    save(tmp_path / "step", trainer=trainer)
    files = contents(tmp_path / "step")
    manifest = json.loads(files.pop("manifest.json"))
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe:300"])
def test_a_loaded_checkpoint_is_bit_identical(kind: str, bias: bool, tmp_path: Path) -> None:
    model, tokenizer, settings = small_model(kind, bias=bias)
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO, TRAINER)
    loaded = checkpoint.load(tmp_path / "step")
    assert has_same_weights(loaded.model, model)
    assert loaded.model.lm_head.weight is loaded.model.transformer.wte.weight
    assert loaded.tokenizer.fingerprint == tokenizer.fingerprint
    assert loaded.settings == loaded.model.settings == settings
    assert {name: loaded.info[name] for name in INFO} == INFO
    assert not loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())

    state = checkpoint.load_trainer(tmp_path / "step")
    assert state.values == TRAINER.values
    assert state.tensors.keys() == TRAINER.tensors.keys()
    assert all(torch.equal(state.tensors[name], TRAINER.tensors[name]) for name in TRAINER.tensors)


def test_saving_is_deterministic(pristine: Path, tmp_path: Path) -> None:
    save(tmp_path / "step")
    assert contents(tmp_path / "step") == contents(pristine)


def test_a_loaded_model_does_not_depend_on_its_files(folder: Path) -> None:
    """They are not memory-mapped: Windows would then refuse to overwrite or remove them."""
    model, state = checkpoint.load(folder).model, checkpoint.load_trainer(folder)
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.write(bytes(size))
    assert has_same_weights(model, small_model()[0])
    assert all(torch.equal(state.tensors[name], TRAINER.tensors[name]) for name in TRAINER.tensors)


# Folders that Octavo did not write


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_model_that_transformers_saved_loads_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    _, tokenizer, _ = small_model("bpe:300")
    shape = dict(n_layer=2, n_head=3, n_embd=24, n_positions=16, vocab_size=tokenizer.vocab_size)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, dtype=dtype)).eval().to(dtype)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    loaded = octavo.load(tmp_path)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert_same_function(loaded.model, theirs.float())
    assert loaded.info == {}
    assert loaded.settings.bias


def test_the_layout_of_the_original_gpt2_upload_loads(tmp_path: Path) -> None:
    """It has names without `transformer.`, the causal mask among the weights, and the tokenizer in two files."""
    model, tokenizer, settings = small_model("byte")
    checkpoint.save(tmp_path / "gpt2", model, tokenizer, settings, INFO)
    folder = remove_octavo_files(tmp_path / "gpt2")
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    stored = {name.removeprefix("transformer."): value for name, value in stored.items()}
    for layer in range(2):
        stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        stored[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    loaded = checkpoint.load(folder)
    assert has_same_weights(loaded.model, model)
    assert loaded.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_a_stored_copy_of_the_tied_output_head_is_ignored(foreign: Path) -> None:
    stored = safetensors.torch.load_file(foreign / "model.safetensors")
    stored["lm_head.weight"] = stored["transformer.wte.weight"].clone()
    safetensors.torch.save_file(stored, foreign / "model.safetensors")
    assert has_same_weights(checkpoint.load(foreign).model, small_model()[0])


def test_a_model_with_more_rows_than_the_tokenizer_has_tokens_loads(tmp_path: Path) -> None:
    model, tokenizer, settings = small_model(vocab_size=64)
    assert tokenizer.vocab_size < 64
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO)
    assert has_same_weights(checkpoint.load(tmp_path / "step").model, model)
