"""What the tests of checkpoints share: small models, their checkpoints, and comparisons."""

import hashlib
import json
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
import transformers
from torch import Tensor, nn

from octavo import checkpoint, tokenizers
from octavo.checkpoint import TrainerState
from octavo.errors import OctavoError
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
CHECKPOINT_FILES = WEIGHT_FILES | TRAINER_FILES
TRAINER = TrainerState({"exp_avg.transformer.wte.weight": torch.arange(6.0).view(2, 3)}, {"step": 7, "best": 0.1})
INFO = {"step": 7, "val_loss": 2.5, "data": {"fingerprint": "f00d"}}
law = hypothesis.settings(derandomize=True, deadline=None, max_examples=40)


def small_model(kind: str = "char", seed: int = 0, **shape: Any) -> tuple[GPT, Tokenizer, Settings]:
    """A model with random weights, its tokenizer and its settings."""
    tokenizer = tokenizers.build(kind, TEXT)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 16, "vocab_size": tokenizer.vocab_size} | shape
    settings = Settings(**shape, tokenizer=kind)
    model = GPT(settings).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, 0.2, generator=generator)
    return model, tokenizer, settings


def save(folder: Path, seed: int = 0, trainer: TrainerState | None = TRAINER) -> None:
    checkpoint.save(folder, *small_model(seed=seed), INFO, trainer)


def remove_octavo_files(folder: Path) -> Path:
    """Remove the files that only Octavo writes: octavo.json, the manifest and the trainer state."""
    for name in ("manifest.json", "octavo.json", *TRAINER_FILES):
        (folder / name).unlink(missing_ok=True)
    return folder


def random_ids(model: GPT, batch: int = 3) -> Tensor:
    """Token ids (B, T) of full context length, without the last one: transformers would take it for padding."""
    shape = (batch, model.settings.block_size)
    return torch.randint(model.settings.vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def assert_same_function(ours: GPT, theirs: "transformers.GPT2LMHeadModel | GPT") -> None:
    assert not theirs.training
    ids = random_ids(ours)
    output = theirs(ids)
    torch.testing.assert_close(getattr(output, "logits", output), ours(ids), rtol=0, atol=1e-5)


def has_same_weights(a: GPT, b: GPT) -> bool:
    """Whether all weights are bit-identical."""
    a_weights, b_weights = a.state_dict(), b.state_dict()
    same_names = a_weights.keys() == b_weights.keys()
    return same_names and all(torch.equal(a_weights[name], b_weights[name]) for name in a_weights)


def load_error(folder: Path) -> OctavoError:
    """The error of loading a checkpoint, which must have a hint."""
    with pytest.raises(OctavoError) as caught:
        checkpoint.load(folder)
    assert caught.value.hint
    return caught.value


def edit_json(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file, and update the file's entry in the manifest beside it, if there is one."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    list_in_manifest(path)


def list_in_manifest(path: Path) -> None:
    """Update the entry of a file in the manifest.json or dataset.json beside it, if there is one."""
    for manifest in (path.with_name("manifest.json"), path.with_name("dataset.json")):
        if manifest != path and manifest.exists():
            entries = json.loads(manifest.read_text(encoding="utf-8"))
            content = path.read_bytes()
            entries["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            manifest.write_text(json.dumps(entries), encoding="utf-8")
