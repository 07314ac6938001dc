"""Damaged and foreign checkpoints are rejected, and a crash leaves a complete checkpoint or none."""

import contextlib
import errno
import itertools
import json
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
from torch import Tensor

import octavo
from checkpoints import (
    INFO,
    TEXT,
    TRAINER,
    TRAINER_FILES,
    WEIGHT_FILES,
    edit_json,
    has_same_weights,
    law,
    list_in_manifest,
    load_error,
    remove_octavo_files,
    save,
    small_model,
)
from folders import contents, file_size_limit
from octavo import checkpoint, tokenizers
from octavo.errors import OctavoError


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with all its files; tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "step-000007"
    save(folder)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` that a test may damage."""
    return Path(shutil.copytree(pristine, tmp_path / "step-000007"))


@pytest.fixture
def foreign(folder: Path) -> Path:
    """The same model in a Hugging Face folder without the files that only Octavo writes."""
    return remove_octavo_files(folder)


# Checkpoints that are rejected


@pytest.mark.parametrize("name", sorted((WEIGHT_FILES | TRAINER_FILES) - {"manifest.json"}))
def test_a_changed_truncated_or_missing_file_is_named(name: str, folder: Path) -> None:
    content = (folder / name).read_bytes()

    @law
    @hypothesis.given(position=st.integers(0, len(content) - 1), bit=st.integers(0, 7))
    @hypothesis.example(position=0, bit=0)
    @hypothesis.example(position=len(content) - 1, bit=7)
    def check(position: int, bit: int) -> None:
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        (folder / name).write_bytes(flipped)
        assert f"{folder / name} was changed" in load_error(folder).message
        (folder / name).write_bytes(content[:position])
        assert f"{folder / name} was changed" in load_error(folder).message

    check()
    (folder / name).unlink()
    assert name in load_error(folder).message


@pytest.mark.parametrize("bit", [0, 4, 7])
def test_a_flipped_bit_in_the_manifest_is_rejected_or_harmless(bit: int, folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    harmless = 0
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << bit
        (folder / "manifest.json").write_bytes(flipped)
        with contextlib.suppress(OctavoError):
            checkpoint.check_manifest(folder, foreign=True)
            harmless += 1
    assert harmless < len(content) / 5  # bits in whitespace


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", '{"files": []}', '{"files": {"config.json": 1}}'])
def test_an_invalid_manifest_is_named(content: str, folder: Path) -> None:
    (folder / "manifest.json").write_text(content, encoding="utf-8")
    assert str(folder / "manifest.json") in load_error(folder).message


def test_a_checkpoint_without_a_manifest_is_rejected(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert f"{folder} has no manifest.json" in load_error(folder).message


def test_a_setting_that_this_version_does_not_have_is_named(folder: Path) -> None:
    settings = json.loads((folder / "octavo.json").read_text(encoding="utf-8"))["settings"]
    edit_json(folder / "octavo.json", settings=settings | {"rotary": True})
    message = load_error(folder).message
    assert "rotary" in message
    assert str(folder) in message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_an_octavo_json_that_was_written_wrongly_is_named(content: bytes, folder: Path) -> None:
    (folder / "octavo.json").write_bytes(content)
    list_in_manifest(folder / "octavo.json")
    error = load_error(folder)
    assert str(folder / "octavo.json") in error.message
    assert "another checkpoint" in str(error.hint)


@pytest.mark.parametrize("field", ["settings", "step", "val_loss"])
def test_a_value_of_another_type_is_named_with_its_file(field: str, folder: Path) -> None:
    edit_json(folder / "octavo.json", **{field: "seven"})
    message = load_error(folder).message
    assert str(folder / "octavo.json") in message
    assert field in message


def test_settings_that_do_not_fit_each_other_are_named_with_their_file(folder: Path) -> None:
    settings = json.loads((folder / "octavo.json").read_text(encoding="utf-8"))["settings"]
    edit_json(folder / "octavo.json", settings=settings | {"n_head": 3})
    message = load_error(folder).message
    assert message.startswith(f"{folder / 'octavo.json'}: ")
    assert "n_head=3" in message


def test_every_changed_file_is_named_once(folder: Path) -> None:
    first, *others = ("config.json", "model.safetensors", "tokenizer.json")
    (folder / first).write_bytes(b"{}")
    assert load_error(folder).message == f"{folder / first} was changed or added after the checkpoint was written"
    for number, name in enumerate(others, start=1):
        (folder / name).write_bytes(b"{}")
        message = load_error(folder).message
        assert message.startswith(f"{folder / first} was changed")
        assert message.endswith(f", and so were {', '.join(others[:number])}")


def test_a_manifest_is_parsed_as_it_is_read_and_errors_name_it(folder: Path) -> None:
    content = (folder / "manifest.json").read_bytes()
    assert checkpoint.parse_manifest(content, "there") == checkpoint.read_manifest(folder)
    with pytest.raises(OctavoError, match=r"there/manifest\.json") as caught:
        checkpoint.parse_manifest(content[:-10], "there/manifest.json")
    assert "another checkpoint" in str(caught.value.hint)


def test_a_newer_format_is_rejected(folder: Path) -> None:
    edit_json(folder / "octavo.json", format=checkpoint.FORMAT + 1)
    error = load_error(folder)
    assert f"{folder} has format {checkpoint.FORMAT + 1}" in error.message
    assert "newer" in str(error.hint)


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe{}", b"[]", b"null", b"7", b'{"model_type": "gpt2"'])
def test_an_invalid_config_is_named(content: bytes, foreign: Path) -> None:
    (foreign / "config.json").write_bytes(content)
    assert str(foreign / "config.json") in load_error(foreign).message


def test_a_folder_without_a_config_is_not_a_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        assert f"{folder} is not a checkpoint" in load_error(folder).message


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
def test_the_error_for_another_architecture_names_what_differs(name: str, value: Any, foreign: Path) -> None:
    edit_json(foreign / "config.json", **{name: value})
    error = load_error(foreign).message
    assert str(foreign) in error
    assert f"{name}={value!r}" in error or f"a {value!r} model" in error


def test_a_config_that_spells_the_same_function_differently_loads(foreign: Path) -> None:
    edit_json(
        foreign / "config.json", n_inner=64, activation_function="gelu_pytorch_tanh", reorder_and_upcast_attn=True
    )
    assert has_same_weights(checkpoint.load(foreign).model, small_model()[0])


@pytest.mark.parametrize("value", [None, "12", -1, 0, 2.5, [4], True, 10**30])
@pytest.mark.parametrize("name", ["n_embd", "n_head", "n_layer", "n_positions", "vocab_size"])
def test_an_invalid_size_is_rejected(name: str, value: Any, foreign: Path) -> None:
    edit_json(foreign / "config.json", **{name: value})
    load_error(foreign)


@pytest.mark.parametrize("value", [None, "much", [0.1], -0.1, 1.5])
@pytest.mark.parametrize("name", ["resid_pdrop", "attn_pdrop"])
def test_an_invalid_dropout_is_rejected(name: str, value: Any, foreign: Path) -> None:
    edit_json(foreign / "config.json", **{name: value})
    load_error(foreign)


def remove_tensor(stored: dict[str, Tensor], name: str) -> None:
    del stored[name]


def transpose_tensor(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = stored[name].T.contiguous()


def crop_tensor(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = stored[name][:-1].contiguous()


def add_tensor(stored: dict[str, Tensor], name: str) -> None:
    stored[name] = torch.zeros(2, 16)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (remove_tensor, "transformer.wte.weight"),
        (remove_tensor, "transformer.h.1.attn.c_attn.bias"),
        (remove_tensor, "transformer.ln_f.weight"),
        (transpose_tensor, "transformer.h.0.mlp.c_fc.weight"),
        (transpose_tensor, "transformer.h.1.attn.c_attn.weight"),
        (crop_tensor, "transformer.wte.weight"),
        (crop_tensor, "transformer.wpe.weight"),
        (add_tensor, "transformer.h.2.ln_1.weight"),
        (add_tensor, "score.weight"),
    ],
)
def test_weights_that_do_not_match_the_config_are_named(
    damage: Callable[[dict[str, Tensor], str], None], name: str, foreign: Path
) -> None:
    stored = safetensors.torch.load_file(foreign / "model.safetensors")
    damage(stored, name)
    safetensors.torch.save_file(stored, foreign / "model.safetensors")
    error = load_error(foreign).message
    assert f"{foreign / 'model.safetensors'} does not match its config.json" in error
    assert name in error


CONVERTED = [torch.float16, torch.bfloat16, torch.float64]
REJECTED = [
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@pytest.mark.parametrize("dtype", CONVERTED + REJECTED)
@pytest.mark.parametrize("name", ["transformer.wte.weight", "transformer.h.0.attn.c_attn.weight"])
def test_only_floats_of_16_bits_or_more_are_weights(name: str, dtype: torch.dtype, foreign: Path) -> None:
    stored = safetensors.torch.load_file(foreign / "model.safetensors")
    stored[name] = stored[name].to(dtype)
    safetensors.torch.save_file(stored, foreign / "model.safetensors")
    if dtype in REJECTED:
        message = load_error(foreign).message
        assert name in message
        assert str(dtype).removeprefix("torch.") in message
    else:
        loaded = dict(checkpoint.load(foreign).model.named_parameters())[name]
        expected = stored[name].float()
        assert torch.equal(loaded, expected.t() if name.endswith("c_attn.weight") else expected)


@pytest.mark.parametrize("dtype", REJECTED)
def test_only_floats_are_a_trainer_state(dtype: torch.dtype, folder: Path) -> None:
    tensors = {name: value.to(dtype) for name, value in TRAINER.tensors.items()}
    safetensors.torch.save_file(tensors, folder / "trainer.safetensors")
    with pytest.raises(OctavoError, match=str(dtype).removeprefix("torch.")) as caught:
        checkpoint.load_trainer(folder)
    assert str(folder / "trainer.safetensors") in caught.value.message
    assert caught.value.hint.startswith("another checkpoint")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"])
def test_a_file_that_loading_may_read_must_be_in_the_manifest(name: str, folder: Path) -> None:
    (folder / name).write_text("{}", encoding="utf-8")
    assert str(folder / name) in load_error(folder).message
    (folder / name).unlink()
    (folder / "notes.txt").write_text("mine", encoding="utf-8")  # nothing reads it
    checkpoint.load(folder)


@pytest.mark.parametrize("listed", [[], ["config.json"], ["model.safetensors"]])
def test_a_manifest_that_lists_too_little_is_rejected(listed: list[str], folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = {name: manifest["files"][name] for name in listed}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "was changed" in load_error(folder).message


def test_truncated_weights_are_rejected_even_without_a_manifest(foreign: Path) -> None:
    path = foreign / "model.safetensors"
    content = path.read_bytes()

    @law
    @hypothesis.given(length=st.integers(0, len(content) - 1))
    @hypothesis.example(length=0)
    @hypothesis.example(length=len(content) - 1)
    def check(length: int) -> None:
        path.write_bytes(content[:length])
        assert f"{path} is damaged" in load_error(foreign).message

    check()


class Bomb:
    """Creates a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.folder,)


def test_no_code_in_a_pickle_runs(foreign: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (foreign / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    checkpoint.load(foreign)
    (foreign / "model.safetensors").unlink()
    error = load_error(foreign)
    assert f"{foreign / 'pytorch_model.bin'} can't be read" in error.message
    assert not (tmp_path / "exploded").exists()


def test_weights_in_several_files_need_an_index(foreign: Path) -> None:
    (foreign / "model.safetensors").rename(foreign / "model-00001-of-00002.safetensors")
    error = load_error(foreign)
    assert f"{foreign} has no model.safetensors" in error.message


def test_a_tokenizer_with_more_tokens_than_the_model_is_rejected(folder: Path, foreign: Path, tmp_path: Path) -> None:
    model, _, settings = small_model("char")
    larger = tokenizers.build("bpe:300", TEXT)
    checkpoint.save(tmp_path / "ours", model, larger, settings, INFO)
    larger.save(foreign)
    for each in (tmp_path / "ours", foreign):
        error = load_error(each).message
        assert f"the tokenizer in {each} has {larger.vocab_size} tokens" in error
        assert str(settings.vocab_size) in error


@pytest.mark.parametrize("content", [None, b"", b"garbage", b'{"model": {"type": "WordPiece"}}'])
def test_a_missing_or_invalid_tokenizer_is_rejected(content: bytes | None, foreign: Path) -> None:
    (foreign / "tokenizer.json").unlink()
    if content is not None:
        (foreign / "tokenizer.json").write_bytes(content)
    with pytest.raises(OctavoError, match=f"tokenizer in {foreign}"):
        checkpoint.load(foreign)


@pytest.mark.parametrize("length", [0, 7, 40, -1])
def test_a_truncated_trainer_state_is_rejected(length: int, folder: Path) -> None:
    content = (folder / "trainer.safetensors").read_bytes()
    (folder / "trainer.safetensors").write_bytes(content[:length])
    with pytest.raises(OctavoError, match=str(folder / "trainer.safetensors")):
        checkpoint.load_trainer(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_values_of_a_trainer_state_are_rejected(content: bytes, folder: Path) -> None:
    (folder / "trainer.json").write_bytes(content)
    with pytest.raises(OctavoError, match=str(folder / "trainer.json")) as caught:
        checkpoint.load_trainer(folder)
    assert "another checkpoint" in str(caught.value.hint)


# Weights only


@pytest.mark.parametrize("name", sorted(TRAINER_FILES))
def test_a_checkpoint_without_one_of_the_trainers_files_holds_only_weights(name: str, folder: Path) -> None:
    assert checkpoint.has_trainer(folder)
    (folder / name).unlink()
    assert not checkpoint.has_trainer(folder)
    with pytest.raises(OctavoError, match="only weights"):
        checkpoint.load_trainer(folder)


def test_stripping_removes_the_trainer_state_and_keeps_the_weights(folder: Path) -> None:
    checkpoint.strip_trainer(folder)
    assert set(contents(folder)) == WEIGHT_FILES
    assert has_same_weights(checkpoint.load(folder).model, small_model()[0])
    with pytest.raises(OctavoError, match=f"{folder} holds only weights") as caught:
        checkpoint.load_trainer(folder)
    assert f"--init {folder}" in str(caught.value.hint)
    before = contents(folder)
    checkpoint.strip_trainer(folder)  # idempotent
    assert contents(folder).keys() == before.keys()
    checkpoint.load(folder)


# Crashes


def crash_everywhere(error: BaseException, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` repeatedly. Its first disk access raises `error`, then its second one, and so on, until it succeeds.

    Yields after each failure.
    """
    points: list[tuple[Any, str]] = [
        (os, "replace"),
        (os, "fsync"),
        (Path, "write_text"),
        (Path, "write_bytes"),
        (Path, "unlink"),
        (safetensors.torch, "save_file"),
    ]
    for last in itertools.count():
        calls = itertools.count()

        def fail_once(
            original: Callable[..., Any], last: int = last, calls: Iterator[int] = calls
        ) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                if next(calls) != last:
                    return original(*args, **options)
                if original.__name__.startswith("write_"):  # write a part first
                    original(args[0], args[1][: len(args[1]) // 2], **options)
                raise error

            return call

        with pytest.MonkeyPatch.context() as patch:
            for owner, name in points:
                patch.setattr(owner, name, fail_once(getattr(owner, name)))
            try:
                act()
                return
            except (OctavoError, type(error)) as raised:
                caught = raised
        if isinstance(error, OSError):
            assert isinstance(caught, OctavoError)
            assert "disk is full" in caught.message
            assert "step-000007" in caught.message
        else:
            assert caught is error
        yield


ERRORS = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("crash"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_saving_leaves_nothing_or_a_complete_checkpoint(error: BaseException, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step-000007"
    count = 0
    for _ in crash_everywhere(error, lambda: save(folder)):
        count += 1
        if folder.exists():  # the crash was after the rename
            assert has_same_weights(checkpoint.load(folder).model, small_model()[0])
            shutil.rmtree(folder)
        assert list(folder.parent.iterdir()) == []
    assert count > 15
    checkpoint.load(folder)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_replacing_a_checkpoint_leaves_the_old_or_the_new_one(
    error: BaseException, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints" / "step-000007"
    save(folder, seed=0)
    old, new = small_model(seed=0)[0], small_model(seed=1)[0]
    survivors = []
    for _ in crash_everywhere(error, lambda: save(folder, seed=1)):
        assert list(folder.parent.iterdir()) == [folder]
        loaded = checkpoint.load(folder).model
        survivors.append("old" if has_same_weights(loaded, old) else "new")
        assert survivors[-1] == "old" or has_same_weights(loaded, new)
        shutil.rmtree(folder)
        save(folder, seed=0)
    assert survivors.count("old") > 15
    assert survivors == sorted(survivors, reverse=True)  # "old" for early crashes, "new" for late ones
    assert has_same_weights(checkpoint.load(folder).model, new)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_crash_while_stripping_leaves_the_weights(error: BaseException, pristine: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-000007"
    shutil.copytree(pristine, folder)
    count = 0
    for _ in crash_everywhere(error, lambda: checkpoint.strip_trainer(folder)):
        count += 1
        assert has_same_weights(checkpoint.load(folder).model, small_model()[0])
        assert set(contents(folder)) <= WEIGHT_FILES | TRAINER_FILES
        with contextlib.suppress(OctavoError):  # the trainer state may be gone, but not be wrong
            assert checkpoint.load_trainer(folder).values == TRAINER.values
        shutil.rmtree(folder)
        shutil.copytree(pristine, folder)
    assert count > 3


def test_a_trainer_state_that_the_manifest_does_not_list_is_not_loaded(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    del manifest["files"]["trainer.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    checkpoint.load(folder)
    with pytest.raises(OctavoError, match="only weights"):
        checkpoint.load_trainer(folder)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on file size")
def test_a_file_that_exceeds_the_size_limit_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with file_size_limit(10_000), pytest.raises(OctavoError, match="disk is full"):
        save(tmp_path / "step")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_in_which_transformers_saved_a_model_is_read_on_request(folder: Path, tmp_path: Path) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        theirs.transformer.wte.weight += 0.1
    theirs.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    error = load_error(folder)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        assert name in error.message
    assert f"octavo convert {folder} OUT --to hf --accept-changes" in str(error.hint)
    out = octavo.convert(folder, "hf", tmp_path / "out", accept_changes=True).out
    wte = octavo.load(out).model.transformer.wte.weight
    torch.testing.assert_close(wte, theirs.transformer.wte.weight, rtol=0, atol=0)
