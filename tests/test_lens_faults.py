"""Every check of `verify` can fail: faults that are planted in the model or the lens fail the checks named here.

A fault is a function that patches a class of the model, a function of the lens, or one loaded model.
"""

import dataclasses
import importlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
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


def lens_modules(*names: str) -> list[Any]:
    """Modules of `octavo.lens`. An import statement would return the view, which has the name of its module."""
    return [importlib.import_module(f"octavo.lens.{name}") for name in names]


ablation, capture, contributions = lens_modules("ablation", "capture", "contributions")
shapes, surprisal, tokens = lens_modules("shapes", "surprisal", "tokens")
MODULES = [
    *(ablation, capture, contributions, shapes, surprisal, tokens),
    *lens_modules(
        "attention", "embedding", "flow", "logit_lens", "neighbors", "next_token", "position", "projection", "verify"
    ),
]

pytestmark = pytest.mark.usefixtures("one_thread")

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch, Checkpoint], None]
Rows = list[int]


@pytest.fixture(scope="module")
def models(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The checkpoints in which the tests plant faults."""
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


def replace_mask(mask_of: Callable[[int, int], Tensor | None]) -> Fault:
    """Attention uses the mask `mask_of(T, S)`, (T, S), for T queries and S keys."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def attend(self: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
            mask = mask_of(q.size(2), k.size(2))
            return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.device))

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


no_mask = replace_mask(lambda T, S: None)
mask_one_ahead = replace_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T + 1))
mask_ignores_cache = replace_mask(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril())  # only the first T keys


def divide_scores_by(power: float) -> Fault:
    """Scores are divided by D to this power instead of its square root."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = CausalSelfAttention.attend

        def attend(self: CausalSelfAttention, q: Tensor, *others: Any) -> Tensor:
            return original(self, q * q.size(-1) ** (0.5 - power), *others)

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


def reorder_heads(change: Callable[[Tensor], Tensor]) -> Fault:
    """The heads (B, H, T, D) are changed before they are concatenated."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = CausalSelfAttention.output
        patch.setattr(CausalSelfAttention, "output", lambda self, y: original(self, change(y)))

    return plant


heads_reversed = reorder_heads(lambda y: y.flip(1))
heads_not_transposed = reorder_heads(lambda y: y.reshape(y.size(0), y.size(2), y.size(1), y.size(3)).transpose(1, 2))


def group_qkv_by_head(patch: Patch, loaded: Checkpoint) -> None:
    """c_attn has the layout of other models: q, k and v of a head are adjacent."""

    def project(self: CausalSelfAttention, x: Tensor) -> tuple[Tensor, ...]:
        B, T, C = x.shape
        return tuple(self.c_attn(x).view(B, T, self.n_head, 3, C // self.n_head).permute(3, 0, 2, 1, 4))

    patch.setattr(CausalSelfAttention, "project", project)


# Faults of the cache


def replace_extend(change: Callable[[LayerCache, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Fault:
    """`LayerCache.extend` stores and returns something else."""
    return lambda patch, loaded: patch.setattr(LayerCache, "extend", change)


def extend_without_storing(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return self.keys[self.full_index], self.values[self.full_index]


def extend_one_position_late(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The key and value after the last position are dropped."""
    keys, values, first = self.keys, self.values, self.new_index[1].start + 1
    T = min(k.size(2), keys.size(2) - first)
    keys[:, :, first : first + T], values[:, :, first : first + T] = k[:, :, :T], v[:, :, :T]
    return keys[:, :, : first - 1 + k.size(2)], values[:, :, : first - 1 + k.size(2)]


def extend_without_values(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    first = self.new_index[1].start
    self.keys[:, :, first : first + k.size(2)] = k
    return self.keys[:, :, : first + k.size(2)], F.pad(v, (0, 0, first, 0))


def extend_uninitialized(self: LayerCache, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The keys are uninitialized memory, which contains NaN."""
    return torch.full_like(self.keys, torch.nan)[:, :, : k.size(2)], v


def start_cached_positions_at_zero(patch: Patch, loaded: Checkpoint) -> None:
    """Positions start at 0 in every call, also with a cache."""
    original = GPT.embed
    patch.setattr(GPT, "embed", lambda self, idx, start=0: original(self, idx, start if isinstance(start, int) else 0))


# Faults of the rest of the model


def shift_positions(patch: Patch, loaded: Checkpoint) -> None:
    def embed(self: GPT, idx: Tensor, start: int | Sequence[int] = 0) -> Tensor:
        starts = [start] if isinstance(start, int) else start
        wpe = self.transformer.wpe.weight.roll(-1, 0)
        return self.transformer.wte(idx) + torch.stack([wpe[each : each + idx.size(1)] for each in starts])

    patch.setattr(GPT, "embed", embed)


def untie_head(patch: Patch, loaded: Checkpoint) -> None:
    head = loaded.model.lm_head.weight.detach()
    loaded.model.lm_head.weight = nn.Parameter(head + 0.01 * torch.randn(head.shape, generator=torch.manual_seed(0)))


def swap_gelu(patch: Patch, loaded: Checkpoint) -> None:
    for module in loaded.model.modules():
        if isinstance(module, MLP):
            module.approximate = {"tanh": "none", "none": "tanh"}[module.approximate]


def remove_gelu(patch: Patch, loaded: Checkpoint) -> None:
    patch.setattr(MLP, "expand", lambda self, x: self.c_fc(x))


def change_epsilon(patch: Patch, loaded: Checkpoint) -> None:
    for module in loaded.model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-3


def remove_norm(name: str) -> Fault:
    """Layer norms of this name return their input."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        for path, module in loaded.model.named_modules():
            if path.endswith(name):
                patch.setattr(module, "forward", lambda x: x)

    return plant


def move_norms_after_branches(patch: Patch, loaded: Checkpoint) -> None:
    """Blocks are post-norm, as in the first transformer, but the lens computes pre-norm blocks."""

    def forward(self: Block, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        x = self.ln_1(x + self.attn(x, cache))
        return self.ln_2(x + self.mlp(x))

    patch.setattr(Block, "forward", forward)


def change_one_weight(patch: Patch, loaded: Checkpoint) -> None:
    """A weight differs from the file."""
    loaded.model.transformer.h[2].attn.c_proj.weight.data[3, 5] += 0.5


def change_engine_rows(**changes: Callable[[Rows], Rows]) -> Fault:
    """The engine's decoder computes other rows than requested: `changes` are applied to fields of the batch."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = native.NativeDecoder.forward

        def forward(self: native.NativeDecoder, batch: Batch) -> Tensor:
            changed = {name: change(getattr(batch, name)) for name, change in changes.items()}
            return original(self, dataclasses.replace(batch, **changed))

        patch.setattr(native.NativeDecoder, "forward", forward)

    return plant


engine_one_position_back = change_engine_rows(positions=lambda positions: [max(0, t - 1) for t in positions])
engine_of_one_slot = change_engine_rows(slots=lambda slots: [0] * len(slots))


# Faults of the lens


def patch_everywhere(patch: Patch, name: str, fault: Any) -> None:
    """Replace a function in every module of the lens that imports it."""
    for module in MODULES:
        if hasattr(module, name):
            patch.setattr(module, name, fault)


def change_stages(change: Callable[[shapes.Stage], dict[str, Any]]) -> Fault:
    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = shapes.forward_stages

        def change_each(*arguments: Any) -> Iterator[shapes.Stage]:
            return (dataclasses.replace(each, **change(each)) for each in original(*arguments))

        patch.setattr(shapes, "forward_stages", change_each)

    return plant


shapes_reversed = change_stages(lambda stage: {"shape": stage.shape[::-1]})
parameters_omitted = change_stages(lambda stage: {"parameters": stage.parameters * (stage.name != "h.mlp.c_proj")})
flops_halved = change_stages(lambda stage: {"flops": stage.flops // 2})


def swap_token_bytes(patch: Patch, loaded: Checkpoint) -> None:
    """The table of token bytes has `a` and `t` swapped."""
    swap = {b"a": b"t", b"t": b"a"}
    patch.setattr(loaded.tokenizer, "token_bytes", [swap.get(each, each) for each in loaded.tokenizer.token_bytes])


def add_unknown_token_bytes(patch: Patch, loaded: Checkpoint) -> None:
    """The table of token bytes has a character that the tokenizer does not know."""
    patch.setattr(loaded.tokenizer, "token_bytes", [b"\xe2\x82\xac", *loaded.tokenizer.token_bytes[1:]])


def use_bytes_of_another_token(patch: Patch, loaded: Checkpoint) -> None:
    original = tokens.make_token
    patch_everywhere(
        patch, "make_token", lambda known, id: dataclasses.replace(original(known, id), bytes=original(known, 0).bytes)
    )


def split_characters(patch: Patch, loaded: Checkpoint) -> None:
    """Each token is a separate group, even if it is part of a character."""

    def grouped(tokenizer: Any, ids: Sequence[int]) -> list[tokens.Group]:
        return [tokens.Group(tokenizer.decode([id]), at, 1) for at, id in enumerate(ids)]

    patch.setattr(tokens, "group_by_character", grouped)


def skip_row_normalization(patch: Patch, loaded: Checkpoint) -> None:
    patch_everywhere(patch, "unit_rows", lambda rows: rows.astype(np.float64))


def change_pattern(power: float = 0.5, offset: int = 1, hidden: float = -math.inf, over: int = -1) -> Fault:
    """The attention pattern is scaled, masked or normalized in another way."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def pattern(q: Tensor, k: Tensor) -> Tensor:
            scores = q @ k.mT / q.size(-1) ** power
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(offset)
            return scores.masked_fill(future, hidden).softmax(over)

        patch_everywhere(patch, "attention_pattern", pattern)

    return plant


def freeze_scale(patch: Patch, loaded: Checkpoint) -> None:
    """Every row of the logit lens is divided by the standard deviation of the last row."""
    scale: list[Tensor] = []

    def stage_logits(model: GPT, x: Tensor) -> Tensor:
        if not scale:  # the first call is for the embedding
            *_, last = capture.run_blocks(model, x)
            scale.append(last.resid_post.std(-1, correction=0, keepdim=True))
        norm = model.transformer.ln_f
        centered = (x - x.mean(-1, keepdim=True)) / scale[0]
        return model.unembed(centered * norm.weight + (0 if norm.bias is None else norm.bias))

    patch_everywhere(patch, "stage_logits", stage_logits)


def skip_norm_of_logit_lens(patch: Patch, loaded: Checkpoint) -> None:
    patch_everywhere(patch, "stage_logits", lambda model, x: model.unembed(x))


def omit_contributions(name: str) -> Fault:
    """The contributions of the parts with this name are missing."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        original = contributions.decompose_residual

        def faulty(*arguments: Any) -> tuple[list[contributions.Part], Tensor]:
            parts, added = original(*arguments)
            kept = [n for n, part in enumerate(parts) if part.name != name]
            return [parts[n] for n in kept], added[kept]

        patch_everywhere(patch, "decompose_residual", faulty)

    return plant


def skip_centering(patch: Patch, loaded: Checkpoint) -> None:
    def logit_contributions(model: GPT, added: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        norm = model.transformer.ln_f
        scale = torch.sqrt(added.sum(0).var(correction=0) + norm.eps)
        return (added / scale * norm.weight.double()) @ direction, norm.bias.double() @ direction

    patch_everywhere(patch, "logit_contributions", logit_contributions)


def omit_bias_of_norm(patch: Patch, loaded: Checkpoint) -> None:
    original = contributions.logit_contributions
    patch_everywhere(
        patch, "logit_contributions", lambda *arguments: (original(*arguments)[0], torch.zeros((), dtype=torch.float64))
    )


def drop_last_tokens(patch: Patch, loaded: Checkpoint) -> None:
    patch.setattr(
        surprisal, "sequence_batches", lambda *arguments: (each[:, :-1] for each in loss.sequence_batches(*arguments))
    )


def convert_surprisal_to_bits(patch: Patch, loaded: Checkpoint) -> None:
    original = surprisal.token_surprisals

    def token_surprisals(*arguments: Any) -> tuple[np.ndarray, ...]:
        nats, *others = original(*arguments)
        return nats / math.log(2), *others

    patch_everywhere(patch, "token_surprisals", token_surprisals)


def ablate_another_head(patch: Patch, loaded: Checkpoint) -> None:
    original = ablation.logits_without
    patch_everywhere(
        patch,
        "logits_without",
        lambda model, step, layer, kept, mlp: original(model, step, layer, kept.roll(1, 1), mlp),
    )


def name_another_head(patch: Patch, loaded: Checkpoint) -> None:
    """The view names one head and ablates another."""
    original = ablation.parts_and_masks

    def parts_and_masks(*arguments: Any) -> tuple[list[contributions.Part], Tensor, Tensor]:
        parts, heads, mlp = original(*arguments)
        return parts, heads.roll(1, 1), mlp

    patch_everywhere(patch, "parts_and_masks", parts_and_masks)


def ablate_later_layers(patch: Patch, loaded: Checkpoint) -> None:
    """The later layers are ablated as well."""

    def logits_without(
        model: GPT, activations: capture.LayerActivations, layer: int, kept: Tensor, mlp: Tensor
    ) -> Tensor:
        block = activations.block
        x = activations.resid_pre + block.attn.output(activations.heads * kept[:, :, None, None])
        return model.unembed(model.norm(x + block.mlp(block.ln_2(x)) * mlp[:, None, None]))

    patch_everywhere(patch, "logits_without", logits_without)


def change_result(name: str, change: Callable[[Any], Any]) -> Fault:
    """A function of the lens returns another result."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        owner = next(module for module in MODULES if hasattr(module, name))
        original = getattr(owner, name)
        patch_everywhere(patch, name, lambda *arguments, **options: change(original(*arguments, **options)))

    return plant


least_likely_first = change_result("top_tokens", lambda found: tuple(each.flip(-1) for each in found))
rank_from_zero = change_result("token_surprisals", lambda found: (found[0], found[1] - 1, found[2]))
statistics_in_bits = change_result(
    "head_statistics", lambda head: dataclasses.replace(head, entropy=head.entropy / math.log(2))
)
flow_of_stage_before = change_result("flow", lambda view: dataclasses.replace(view, stream=np.roll(view.stream, 2, 0)))
norms_doubled = change_result("flow", lambda view: dataclasses.replace(view, norms=2 * view.norms))
predictions_of_position_before = change_result("_next_probabilities", lambda found: found.roll(1, 0))


SHAPES, PARAMETERS = "shapes: match the settings", "shapes: parameter count"
TOKENS = "tokens: bytes equal the text"
SUM, DIFFERENCE = "position: x = wte + wpe", "position: differences of x and wpe are equal"
COSINES = "neighbors: cosines = plain Python"
ROWS, FUTURE = "attention: rows sum to 1", "attention: nothing from the future"
FIRST, FUSED = "attention: position 0 attends to itself", "attention: pattern = fused kernel"
HEAD, STREAM, LOGITS = (
    "model: lm_head is tied to wte",
    "reference: residual stream after every layer",
    "reference: logits",
)
LAST_STAGE, EVERY_STAGE = "logit_lens: the last stage equals the model", "logit_lens: every stage against the reference"
ADDED, LOGIT = "contributions: parts sum to the residual stream", "contributions: parts sum to the logit"
MEAN, CHANCE = "surprisal: its mean is the loss", "surprisal: is ln V if lm_head is zero"
NOTHING, A_HEAD = "ablation: keeping all parts changes nothing", "ablation: a head against the reference"
CAUSALITY = "causality: later tokens change nothing"
ALONE, HEAD_ALONE = "reference: each block, on the reference's input", "reference: lm_head, on the reference's input"
FLOPS, STATISTICS = "shapes: FLOP count", "attention: statistics = a loop over rows"
PREDICTIONS, RANKS = "logit_lens: top tokens, entropy, surprisal, rank", "surprisal: ranks, recounted"
EVERY_TOKEN = "surprisal: one for every token"
FLOW, NORMS = "flow: residual stream against the reference", "flow: norms against the reference"
FLOW_PREDICTIONS = "flow: probabilities of the predictions are those of the model"
CACHE, ENGINE = "cache: prefill and decode = full forward", "decoder: prefill and decode = full forward"

MODEL = [STREAM, LOGITS, EVERY_STAGE, A_HEAD, ENGINE]  # the checks that fail if the model is wrong
FAULTS: dict[str, tuple[Fault, list[str]]] = {
    "no mask": (no_mask, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask one ahead": (mask_one_ahead, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask ignores the cache": (mask_ignores_cache, [CACHE]),
    "scores divided by D": (divide_scores_by(1), [FUSED, *MODEL]),
    "scores not divided": (divide_scores_by(0), [FUSED, *MODEL]),
    "heads reversed": (heads_reversed, [ADDED, *MODEL]),
    "heads not transposed": (heads_not_transposed, [ADDED, CAUSALITY, *MODEL]),
    "heads before q, k, v": (group_qkv_by_head, MODEL),
    "stale cache": (replace_extend(extend_without_storing), [CACHE]),
    "cache one late": (replace_extend(extend_one_position_late), [CACHE]),
    "cache without values": (replace_extend(extend_without_values), [CACHE]),
    "uninitialized cache": (replace_extend(extend_uninitialized), [CACHE]),
    "cached positions from 0": (start_cached_positions_at_zero, [CACHE]),
    "positions shifted": (shift_positions, [SUM, DIFFERENCE, ADDED, *MODEL]),
    "untied head": (untie_head, [HEAD, PARAMETERS, LOGITS, EVERY_STAGE]),
    "other epsilon": (change_epsilon, MODEL),
    "no GELU": (remove_gelu, MODEL),
    "ln_1 left out": (remove_norm("ln_1"), MODEL),
    "ln_2 left out": (remove_norm("ln_2"), MODEL),
    "ln_f left out": (remove_norm("ln_f"), [LOGIT, HEAD_ALONE, LOGITS, EVERY_STAGE, ENGINE]),
    "norms after": (move_norms_after_branches, [FUSED, LAST_STAGE, NOTHING, LOGITS, ENGINE]),
    "one weight changed": (change_one_weight, [STREAM, LOGITS, EVERY_STAGE]),
    "engine one position back": (engine_one_position_back, [ENGINE]),
    "shapes reversed": (shapes_reversed, [SHAPES]),
    "parameters omitted": (parameters_omitted, [PARAMETERS]),
    "token bytes swapped": (swap_token_bytes, [TOKENS]),
    "bytes of another token": (use_bytes_of_another_token, [TOKENS]),
    "characters split": (split_characters, [TOKENS]),
    "rows not normalized": (skip_row_normalization, [COSINES]),
    "pattern over queries": (change_pattern(over=-2), [ROWS, FUSED]),
    "pattern one ahead": (change_pattern(offset=2), [FUTURE, FIRST, FUSED]),
    "pattern hidden by 0": (change_pattern(hidden=0), [FUTURE, FIRST, FUSED]),
    "pattern divided by D": (change_pattern(power=1), [FUSED]),
    "frozen scale": (freeze_scale, [EVERY_STAGE]),
    "logit lens without norm": (skip_norm_of_logit_lens, [LAST_STAGE, EVERY_STAGE]),
    "contributions without attention's bias": (omit_contributions("attention's bias"), [ADDED, LOGIT]),
    "contributions without wpe": (omit_contributions("wpe"), [ADDED, LOGIT]),
    "contributions without MLPs": (omit_contributions("MLP"), [ADDED, LOGIT]),
    "contributions not centered": (skip_centering, [LOGIT]),
    "contributions without the norm's bias": (omit_bias_of_norm, [LOGIT]),
    "sequences drop a token": (drop_last_tokens, [EVERY_TOKEN]),
    "surprisal in bits": (convert_surprisal_to_bits, [MEAN, CHANCE]),
    "another head ablated": (ablate_another_head, [A_HEAD]),
    "nothing after the layer": (ablate_later_layers, [NOTHING, A_HEAD]),
    "FLOPs halved": (flops_halved, [FLOPS]),
    "engine of one slot": (engine_of_one_slot, [ENGINE]),
    "another head named": (name_another_head, [A_HEAD]),
    "pattern of NaN": (change_pattern(offset=0), [ROWS, FUTURE, FIRST, FUSED]),
    "least likely first": (least_likely_first, [PREDICTIONS]),
    "rank from 0": (rank_from_zero, [RANKS]),
    "statistics in bits": (statistics_in_bits, [STATISTICS]),
    "flow of the stage before": (flow_of_stage_before, [FLOW]),
    "norms doubled": (norms_doubled, [NORMS]),
    "predictions of the position before": (predictions_of_position_before, [FLOW_PREDICTIONS]),
}
OTHER_MODELS: dict[str, tuple[str, Fault, str]] = {  # faults that only other models reveal
    "other GELU, small weights": ("small_weights", swap_gelu, ALONE),
    "characters of a byte model split": ("byte", split_characters, TOKENS),
    "unknown bytes of characters": ("other", add_unknown_token_bytes, "tokens"),  # in the check, an error is raised
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_fails_the_named_checks(models: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(failed_checks(models, "random", plant))


@pytest.mark.parametrize(
    "fault",
    [
        "no mask",
        "mask one ahead",
        "scores divided by D",
        "scores not divided",
        "heads reversed",
        "stale cache",
        "cache one late",
        "positions shifted",
        "untied head",
        "other epsilon",
        "ln_1 left out",
        "one weight changed",
        "engine one position back",
        "pattern over queries",
        "frozen scale",
        "contributions without attention's bias",
        "sequences drop a token",
        "another head ablated",
    ],
)
def test_a_fault_planted_in_a_trained_model_fails_the_named_checks(models: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(failed_checks(models, "trained", plant))


@pytest.mark.parametrize("name", ["random", "other", "byte", "small_weights", "trained"])
def test_without_a_fault_every_check_passes(models: dict[str, Path], name: str) -> None:
    assert failed_checks(models, name, lambda *_: None) == []


def test_every_check_fails_for_some_fault(models: dict[str, Path]) -> None:
    failing = {name for _, expected in FAULTS.values() for name in expected} | {ALONE}
    assert {each.name for each in lens.verify(models["random"]).checks} == failing


@pytest.mark.parametrize("name", ["random", "other"])
def test_the_other_gelu_fails_checks_of_the_model(models: dict[str, Path], name: str) -> None:
    assert set(failed_checks(models, name, swap_gelu)) >= {STREAM, LOGITS, ENGINE}


@pytest.mark.parametrize("fault", OTHER_MODELS)
def test_a_fault_that_only_another_model_reveals_fails_the_named_check(models: dict[str, Path], fault: str) -> None:
    model, plant, expected = OTHER_MODELS[fault]
    assert any(name.startswith(expected) for name in failed_checks(models, model, plant))


def test_an_error_of_nan_fails_the_check_and_becomes_json(models: dict[str, Path], monkeypatch: Patch) -> None:
    replace_extend(extend_uninitialized)(monkeypatch, runs.load(models["random"]))
    view = lens.verify(models["random"])
    assert not view.ok
    json.dumps(view.to_dict(), allow_nan=False)
