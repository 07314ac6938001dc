"""Every check of `verify` can fail: faults planted in the model and in the lens are caught by the checks named here.

A fault is a function that patches a class of the model, a function of the lens, or one loaded model.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lenses import random_checkpoint
from octavo import lens, loss, runs
from octavo.checkpoint import Checkpoint
from octavo.generation import native
from octavo.generation.decoder import Batch
from octavo.model import GPT, MLP, Block, CausalSelfAttention, LayerCache
from octavo.runs import Run

# By import_module, because a view has the name of its module, which the package remodels by the function.
ablation = importlib.import_module("octavo.lens.ablation")
capture = importlib.import_module("octavo.lens.capture")
verify = importlib.import_module("octavo.lens.verify")
embedding = importlib.import_module("octavo.lens.embedding")
neighbors = importlib.import_module("octavo.lens.neighbors")
position = importlib.import_module("octavo.lens.position")
projection = importlib.import_module("octavo.lens.projection")
attention = importlib.import_module("octavo.lens.attention")
logit_lens = importlib.import_module("octavo.lens.logit_lens")
contributions = importlib.import_module("octavo.lens.contributions")
next_token = importlib.import_module("octavo.lens.next_token")
tokens = importlib.import_module("octavo.lens.tokens")
shapes = importlib.import_module("octavo.lens.shapes")
surprisal = importlib.import_module("octavo.lens.surprisal")
MODULES = (
    ablation, attention, capture, contributions, embedding, logit_lens, neighbors, next_token, position, projection,
    shapes, surprisal, tokens, verify,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch, Checkpoint], None]
Rows = list[int]


@pytest.fixture(scope="module")
def models(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints in which faults are planted."""
    base = tmp_path_factory.mktemp("models")
    return {
        "random": random_checkpoint(base / "random", n_layer=4).folder,
        "other": random_checkpoint(base / "other", "char", n_layer=4, bias=False, activation="gelu").folder,
        "byte": random_checkpoint(base / "byte", "byte", n_layer=4).folder,
        "small_weights": random_checkpoint(base / "small_weights", n_layer=4, std=0.02).folder,  # as before training
        "trained": runs.find_checkpoint(tiny_run),
    }


def failed_checks(models: dict[str, Path], name: str, plant: Fault) -> list[str]:
    """The names of the checks that fail when a fault is planted in a model."""
    loaded = runs.load(models[name])
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, loaded)
        view = lens.verify(loaded)
    names = [check.name for check in view.checks if not check.ok]
    assert view.ok == (not names)
    return names


# Faults of attention


def attention_mask(mask_of: Callable[[int, int], Tensor | None]) -> Fault:
    """Attention with the mask `mask_of(T, S)`, (T, S), for T queries and S keys."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def attend(self: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
            mask = mask_of(q.size(2), k.size(2))
            return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.device))

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


no_mask = attention_mask(lambda T, S: None)
mask_one_ahead = attention_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T + 1))
mask_ignores_cache = attention_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril())  # only the first T keys


def scores_divided_by(power: float) -> Fault:
    """Scores divided by D to this power instead of the square root of D."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = CausalSelfAttention.attend

        def attend(self: CausalSelfAttention, q: Tensor, *others: Any) -> Tensor:
            return original(self, q * q.size(-1) ** (0.5 - power), *others)

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


def reordered_heads(change: Callable[[Tensor], Tensor]) -> Fault:
    """The heads (B, H, T, D) are concatenated in another order."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = CausalSelfAttention.output
        patch.setattr(CausalSelfAttention, "output", lambda self, y: original(self, change(y)))

    return plant


heads_reversed = reordered_heads(lambda y: y.flip(1))
heads_not_transposed = reordered_heads(lambda y: y.reshape(y.size(0), y.size(2), y.size(1), y.size(3)).transpose(1, 2))


def heads_before_qkv(patch: Patch, loaded: Checkpoint) -> None:
    """The layout of c_attn in other models: q, k and v of each head side by side."""

    def project(self: CausalSelfAttention, x: Tensor) -> tuple[Tensor, ...]:
        B, T, C = x.shape
        return tuple(self.c_attn(x).view(B, T, self.n_head, 3, C // self.n_head).permute(3, 0, 2, 1, 4))

    patch.setattr(CausalSelfAttention, "project", project)


# Faults of the cache


def cache_extend(change: Callable[[LayerCache, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Fault:
    """A KV cache that stores and returns something else."""
    return lambda patch, loaded: patch.setattr(LayerCache, "extend", change)


def never_stores(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return self.keys[self.all], self.values[self.all]


def stores_one_late(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What would be stored after the last position is lost."""
    keys, values, first = self.keys, self.values, self.new[1].start + 1
    T = min(k.size(2), keys.size(2) - first)
    keys[:, :, first : first + T], values[:, :, first : first + T] = k[:, :, :T], v[:, :, :T]
    return keys[:, :, : first - 1 + k.size(2)], values[:, :, : first - 1 + k.size(2)]


def loses_values(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    first = self.new[1].start
    self.keys[:, :, first : first + k.size(2)] = k
    return self.keys[:, :, : first + k.size(2)], F.pad(v, (0, 0, first, 0))


def is_uninitialized(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialized memory that contains NaN."""
    return torch.full_like(self.keys, torch.nan)[:, :, : k.size(2)], v


def cached_positions_from_zero(patch: Patch, loaded: Checkpoint) -> None:
    """With a cache, positions start at 0 in every call."""
    original = GPT.embed
    patch.setattr(GPT, "embed", lambda self, idx, start=0: original(self, idx, start if isinstance(start, int) else 0))


# Faults of the rest of the model


def positions_shifted(patch: Patch, loaded: Checkpoint) -> None:
    def embed(self: GPT, idx: Tensor, start: int | Sequence[int] = 0) -> Tensor:
        starts = [start] if isinstance(start, int) else start
        wpe = self.transformer.wpe.weight.roll(-1, 0)
        return self.transformer.wte(idx) + torch.stack([wpe[each : each + idx.size(1)] for each in starts])

    patch.setattr(GPT, "embed", embed)


def untied_head(patch: Patch, loaded: Checkpoint) -> None:
    head = loaded.model.lm_head.weight.detach()
    loaded.model.lm_head.weight = nn.Parameter(head + 0.01 * torch.randn(head.shape, generator=torch.manual_seed(0)))


def other_gelu(patch: Patch, loaded: Checkpoint) -> None:
    for module in loaded.model.modules():
        if isinstance(module, MLP):
            module.approximate = {"tanh": "none", "none": "tanh"}[module.approximate]


def no_gelu(patch: Patch, loaded: Checkpoint) -> None:
    patch.setattr(MLP, "expand", lambda self, x: self.c_fc(x))


def other_epsilon(patch: Patch, loaded: Checkpoint) -> None:
    for module in loaded.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def without_norm(name: str) -> Fault:
    """Layer norms of this name return their input."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        for path, module in loaded.model.named_modules():
            if path.endswith(name):
                patch.setattr(module, "forward", lambda x: x)

    return plant


def norms_after(patch: Patch, loaded: Checkpoint) -> None:
    """Post-norm blocks, as in the first transformers, unlike the walk of the lens."""

    def forward(self: Block, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = self.ln_1(x + self.attn(x, cache))
        return self.ln_2(x + self.mlp(x))

    patch.setattr(Block, "forward", forward)


def one_weight_changed(patch: Patch, loaded: Checkpoint) -> None:
    """A weight changed in memory, not in the file."""
    loaded.model.transformer.h[2].attn.c_proj.weight.data[3, 5] += 0.5


def engine_rows(**changes: Callable[[Rows], Rows]) -> Fault:
    """The engine's decoder runs other rows than requested: `changes` maps fields of the batch."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = native.NativeDecoder.forward

        def forward(self: native.NativeDecoder, batch: Batch) -> Tensor:
            changed = {name: change(getattr(batch, name)) for name, change in changes.items()}
            return original(self, dataclasses.replace(batch, **changed))

        patch.setattr(native.NativeDecoder, "forward", forward)

    return plant


engine_one_position_back = engine_rows(positions=lambda positions: [max(0, t - 1) for t in positions])
engine_of_one_slot = engine_rows(slots=lambda slots: [0] * len(slots))


# Faults of the lens


def patch_everywhere(patch: Patch, name: str, fault: Any) -> None:
    """Replace a function in all modules of the lens that import it."""
    for module in MODULES:
        if hasattr(module, name):
            patch.setattr(module, name, fault)


def stage_changed(change: Callable[[shapes.Stage], dict[str, Any]]) -> Fault:
    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = shapes._stages
        changed = lambda *given: (dataclasses.replace(each, **change(each)) for each in original(*given))  # noqa: E731
        patch.setattr(shapes, "_stages", changed)

    return plant


shapes_reversed = stage_changed(lambda stage: {"shape": stage.shape[::-1]})
parameters_omitted = stage_changed(lambda stage: {"parameters": stage.parameters * (stage.name != "h.mlp.c_proj")})
flops_halved = stage_changed(lambda stage: {"flops": stage.flops // 2})


def token_bytes_swapped(patch: Patch, loaded: Checkpoint) -> None:
    """The table of token bytes has `a` and `t` swapped."""
    swap = {b"a": b"t", b"t": b"a"}
    patch.setattr(loaded.tokenizer, "token_bytes", [swap.get(each, each) for each in loaded.tokenizer.token_bytes])


def token_bytes_unknown(patch: Patch, loaded: Checkpoint) -> None:
    """The table of token bytes has a character that the tokenizer does not know."""
    patch.setattr(loaded.tokenizer, "token_bytes", [b"\xe2\x82\xac", *loaded.tokenizer.token_bytes[1:]])


def bytes_of_another_token(patch: Patch, loaded: Checkpoint) -> None:
    original = tokens.make_token
    patch_everywhere(
        patch, "make_token", lambda known, id: dataclasses.replace(original(known, id), bytes=original(known, 0).bytes)
    )


def characters_split(patch: Patch, loaded: Checkpoint) -> None:
    """Every token is a group of its own, even if it is part of a character."""

    def grouped(tokenizer: Any, ids: Sequence[int]) -> list[tokens.Group]:
        return [tokens.Group(tokenizer.decode([id]), at, 1) for at, id in enumerate(ids)]

    patch.setattr(tokens, "group_by_character", grouped)


def rows_not_normalized(patch: Patch, loaded: Checkpoint) -> None:
    patch_everywhere(patch, "unit_rows", lambda rows: rows.astype(np.float64))


def pattern_of(power: float = 0.5, offset: int = 1, hidden: float = -math.inf, over: int = -1) -> Fault:
    """A pattern that is scaled, masked or normalized in another way."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def pattern(q: Tensor, k: Tensor) -> Tensor:
            scores = q @ k.mT / q.size(-1) ** power
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(offset)
            return scores.masked_fill(future, hidden).softmax(over)

        patch_everywhere(patch, "attention_pattern", pattern)

    return plant


def frozen_scale(patch: Patch, loaded: Checkpoint) -> None:
    """Every row of the logit lens is divided by the standard deviation of the last."""
    scale: list[Tensor] = []

    def stage_logits(model: GPT, x: Tensor) -> Tensor:
        if not scale:  # the first call is for the embedding
            *_, last = capture.walk(model, x)
            scale.append(last.after.std(-1, correction=0, keepdim=True))
        norm = model.transformer.ln_f
        centred = (x - x.mean(-1, keepdim=True)) / scale[0]
        return model.unembed(centred * norm.weight + (0 if norm.bias is None else norm.bias))

    patch_everywhere(patch, "stage_logits", stage_logits)


def logit_lens_without_norm(patch: Patch, loaded: Checkpoint) -> None:
    patch_everywhere(patch, "stage_logits", lambda model, x: model.unembed(x))


def contributions_without(name: str) -> Fault:
    """The contributions of the parts with this name are missing."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = contributions.residual_contributions

        def faulty(*given: Any) -> tuple[list[contributions.Part], Tensor]:
            parts, added = original(*given)
            kept = [n for n, part in enumerate(parts) if part.name != name]
            return [parts[n] for n in kept], added[kept]

        patch_everywhere(patch, "residual_contributions", faulty)

    return plant


def contributions_not_centered(patch: Patch, loaded: Checkpoint) -> None:
    def logit_contributions(model: GPT, added: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        norm = model.transformer.ln_f
        scale = torch.sqrt(added.sum(0).var(correction=0) + norm.eps)
        return (added / scale * norm.weight.double()) @ direction, norm.bias.double() @ direction

    patch_everywhere(patch, "logit_contributions", logit_contributions)


def contributions_without_the_norms_bias(patch: Patch, loaded: Checkpoint) -> None:
    original = contributions.logit_contributions
    patch_everywhere(
        patch, "logit_contributions", lambda *given: (original(*given)[0], torch.zeros((), dtype=torch.float64))
    )


def sequences_drop_a_token(patch: Patch, loaded: Checkpoint) -> None:
    patch.setattr(
        surprisal, "sequence_batches", lambda *given: (each[:, :-1] for each in loss.sequence_batches(*given))
    )


def surprisal_in_bits(patch: Patch, loaded: Checkpoint) -> None:
    original = surprisal.token_surprisals

    def token_surprisals(*given: Any) -> tuple[np.ndarray, ...]:
        nats, *others = original(*given)
        return nats / math.log(2), *others

    patch_everywhere(patch, "token_surprisals", token_surprisals)


def another_head_ablated(patch: Patch, loaded: Checkpoint) -> None:
    original = ablation.logits_without
    patch_everywhere(
        patch,
        "logits_without",
        lambda model, step, layer, kept, mlp: original(model, step, layer, kept.roll(1, 1), mlp),
    )


def another_head_named(patch: Patch, loaded: Checkpoint) -> None:
    """The view names one head and ablates another."""
    original = ablation.parts_and_masks

    def parts_and_masks(*given: Any) -> tuple[list[contributions.Part], Tensor, Tensor]:
        parts, heads, mlp = original(*given)
        return parts, heads.roll(1, 1), mlp

    patch_everywhere(patch, "parts_and_masks", parts_and_masks)


def nothing_after_the_layer(patch: Patch, loaded: Checkpoint) -> None:
    """The later layers are ablated, too."""

    def logits_without(
        model: GPT, activations: capture.LayerActivations, layer: int, kept: Tensor, mlp: Tensor
    ) -> Tensor:
        block = activations.block
        x = activations.before + block.attn.output(activations.heads * kept[:, :, None, None])
        return model.unembed(model.norm(x + block.mlp(block.ln_2(x)) * mlp[:, None, None]))

    patch_everywhere(patch, "logits_without", logits_without)


def returning(name: str, change: Callable[[Any], Any]) -> Fault:
    """A function of the lens whose result is changed."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        home = next(module for module in MODULES if hasattr(module, name))
        original = getattr(home, name)
        patch_everywhere(patch, name, lambda *given, **options: change(original(*given, **options)))

    return plant


least_likely_first = returning("top_tokens", lambda found: tuple(each.flip(-1) for each in found))
rank_from_zero = returning("token_surprisals", lambda found: (found[0], found[1] - 1, found[2]))
statistics_in_bits = returning(
    "head_statistics", lambda head: dataclasses.replace(head, entropy=head.entropy / math.log(2))
)


SHAPES, PARAMETERS = "shapes: match the settings", "shapes: parameter count"
TOKENS = "tokens: bytes equal the text"
SUM, DIFFERENCE = "position: x = wte + wpe", "position: x differs as wpe does"
COSINES = "neighbors: cosines, in a loop"
ROWS, FUTURE = "attention: rows sum to 1", "attention: nothing from the future"
FIRST, FUSED = "attention: position 0 attends to itself", "attention: pattern = fused kernel"
HEAD, STREAM, LOGITS = "model: lm_head is tied to wte", "float64: the stream after every layer", "float64: logits"
LAST_STAGE, EVERY_STAGE = "logit_lens: the last stage equals the model", "logit_lens: every stage, in float64"
ADDED, LOGIT = "contributions: parts sum to the stream", "contributions: parts sum to the logit"
MEAN, CHANCE = "surprisal: its mean is the loss", "surprisal: with a zero head, ln V"
NOTHING, A_HEAD = "ablation: keeping all parts changes nothing", "ablation: a head, in float64"
CAUSALITY = "causality: later tokens change nothing"
ALONE, HEAD_ALONE = "float64: every layer alone", "float64: lm_head alone"
FLOPS, STATISTICS = "shapes: FLOP count", "attention: statistics, in a loop"
GUESSES, RANKS = "logit_lens: guesses, entropy, surprisal, rank", "surprisal: ranks, recounted"
EVERY_TOKEN = "surprisal: one for every token"
CACHE, ENGINE = "cache: one token at a time = full forward", "engine: one token at a time = full forward"

MODEL = [STREAM, LOGITS, EVERY_STAGE, A_HEAD, ENGINE]  # the checks that a wrong model fails
FAULTS: dict[str, tuple[Fault, list[str]]] = {
    "no mask": (no_mask, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask one ahead": (mask_one_ahead, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask ignores the cache": (mask_ignores_cache, [CACHE]),
    "scores divided by D": (scores_divided_by(1), [FUSED, *MODEL]),
    "scores not divided": (scores_divided_by(0), [FUSED, *MODEL]),
    "heads reversed": (heads_reversed, [ADDED, *MODEL]),
    "heads not transposed": (heads_not_transposed, [ADDED, CAUSALITY, *MODEL]),
    "heads before q, k, v": (heads_before_qkv, MODEL),
    "stale cache": (cache_extend(never_stores), [CACHE]),
    "cache one late": (cache_extend(stores_one_late), [CACHE]),
    "cache without values": (cache_extend(loses_values), [CACHE]),
    "uninitialized cache": (cache_extend(is_uninitialized), [CACHE]),
    "cached positions from 0": (cached_positions_from_zero, [CACHE]),
    "positions shifted": (positions_shifted, [SUM, DIFFERENCE, ADDED, *MODEL]),
    "untied head": (untied_head, [HEAD, PARAMETERS, LOGITS, EVERY_STAGE]),
    "other epsilon": (other_epsilon, MODEL),
    "no GELU": (no_gelu, MODEL),
    "ln_1 left out": (without_norm("ln_1"), MODEL),
    "ln_2 left out": (without_norm("ln_2"), MODEL),
    "ln_f left out": (without_norm("ln_f"), [LOGIT, HEAD_ALONE, LOGITS, EVERY_STAGE, ENGINE]),
    "norms after": (norms_after, [FUSED, LAST_STAGE, NOTHING, LOGITS, ENGINE]),
    "one weight changed": (one_weight_changed, [STREAM, LOGITS, EVERY_STAGE]),
    "engine one position back": (engine_one_position_back, [ENGINE]),
    "shapes reversed": (shapes_reversed, [SHAPES]),
    "parameters omitted": (parameters_omitted, [PARAMETERS]),
    "token bytes swapped": (token_bytes_swapped, [TOKENS]),
    "bytes of another token": (bytes_of_another_token, [TOKENS]),
    "characters split": (characters_split, [TOKENS]),
    "rows not normalized": (rows_not_normalized, [COSINES]),
    "pattern over queries": (pattern_of(over=-2), [ROWS, FUSED]),
    "pattern one ahead": (pattern_of(offset=2), [FUTURE, FIRST, FUSED]),
    "pattern hidden by 0": (pattern_of(hidden=0), [FUTURE, FIRST, FUSED]),
    "pattern divided by D": (pattern_of(power=1), [FUSED]),
    "frozen scale": (frozen_scale, [EVERY_STAGE]),
    "logit lens without norm": (logit_lens_without_norm, [LAST_STAGE, EVERY_STAGE]),
    "contributions without attention's bias": (contributions_without("attention's bias"), [ADDED, LOGIT]),
    "contributions without wpe": (contributions_without("wpe"), [ADDED, LOGIT]),
    "contributions without MLPs": (contributions_without("MLP"), [ADDED, LOGIT]),
    "contributions not centered": (contributions_not_centered, [LOGIT]),
    "contributions without the norm's bias": (contributions_without_the_norms_bias, [LOGIT]),
    "sequences drop a token": (sequences_drop_a_token, [EVERY_TOKEN]),
    "surprisal in bits": (surprisal_in_bits, [MEAN, CHANCE]),
    "another head ablated": (another_head_ablated, [A_HEAD]),
    "nothing after the layer": (nothing_after_the_layer, [NOTHING, A_HEAD]),
    "FLOPs halved": (flops_halved, [FLOPS]),
    "engine of one slot": (engine_of_one_slot, [ENGINE]),
    "another head named": (another_head_named, [A_HEAD]),
    "pattern of NaN": (pattern_of(offset=0), [ROWS, FUTURE, FIRST, FUSED]),
    "least likely first": (least_likely_first, [GUESSES]),
    "rank from 0": (rank_from_zero, [RANKS]),
    "statistics in bits": (statistics_in_bits, [STATISTICS]),
}
OTHER_MODELS: dict[str, tuple[str, Fault, str]] = {  # faults that only other models show
    "other GELU, small weights": ("small_weights", other_gelu, ALONE),
    "characters of a byte model split": ("byte", characters_split, TOKENS),
    "unknown bytes of characters": ("other", token_bytes_unknown, "tokens"),  # the check raises an error
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_by_the_named_checks(models: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(failed_checks(models, "random", plant))


@pytest.mark.parametrize(
    "fault",
    [
        "no mask", "mask one ahead", "scores divided by D", "scores not divided", "heads reversed", "stale cache",
        "cache one late", "positions shifted", "untied head", "other epsilon", "ln_1 left out", "one weight changed",
        "engine one position back", "pattern over queries", "frozen scale", "contributions without attention's bias",
        "sequences drop a token", "another head ablated",
    ],
)  # fmt: skip
def test_a_fault_planted_in_a_trained_model_is_caught(models: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(failed_checks(models, "trained", plant))


@pytest.mark.parametrize("name", ["random", "other", "byte", "small_weights", "trained"])
def test_without_a_fault_every_check_holds(models: dict[str, Path], name: str) -> None:
    assert failed_checks(models, name, lambda *_: None) == []


def test_every_check_catches_a_fault(models: dict[str, Path]) -> None:
    caught = {name for _, expected in FAULTS.values() for name in expected} | {ALONE}
    assert {each.name for each in lens.verify(models["random"]).checks} == caught


@pytest.mark.parametrize("name", ["random", "other"])
def test_the_other_gelu_is_caught(models: dict[str, Path], name: str) -> None:
    assert set(failed_checks(models, name, other_gelu)) >= {STREAM, LOGITS, ENGINE}


@pytest.mark.parametrize("fault", OTHER_MODELS)
def test_a_fault_that_only_another_model_shows_is_caught(models: dict[str, Path], fault: str) -> None:
    model, plant, expected = OTHER_MODELS[fault]
    assert any(name.startswith(expected) for name in failed_checks(models, model, plant))


def test_an_error_of_nan_is_wrong_and_becomes_json(models: dict[str, Path], monkeypatch: Patch) -> None:
    cache_extend(is_uninitialized)(monkeypatch, runs.load(models["random"]))
    view = lens.verify(models["random"])
    assert not view.ok
    json.dumps(view.plain(), allow_nan=False)
