"""Helpers for tests of the lens: texts, models in which an error shows, and a plain float64 computation of both."""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
import reference
from octavo import checkpoint, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.model import GPT
from octavo.runs import Run
from octavo.settings import ModelSettings, Settings

LINE = "Katze saß; كتاب, किताब, 🦉!"  # 26 characters, 44 bytes
TEXT = f"{LINE}\nthe cat sat on the mat, and the rat sat on the hat.\n" * 12
KINDS = ("char", "byte", "word:400", "bpe:400")  # kinds of tokenizers
SMALL = {"n_layer": 3, "n_head": 3, "n_embd": 48, "block_size": 16}
RANDOM_CASES = {
    f"{kind}, {'' if bias else 'no '}biases, std {std}": (kind, bias, std)
    for kind in KINDS
    for bias in (True, False)
    for std in (0.02, 0.2)
}


def random_checkpoint(
    folder: Path, kind: str = "bpe:400", *, std: float = 0.2, seed: int = 0, text: str = TEXT, **shape: Any
) -> Checkpoint:
    """A checkpoint with random weights, biases and norms."""
    tokenizer = tokenizers.build(kind, text)
    settings = Settings(tokenizer=kind, **{"vocab_size": tokenizer.vocab_size} | SMALL | shape)
    model = GPT(settings)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean, std, generator=generator)
    checkpoint.save(folder, model, tokenizer, settings, {"step": 0})
    return checkpoint.load(folder)


def train_on(text: str, folder: Path, **settings: Any) -> Run:
    """Train a run on a text. `folder` gets both, `text.txt` and `run`."""
    folder.mkdir()
    (folder / "text.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:  # not in the cache that the tests share
        patch.setenv("OCTAVO_CACHE", str(folder / "cache"))
        return octavo.train(
            folder / "text.txt",
            out=folder / "run",
            sample_every=0,
            val_fraction=0.2,
            device="cpu",
            precision="fp32",
            compile="off",
            **settings,
        )


@functools.cache
def tiny_run(folder: Path) -> Run:
    """Train the preset `tiny` for twenty steps, in `folder`/run."""
    return train_on(
        TEXT,
        folder,
        tokenizer="bpe:400",
        batch_size=8,
        max_steps=20,
        warmup_steps=4,
        eval_every=10,
        log_every=1,
        keep_checkpoints=4,
    )


def float64_weights(model: GPT) -> dict[str, Tensor]:
    """All weights in float64, for `reference`."""
    return {name: parameter.detach().double() for name, parameter in model.named_parameters()}


def random_case(folder: Path, name: str) -> "Case":
    """A model with four layers of width 256. Each GELU has cases with small and with large weights."""
    kind, bias, std = RANDOM_CASES[name]
    activation = "gelu_new" if bias == (std < 0.1) else "gelu"
    shape = {"n_layer": 4, "n_head": 4, "n_embd": 256, "block_size": 48}
    return Case(random_checkpoint(folder, kind, std=std, bias=bias, activation=activation, **shape))


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, the ids of LINE, and what the plain reference computes from them in float64."""

    loaded: Checkpoint

    @functools.cached_property
    def ids(self) -> list[int]:
        return self.loaded.tokenizer.encode(LINE).tolist()

    @property
    def model(self) -> GPT:
        return self.loaded.model

    @property
    def settings(self) -> ModelSettings:
        return self.loaded.model.settings

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        return float64_weights(self.model)

    @functools.cached_property
    def streams(self) -> list[Tensor]:
        """The residual stream (T, C) before the first layer and after each layer."""
        wte, wpe = self.weights["transformer.wte.weight"], self.weights["transformer.wpe.weight"]
        streams = [wte[self.ids] + wpe[: len(self.ids)]]
        for layer in range(self.settings.n_layer):
            streams.append(reference.block(self.weights, self.settings, f"transformer.h.{layer}", streams[-1]))
        return streams

    def logits(self, stage: int = -1) -> Tensor:
        """The logits (T, V) of the residual stream at a stage."""
        normed = reference.layer_norm(self.weights, "transformer.ln_f", self.streams[stage])
        return normed @ self.weights["transformer.wte.weight"].T

    def logits_without(
        self, layer: int, *, head: int | None = None, attention: bool = False, mlp: bool = False
    ) -> Tensor:
        """The logits (T, V) of a model in which the output projection of a part is zero."""
        weights = dict(self.weights)
        D, block = self.settings.head_size, f"transformer.h.{layer}"
        if head is not None:
            projection = weights[f"{block}.attn.c_proj.weight"].clone()
            projection[:, head * D : (head + 1) * D] = 0
            weights[f"{block}.attn.c_proj.weight"] = projection
        for is_ablated, branch in ((attention, "attn"), (mlp, "mlp")):
            for name in (f"{block}.{branch}.c_proj.weight", f"{block}.{branch}.c_proj.bias"):
                if is_ablated and name in weights:
                    weights[name] = torch.zeros_like(weights[name])
        return reference.gpt2(weights, self.settings, torch.tensor(self.ids))

    @functools.cached_property
    def added(self) -> dict[tuple[str, int | None, int | None], Tensor]:
        """What each part adds to the residual stream, (T, C). The keys are (name, layer, head)."""
        weights, settings = self.weights, self.settings
        zeros = torch.zeros(settings.n_embd, dtype=torch.float64)
        added = {
            ("wte", None, None): weights["transformer.wte.weight"][self.ids],
            ("wpe", None, None): weights["transformer.wpe.weight"][: len(self.ids)],
        }
        for i, x in enumerate(self.streams[:-1]):
            block = f"transformer.h.{i}"
            normed = reference.layer_norm(weights, f"{block}.ln_1", x)
            bias = weights.get(f"{block}.attn.c_proj.bias", zeros)
            for h in range(settings.n_head):
                mask = zeros.clone()
                mask[h * settings.head_size : (h + 1) * settings.head_size] = 1
                projection = weights[f"{block}.attn.c_proj.weight"] * mask
                one_head = weights | {f"{block}.attn.c_proj.weight": projection}
                added["head", i, h] = reference.attention(one_head, settings, f"{block}.attn", normed) - bias
            attention = sum(added["head", i, h] for h in range(settings.n_head)) + bias
            if settings.bias:
                added["attention's bias", i, None] = bias.expand_as(x)
            middle = reference.layer_norm(weights, f"{block}.ln_2", x + attention)
            added["MLP", i, None] = reference.mlp(weights, settings, f"{block}.mlp", middle)
        return added

    def attention_pattern(self, layer: int, head: int) -> Tensor:
        """The attention pattern (T, T) of a head."""
        D, block = self.settings.head_size, f"transformer.h.{layer}"
        normed = reference.layer_norm(self.weights, f"{block}.ln_1", self.streams[layer])
        q, k, _ = reference.linear(self.weights, f"{block}.attn.c_attn", normed).split(self.settings.n_embd, dim=1)
        q, k = (each[:, head * D : (head + 1) * D] for each in (q, k))
        pattern = torch.zeros(len(q), len(q), dtype=torch.float64)
        for t in range(len(q)):
            pattern[t, : t + 1] = reference.softmax(k[: t + 1] @ q[t] / math.sqrt(D))
        return pattern


def assert_near(actual: Any, expected: Any, tolerance: float) -> None:
    """Compare tensors. Errors are relative to the largest expected number if that is above 1."""
    actual, expected = (torch.as_tensor(each).double() for each in (actual, expected))
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max().item() / max(1.0, expected.abs().max().item())
    assert error <= tolerance
