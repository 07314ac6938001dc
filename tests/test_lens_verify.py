"""The view `verify`: every check passes on correct models. `test_lens_faults` shows that every check can fail."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from lenses import Case, random_checkpoint
from octavo import lens, views
from octavo.checkpoint import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def convert_to_old_format(folder: Path, loaded: Checkpoint, dtype: torch.dtype) -> Path:
    """Write a checkpoint as older transformers did: no prefix in names, with masks and a copy of the tied head."""
    shutil.copytree(loaded.folder, folder)
    for name in ("octavo.json", "manifest.json"):
        (folder / name).unlink()
    tensors = safetensors.torch.load_file(loaded.folder / "model.safetensors")
    stored = {name.removeprefix("transformer."): tensor.to(dtype) for name, tensor in tensors.items()}
    block_size = loaded.settings.block_size
    for layer in range(loaded.settings.n_layer):
        stored[f"h.{layer}.attn.bias"] = torch.ones(1, 1, block_size, block_size).tril()
    stored["lm_head.weight"] = stored["wte.weight"].clone()
    safetensors.torch.save_file(stored, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_every_check_passes_on_a_hugging_face_folder(activation: str, dtype: torch.dtype, tmp_path: Path) -> None:
    loaded = random_checkpoint(tmp_path / "model", std=0.1, activation=activation)
    view = lens.verify(convert_to_old_format(tmp_path / "old", loaded, dtype))
    assert [each for each in view.checks if not each.ok] == []


def test_every_check_passes_on_every_model(case: Case) -> None:
    view = lens.verify(case.loaded)
    assert [each for each in view.checks if not each.ok] == []
    assert view.ok
    assert all(0 <= each.error <= each.tolerance for each in view.checks)
    groups = {each.name.partition(":")[0] for each in view.checks}
    assert groups >= views.VIEWS.keys() - {"projection", "next_token", "losses", "verify"} | {
        "causality",
        "cache",
        "reference",
    }


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_every_check_passes_with_very_large_weights(std: float, tmp_path: Path) -> None:
    loaded = random_checkpoint(
        tmp_path / "model",
        "byte",
        std=std,
        bias=False,
        activation="gelu",
        n_layer=4,
        n_head=4,
        n_embd=256,
        block_size=48,
    )
    assert lens.verify(loaded).ok
