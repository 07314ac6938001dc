"""A checkpoint is a Hugging Face GPT-2 folder: what transformers makes of it, what is refused, what a crash leaves."""

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import octavo
from octavo import checkpoint, tokenizers
from octavo.checkpoint import TrainerState
from octavo.errors import OctavoError
from octavo.generation.engine import generate_ids
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer

TEXT = "Die Katze saß auf der Matte; كتاب, किताब, 🦉!\nthe cat sat on the mat, and the rat sat on the hat.\n" * 4
WEIGHT_FILES = {
    "config.json",
    "generation_config.json",
    "manifest.json",
    "model.safetensors",
    "octavo.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
TRAINER_FILES = {"trainer.json", "trainer.safetensors"}
TRAINER = TrainerState({"exp_avg.transformer.wte.weight": torch.arange(6.0).view(2, 3)}, {"step": 7, "best": 0.1})
INFO = {"step": 7, "val_loss": 2.5, "data": {"fingerprint": "f00d"}}
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


def made(kind: str = "char", seed: int = 0, **shape: Any) -> tuple[GPT, Tokenizer, Settings]:
    """A small model, its weights far enough apart that a mistake in any of them shows."""
    tokenizer = tokenizers.build(kind, TEXT)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": tokenizer.vocab_size} | shape
    settings = Settings(**shape, tokenizer=kind)
    model = GPT(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, middle, 0.2, generator=generator)
    return model, tokenizer, settings


def save(folder: Path, seed: int = 0, trainer: TrainerState | None = TRAINER) -> None:
    checkpoint.save(folder, *made(seed=seed), INFO, trainer)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all its files, to look at and to copy."""
    folder = tmp_path_factory.mktemp("checkpoint") / "step-000007"
    save(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "step-000007"))


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same as a Hugging Face folder."""
    return disowned(folder)


def disowned(folder: Path) -> Path:
    """Without Octavo's own files, and so without a manifest."""
    for name in ("manifest.json", "octavo.json", *TRAINER_FILES):
        (folder / name).unlink(missing_ok=True)
    return folder


def texts(model: GPT, batch: int = 3) -> Tensor:
    """Ids (B, T) that fill the block."""
    shape = (batch, model.settings.block_size)
    return torch.randint(model.settings.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_function(ours: GPT, theirs: "transformers.GPT2LMHeadModel | GPT") -> None:
    assert not theirs.training
    idx = texts(ours)
    logits = theirs(idx)
    torch.testing.assert_close(getattr(logits, "logits", logits), ours(idx), rtol=0, atol=1e-5)


def same_weights(one: GPT, other: GPT) -> bool:
    """Bit for bit."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file under `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(folder: Path) -> OctavoError:
    with pytest.raises(OctavoError) as caught:
        checkpoint.load(folder)
    assert caught.value.hint
    return caught.value


def edit(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file, and its manifest with it where there is one."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    manifest = path.with_name("manifest.json")
    if manifest.exists():
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        content = path.read_bytes()
        listed["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(listed), encoding="utf-8")


# What transformers makes of it


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What transformers logs at the level of warnings and above."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    yield said
    logger.removeHandler(listener)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe:300"])
def test_transformers_loads_the_folder_as_it_lies(
    kind: str, bias: bool, activation: str, tmp_path: Path, complaints: list[str]
) -> None:
    model, tokenizer, settings = made(kind, bias=bias, activation=activation)
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO, TRAINER)

    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "step", output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, unexpected, mismatched or newly initialized
    assert_same_function(model, theirs)

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "step")
    ids = tokenizer.encode(TEXT).tolist()
    assert their_tokenizer(TEXT)["input_ids"] == ids
    assert their_tokenizer.decode(ids) == TEXT
    assert not complaints

    continuations = set()
    for prompt in texts(model)[:, :5].tolist():
        steps = generate_ids(model, prompt, Sampling(temperature=0), torch.Generator())
        ours = [next(steps) for _ in range(8)]
        [written] = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=8).tolist()
        assert written == prompt + ours[: len(written) - 5]
        assert len(written) == 13 or written[-1] == tokenizer.end_of_text
        continuations.add(tuple(ours))
    assert len(continuations) == 3  # a model that always says the same would show little


@pytest.mark.parametrize("bias", [True, False])
def test_what_transformers_saves_again_is_the_same_model(bias: bool, tmp_path: Path) -> None:
    model, tokenizer, settings = made("bpe:300", bias=bias, activation="gelu")
    checkpoint.save(tmp_path / "ours", model, tokenizer, settings, INFO)
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    transformers.AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = octavo.load(tmp_path / "theirs")
    assert_same_function(back.model, model)
    assert back.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    assert back.tokenizer.end_of_text == tokenizer.end_of_text


def test_config_json_says_all_that_a_gpt2_is(tmp_path: Path) -> None:
    shape = dict(block_size=8, n_layer=3, n_head=4, n_embd=12, dropout=0.2, attention_dropout=0.1, activation="gelu")
    for kind in ("char", "bpe:300"):
        model, tokenizer, settings = made(kind, **shape)
        checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO)
        config = json.loads((tmp_path / "step" / "config.json").read_text(encoding="utf-8"))
        expected = {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": tokenizer.vocab_size,
            "n_positions": 8, "n_ctx": 8, "n_embd": 12, "n_layer": 3, "n_head": 4, "n_inner": None,
            "activation_function": "gelu", "embd_pdrop": 0.2, "resid_pdrop": 0.2, "attn_pdrop": 0.1,
            "layer_norm_epsilon": 1e-5, "scale_attn_weights": True, "tie_word_embeddings": True,
            "bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text,
        }  # fmt: skip
        assert {name: config[name] for name in expected} == expected
        known = transformers.GPT2Config().to_dict().keys() | {"n_ctx"}
        assert config.keys() <= known
        read = transformers.GPT2Config.from_pretrained(tmp_path / "step")
        assert {name: getattr(read, name) for name in expected} == expected


# What is in it


def test_the_folder_holds_what_it_should_and_no_pickle(pristine: Path, tmp_path: Path) -> None:
    save(tmp_path / "weights", trainer=None)
    assert set(contents(tmp_path / "weights")) == WEIGHT_FILES
    assert set(contents(pristine)) == WEIGHT_FILES | TRAINER_FILES
    for path in pristine.iterdir():  # each is what its name says, and so no pickle
        json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else safetensors.torch.load_file(path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_whoever_may_read_one_file_may_read_all(pristine: Path) -> None:
    assert len({path.stat().st_mode for path in pristine.iterdir()}) == 1


@pytest.mark.parametrize("trainer", [None, TRAINER])
def test_the_manifest_covers_every_other_file(trainer: TrainerState | None, tmp_path: Path) -> None:
    save(tmp_path / "step", trainer=trainer)
    found = contents(tmp_path / "step")
    manifest = json.loads(found.pop("manifest.json"))
    assert manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in found.items()
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["char", "byte", "word", "bpe:300"])
def test_loading_gives_bitwise_what_was_saved(kind: str, bias: bool, tmp_path: Path) -> None:
    model, tokenizer, settings = made(kind, bias=bias)
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO, TRAINER)
    loaded = checkpoint.load(tmp_path / "step")
    assert same_weights(loaded.model, model)
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


def test_the_same_model_is_saved_as_the_same_bytes(pristine: Path, tmp_path: Path) -> None:
    save(tmp_path / "step")
    assert contents(tmp_path / "step") == contents(pristine)


def test_what_was_loaded_has_done_with_the_files(folder: Path) -> None:
    """They may be removed, which Windows would refuse, or written over."""
    model, state = checkpoint.load(folder).model, checkpoint.load_trainer(folder)
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            file.write(bytes(size))
    assert same_weights(model, made()[0])
    assert all(torch.equal(state.tensors[name], TRAINER.tensors[name]) for name in TRAINER.tensors)


# Folders from elsewhere


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpt2_that_transformers_saved_loads_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    _, tokenizer, _ = made("bpe:300")
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


def test_the_first_gpt2_on_the_hub_loads(tmp_path: Path) -> None:
    """No `transformer.` before the names, the causal mask beside the weights, the tokenizer in two files."""
    model, tokenizer, settings = made("byte")
    checkpoint.save(tmp_path / "gpt2", model, tokenizer, settings, INFO)
    folder = disowned(tmp_path / "gpt2")
    old = safetensors.torch.load_file(folder / "model.safetensors")
    old = {name.removeprefix("transformer."): value for name, value in old.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors.torch.save_file(old, folder / "model.safetensors")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    loaded = checkpoint.load(folder)
    assert same_weights(loaded.model, model)
    assert loaded.tokenizer.encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()


def test_a_stored_head_beside_the_tied_embedding_does_no_harm(foreign: Path) -> None:
    stored = safetensors.torch.load_file(foreign / "model.safetensors")
    stored["lm_head.weight"] = stored["transformer.wte.weight"].clone()
    safetensors.torch.save_file(stored, foreign / "model.safetensors")
    assert same_weights(checkpoint.load(foreign).model, made()[0])


def test_a_vocabulary_with_room_to_spare_loads(tmp_path: Path) -> None:
    model, tokenizer, settings = made(vocab_size=64)
    assert tokenizer.vocab_size < 64
    checkpoint.save(tmp_path / "step", model, tokenizer, settings, INFO)
    assert same_weights(checkpoint.load(tmp_path / "step").model, model)


# What is refused


@pytest.mark.parametrize("name", sorted((WEIGHT_FILES | TRAINER_FILES) - {"manifest.json"}))
def test_a_file_that_was_changed_cut_or_removed_is_named(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()

    @law
    @hypothesis.given(place=st.integers(0, len(content) - 1), bit=st.integers(0, 7))
    @hypothesis.example(place=0, bit=0)
    @hypothesis.example(place=len(content) - 1, bit=7)
    def damage(place: int, bit: int) -> None:
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (folder / name).write_bytes(flipped)
        assert f"{folder / name} was changed" in refusal(folder).message
        (folder / name).write_bytes(content[:place])
        assert f"{folder / name} has {place} bytes" in refusal(folder).message

    damage()
    (folder / name).unlink()
    assert name in refusal(folder).message


@pytest.mark.parametrize("bit", [0, 4, 7])
def test_a_flipped_bit_in_the_manifest_is_refused_or_harmless(bit: int, folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    harmless = 0
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        (folder / "manifest.json").write_bytes(flipped)
        with contextlib.suppress(OctavoError):
            checkpoint.check_manifest(folder)
            harmless += 1
    assert harmless < len(content) / 5  # white space


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"files": []}', '{"files": {"config.json": 1}}'])
def test_a_manifest_that_is_none_is_named(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    assert str(folder / "manifest.json") in refusal(folder).message


def test_a_checkpoint_without_its_manifest_was_not_finished(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert f"{folder} has no manifest.json" in refusal(folder).message


def test_a_setting_that_this_version_does_not_know_is_an_error_that_names_it(folder: Path) -> None:
    settings = json.loads((folder / "octavo.json").read_text(encoding="utf-8"))["settings"]
    edit(folder / "octavo.json", settings=settings | {"rotary": True})
    with pytest.raises(OctavoError) as caught:
        checkpoint.load(folder)
    assert "rotary" in caught.value.message
    assert str(folder) in caught.value.message


def test_a_folder_of_a_newer_format_is_told(folder: Path) -> None:
    edit(folder / "octavo.json", format=checkpoint.FORMAT + 1)
    said = refusal(folder)
    assert f"{folder} has format {checkpoint.FORMAT + 1}" in said.message
    assert said.hint == "a newer Octavo"


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe{}", b"[]", b"null", b"7", b'{"model_type": "gpt2"'])
def test_a_config_that_is_no_json_object_is_named(content: bytes, foreign: Path) -> None:
    (foreign / "config.json").write_bytes(content)
    assert str(foreign / "config.json") in refusal(foreign).message


def test_a_folder_without_a_config_is_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert f"{folder} is not a checkpoint" in refusal(folder).message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", "llama"),
        ("n_inner", 32),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("tie_word_embeddings", False),
        ("add_cross_attention", True),
        ("activation_function", "relu"),
    ],
)
def test_a_variant_that_we_would_compute_wrongly_is_named(name: str, value: Any, foreign: Path) -> None:
    edit(foreign / "config.json", **{name: value})
    said = refusal(foreign).message
    assert str(foreign) in said
    assert f"{name}={value!r}" in said or f"a {value!r} model" in said


def test_other_spellings_of_the_same_function_load(foreign: Path) -> None:
    edit(foreign / "config.json", n_inner=64, activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True)
    assert same_weights(checkpoint.load(foreign).model, made()[0])


@pytest.mark.parametrize("value", [None, "12", -1, 0, 2.5, [4], True, 10**30])
@pytest.mark.parametrize("name", ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size"])
def test_a_size_that_is_no_such_number_is_refused(name: str, value: Any, foreign: Path) -> None:
    edit(foreign / "config.json", **{name: value})
    refusal(foreign)


@pytest.mark.parametrize("value", [None, "much", [0.1], -0.1, 1.5])
@pytest.mark.parametrize("name", ["resid_pdrop", "attn_pdrop"])
def test_a_dropout_that_is_no_such_number_is_refused(name: str, value: Any, foreign: Path) -> None:
    edit(foreign / "config.json", **{name: value})
    refusal(foreign)


def removed(stored: dict[str, Tensor], name: str) -> None:
    del stored[name]


def turned(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = stored[name].T.contiguous()


def cropped(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = stored[name][:-1].contiguous()


def added(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = torch.zeros(2, 16)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (removed, "transformer.wte.weight"),
        (removed, "transformer.h.1.attn.c_attn.bias"),
        (removed, "transformer.ln_f.weight"),
        (turned, "transformer.h.0.mlp.c_fc.weight"),
        (turned, "transformer.h.1.attn.c_attn.weight"),
        (cropped, "transformer.wte.weight"),
        (cropped, "transformer.wpe.weight"),
        (added, "transformer.h.2.ln_1.weight"),
        (added, "score.weight"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_named(
    damage: Callable[[dict[str, Tensor], str], None], name: str, foreign: Path
) -> None:
    stored = safetensors.torch.load_file(foreign / "model.safetensors")
    damage(stored, name)
    safetensors.torch.save_file(stored, foreign / "model.safetensors")
    said = refusal(foreign).message
    assert f"{foreign / 'model.safetensors'} does not fit its config.json" in said
    assert name in said


def test_weights_cut_anywhere_are_refused_without_a_manifest_too(foreign: Path) -> None:
    path = foreign / "model.safetensors"
    content = path.read_bytes()

    @law
    @hypothesis.given(length=st.integers(0, len(content) - 1))
    @hypothesis.example(length=0)
    @hypothesis.example(length=len(content) - 1)
    def cut(length: int) -> None:
        path.write_bytes(content[:length])
        assert f"{path} is damaged" in refusal(foreign).message

    cut()


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_a_pickle_is_never_read(foreign: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (foreign / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    checkpoint.load(foreign)
    (foreign / "model.safetensors").unlink()
    said = refusal(foreign)
    assert f"{foreign} has no model.safetensors" in said.message
    assert "Octavo reads no pickle" in str(said.hint)
    assert not (tmp_path / "exploded").exists()


def test_weights_in_several_files_are_told(foreign: Path) -> None:
    (foreign / "model.safetensors").rename(foreign / "model-00001-of-00002.safetensors")
    said = refusal(foreign)
    assert f"{foreign} has no model.safetensors" in said.message
    assert "in one file" in str(said.hint)


def test_a_tokenizer_larger_than_the_models_vocabulary_is_told(folder: Path, foreign: Path, tmp_path: Path) -> None:
    model, _, settings = made("char")
    larger = tokenizers.build("bpe:300", TEXT)
    checkpoint.save(tmp_path / "ours", model, larger, settings, INFO)
    larger.save(foreign)
    for each in (tmp_path / "ours", foreign):
        said = refusal(each).message
        assert f"the tokenizer in {each} has {larger.vocab_size} tokens" in said
        assert str(settings.vocab_size) in said


@pytest.mark.parametrize("content", [None, b"", b"garbage", b'{"model": {"type": "WordPiece"}}'])
def test_a_tokenizer_that_is_missing_or_garbage_is_told(content: bytes | None, foreign: Path) -> None:
    (foreign / "tokenizer.json").unlink()
    if content is not None:
        (foreign / "tokenizer.json").write_bytes(content)
    with pytest.raises(OctavoError, match=f"tokenizer in {foreign}"):
        checkpoint.load(foreign)


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_trainer_cut_short_is_refused_by_whoever_would_go_on(length: int, folder: Path) -> None:
    content = (folder / "trainer.safetensors").read_bytes()
    (folder / "trainer.safetensors").write_bytes(content[:length])
    with pytest.raises(OctavoError, match=str(folder / "trainer.safetensors")):
        checkpoint.load_trainer(folder)


# Only the weights


def test_stripping_keeps_the_weights_and_lets_go_of_the_trainer(folder: Path) -> None:
    checkpoint.strip_trainer(folder)
    assert set(contents(folder)) == WEIGHT_FILES
    assert same_weights(checkpoint.load(folder).model, made()[0])
    with pytest.raises(OctavoError, match=f"{folder} holds only weights") as caught:
        checkpoint.load_trainer(folder)
    assert f"--init {folder}" in str(caught.value.hint)
    before = contents(folder)
    checkpoint.strip_trainer(folder)  # twice is once
    assert contents(folder).keys() == before.keys()
    checkpoint.load(folder)


# Crashes


def crashes(error: BaseException, act: Callable[[], None]) -> Iterator[None]:
    """Do it again and again, failing at the first call that touches the disk, at the second, ... until none fails."""
    points = [(os, "replace"), (os, "fsync"), (Path, "write_text"), (Path, "write_bytes"), (Path, "unlink"),
              (safetensors.torch, "save_file")]  # fmt: skip
    for last in itertools.count():
        calls = itertools.count()

        def failing(original: Callable[..., Any], last: int = last, calls: Iterator[int] = calls) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                if next(calls) != last:
                    return original(*args, **options)
                if original.__name__.startswith("write_"):  # half of it got there
                    original(args[0], args[1][: len(args[1]) // 2], **options)
                raise error

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in points:
                patch.setattr(owner, name, failing(getattr(owner, name)))
            try:
                act()
                return
            except (OctavoError, type(error)) as raised:
                caught = raised
        told = isinstance(caught, OctavoError) and "disk is full" in caught.message
        assert told if isinstance(error, OSError) else caught is error
        yield


ERRORS = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("crash"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_saving_leaves_nothing_or_all(error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000007"
    places = 0
    for _ in crashes(error, lambda: save(folder)):
        places += 1
        if folder.exists():  # it failed after the folder stood
            assert same_weights(checkpoint.load(folder).model, made()[0])
            shutil.rmtree(folder)
        assert list(folder.parent.iterdir()) == []
    assert places > 15
    checkpoint.load(folder)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_saving_over_a_checkpoint_leaves_the_old_or_the_new(error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000007"
    save(folder, seed=0)
    old, new = made(seed=0)[0], made(seed=1)[0]
    stood = []
    for _ in crashes(error, lambda: save(folder, seed=1)):
        assert list(folder.parent.iterdir()) == [folder]
        found = checkpoint.load(folder).model
        stood.append("old" if same_weights(found, old) else "new")
        assert stood[-1] == "old" or same_weights(found, new)
        shutil.rmtree(folder)
        save(folder, seed=0)
    assert stood.count("old") > 15
    assert stood == sorted(stood, reverse=True)  # the old, then the new
    assert same_weights(checkpoint.load(folder).model, new)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_stripping_leaves_the_weights(error: BaseException, pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-000007"
    shutil.copytree(pristine, folder)
    places = 0
    for _ in crashes(error, lambda: checkpoint.strip_trainer(folder)):
        places += 1
        assert same_weights(checkpoint.load(folder).model, made()[0])
        assert set(contents(folder)) <= WEIGHT_FILES | TRAINER_FILES
        with contextlib.suppress(OctavoError):  # that only weights are here
            assert checkpoint.load_trainer(folder).values == TRAINER.values
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
    assert places > 3


def test_a_disk_that_is_really_full_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="Windows can not limit the size of a file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OctavoError, match="disk is full"):
            save(tmp_path / "step")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
