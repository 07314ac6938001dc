"""What the tests of the lens share: texts, and models in which a mistake shows."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo import checkpoint, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import Settings

LINE = "Katze saß; كتاب, किताब, 🦉!"  # 26 characters, 44 bytes
TEXT = f"{LINE}\nthe cat sat on the mat, and the rat sat on the hat.\n" * 12
KINDS = ("char", "byte", "word:400", "bpe:400")  # of tokenizers
SMALL = {"n_layer": 3, "n_head": 3, "n_embd": 48, "block_size": 16}


def written(folder: Path, kind: str = "bpe:400", *, spread: float = 0.2, seed: int = 0, text: str = TEXT,
            **shape: Any) -> Checkpoint:  # fmt: skip
    """A checkpoint of random weights, biases and norms, `spread` apart."""
    tokenizer = tokenizers.build(kind, text)
    settings = Settings(tokenizer=kind, **{"vocab_size": tokenizer.vocab_size} | SMALL | shape)
    model = GPT(settings)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        middle = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, middle, spread, generator=generator)
    checkpoint.save(folder, model, tokenizer, settings, {"step": 0})
    return checkpoint.load(folder)


def weights_of(model: GPT) -> dict[str, Tensor]:
    """All weights in float64, as `reference` takes them."""
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def trained_on(text: str, folder: Path, **settings: Any) -> Run:
    """A run of a few steps on a text, which lies beside it."""
    folder.mkdir()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # the cache of all tests is no test's own
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        return octavo.train(
            folder / "text.txt", out=folder / "run", sample_every=0, val_fraction=0.2, device="cpu", precision="fp32",
            compile="off", **settings,
        )  # fmt: skip


@functools.cache
def tiny(base: Path) -> Run:
    """Twenty steps of the preset `tiny`, once for all that ask with the same folder."""
    return trained_on(TEXT, base / "tiny", tokenizer="bpe:400", batch_size=8, max_steps=20, warmup_steps=4,
                      eval_every=10, log_every=1, keep_checkpoints=4)  # fmt: skip
