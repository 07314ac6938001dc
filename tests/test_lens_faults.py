"""Every check of `verify` is proven by mistakes that it catches: planted, found, named.

A fault is a function that plants it: in the classes of the model, in the functions of the lens, or in the one model
that is looked at.
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

from lenses import tiny, written
from octavo import kernels, lens, loss, runs
from octavo.checkpoint import Checkpoint
from octavo.generation import native
from octavo.model import GPT, MLP, Block, CausalSelfAttention, KVCache

# The modules: most views have the name of the module that they are in.
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

Patch = pytest.MonkeyPatch
Fault = Callable[[Patch, Checkpoint], None]
Rows = list[int]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with kernels.one_thread():
        yield


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where faults are planted."""
    base = tmp_path_factory.mktemp("places")
    return {
        "random": written(base / "random", n_layer=4).folder,
        "other": written(base / "other", "char", n_layer=4, bias=False, activation="gelu").folder,
        "byte": written(base / "byte", "byte", n_layer=4).folder,
        "narrow": written(base / "narrow", n_layer=4, spread=0.02).folder,  # as weights are before training
        "trained": runs.find_checkpoint(tiny(tmp_path_factory.getbasetemp()).folder),
    }


def wrong(places: dict[str, Path], place: str, plant: Fault) -> list[str]:
    """The names of the checks that fail where a fault is planted."""
    loaded = runs.load(places[place])
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, loaded)
        seen = lens.verify(loaded)
    names = [each.name for each in seen.checks if not each.ok]
    assert seen.ok == (not names)
    return names


# Faults of attention


def attending(mask_of: Callable[[int, int], Tensor | None]) -> Fault:
    """Attention that sees what `mask_of(T, S)` says, (T, S), of S keys the newest T of which ask."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def attend(self: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
            mask = mask_of(q.size(2), k.size(2))
            return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask.to(q.device))

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


no_mask = attending(lambda T, S: None)
mask_one_ahead = attending(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T + 1))
mask_for_whole_texts_only = attending(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril())  # of a cache the first T


def scores_divided_by(power: float) -> Fault:
    """D to this power, where the root is meant."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        right = CausalSelfAttention.attend

        def attend(self: CausalSelfAttention, q: Tensor, *others: Any) -> Tensor:
            return right(self, q * q.size(-1) ** (0.5 - power), *others)

        patch.setattr(CausalSelfAttention, "attend", attend)

    return plant


def output_of(change: Callable[[Tensor], Tensor]) -> Fault:
    """The heads (B, H, T, D) are laid side by side in another way."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        right = CausalSelfAttention.output
        patch.setattr(CausalSelfAttention, "output", lambda self, y: right(self, change(y)))

    return plant


heads_reversed = output_of(lambda y: y.flip(1))
heads_not_turned = output_of(lambda y: y.reshape(y.size(0), y.size(2), y.size(1), y.size(3)).transpose(1, 2))


def heads_before_qkv(patch: Patch, loaded: Checkpoint) -> None:
    """c_attn read as other models lay it out: each head's q, k and v side by side."""

    def project(self: CausalSelfAttention, x: Tensor) -> tuple[Tensor, ...]:
        B, T, C = x.shape
        return tuple(self.c_attn(x).view(B, T, self.n_head, 3, C // self.n_head).permute(3, 0, 2, 1, 4))

    patch.setattr(CausalSelfAttention, "project", project)


# Faults of the cache


def extending(change: Callable[[KVCache, int, Tensor, Tensor], tuple[Tensor, Tensor]]) -> Fault:
    """A cache that writes and gives something else."""
    return lambda patch, loaded: patch.setattr(KVCache, "extend", change)


def never_writes(self: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    S = max(self.lengths) + k.size(2)
    return self.keys[layer][:, :, :S], self.values[layer][:, :, :S]


def writes_one_late(self: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """What would lie behind the last place is lost."""
    keys, values, first = self.keys[layer], self.values[layer], self.lengths[0] + 1
    T = min(k.size(2), keys.size(2) - first)
    keys[:, :, first : first + T], values[:, :, first : first + T] = k[:, :, :T], v[:, :, :T]
    return keys[:, :, : first - 1 + k.size(2)], values[:, :, : first - 1 + k.size(2)]


def forgets_values(self: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    first = self.lengths[0]
    self.keys[layer][:, :, first : first + k.size(2)] = k
    return self.keys[layer][:, :, : first + k.size(2)], F.pad(v, (0, 0, first, 0))


def is_not_cleared(self: KVCache, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Memory as it was found, with what is no number in it."""
    return torch.full_like(self.keys[layer], torch.nan)[:, :, : k.size(2)], v


def cached_positions_from_zero(patch: Patch, loaded: Checkpoint) -> None:
    """With a cache, positions begin anew at every call."""
    right = GPT.embed
    patch.setattr(GPT, "embed", lambda self, idx, start=0: right(self, idx, start if isinstance(start, int) else 0))


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


def left_out(name: str) -> Fault:
    """Layer norms of this name give what they are given."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        for path, module in loaded.model.named_modules():
            if path.endswith(name):
                patch.setattr(module, "forward", lambda x: x)

    return plant


def norms_behind(patch: Patch, loaded: Checkpoint) -> None:
    """As in the first transformers, and not as in the walk of the lens."""

    def forward(self: Block, x: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x = self.ln_1(x + self.attn(x, cache, layer))
        return self.ln_2(x + self.mlp(x))

    patch.setattr(Block, "forward", forward)


def one_weight_changed(patch: Patch, loaded: Checkpoint) -> None:
    """In memory, not in the files."""
    loaded.model.transformer.h[2].attn.c_proj.weight.data[3, 5] += 0.5


def engine_running(change: Callable[[Rows, Rows, Rows, Rows], tuple[Rows, ...]]) -> Fault:
    """The engine runs other rows (ids, slots, positions, wanted) than it was asked for."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        right = native.NativeDecoder.forward
        patch.setattr(native.NativeDecoder, "forward", lambda self, *rows: right(self, *change(*rows)))

    return plant


engine_one_position_back = engine_running(
    lambda ids, slots, at, wanted: (ids, slots, [max(0, t - 1) for t in at], wanted)
)
engine_of_one_slot = engine_running(lambda ids, slots, at, wanted: (ids, [0] * len(slots), at, wanted))


# Faults of the lens


def everywhere(patch: Patch, name: str, fault: Any) -> None:
    """In all modules of the lens that have the name."""
    for module in MODULES:
        if hasattr(module, name):
            patch.setattr(module, name, fault)


def stage_changed(change: Callable[[shapes.Stage], dict[str, Any]]) -> Fault:
    def plant(patch: Patch, loaded: Checkpoint) -> None:
        right = shapes._stages
        changed = lambda *given: (dataclasses.replace(each, **change(each)) for each in right(*given))  # noqa: E731
        patch.setattr(shapes, "_stages", changed)

    return plant


shapes_turned = stage_changed(lambda stage: {"shape": stage.shape[::-1]})
parameters_forgotten = stage_changed(lambda stage: {"parameters": stage.parameters * (stage.name != "h.mlp.c_proj")})
flops_halved = stage_changed(lambda stage: {"flops": stage.flops // 2})


def token_bytes_swapped(patch: Patch, loaded: Checkpoint) -> None:
    """The table has the bytes of `a` for `t`, and the other way round."""
    swap = {b"a": b"t", b"t": b"a"}
    patch.setattr(loaded.tokenizer, "token_bytes", [swap.get(each, each) for each in loaded.tokenizer.token_bytes])


def token_bytes_strange(patch: Patch, loaded: Checkpoint) -> None:
    """The table has bytes that the tokenizer doesn't know."""
    patch.setattr(loaded.tokenizer, "token_bytes", [b"\xe2\x82\xac", *loaded.tokenizer.token_bytes[1:]])


def bytes_of_another_token(patch: Patch, loaded: Checkpoint) -> None:
    right = tokens.make_token
    everywhere(
        patch, "make_token", lambda known, id: dataclasses.replace(right(known, id), bytes=right(known, 0).bytes)
    )


def characters_cut(patch: Patch, loaded: Checkpoint) -> None:
    """Every token is a group by itself, be it half a character."""

    def grouped(tokenizer: Any, ids: Sequence[int]) -> list[tokens.Group]:
        return [tokens.Group(tokenizer.decode([id]), at, 1) for at, id in enumerate(ids)]

    patch.setattr(tokens, "group_by_character", grouped)


def rows_of_any_length(patch: Patch, loaded: Checkpoint) -> None:
    everywhere(patch, "unit_rows", lambda rows: rows.astype(np.float64))


def pattern_of(power: float = 0.5, offset: int = 1, hidden: float = -math.inf, over: int = -1) -> Fault:
    """A pattern scaled, masked or normalised in another way."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        def pattern(q: Tensor, k: Tensor) -> Tensor:
            scores = q @ k.mT / q.size(-1) ** power
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(offset)
            return scores.masked_fill(future, hidden).softmax(over)

        everywhere(patch, "attention_pattern", pattern)

    return plant


def frozen_scale(patch: Patch, loaded: Checkpoint) -> None:
    """Every row of the lens is divided by the last one's deviation."""
    found: list[Tensor] = []

    def stage_logits(model: GPT, x: Tensor) -> Tensor:
        if not found:  # the first row is the embedding's
            *_, last = capture.walk(model, x)
            found.append(last.after.std(-1, correction=0, keepdim=True))
        norm = model.transformer.ln_f
        centred = (x - x.mean(-1, keepdim=True)) / found[0]
        return model.unembed(centred * norm.weight + (0 if norm.bias is None else norm.bias))

    everywhere(patch, "stage_logits", stage_logits)


def lens_without_norm(patch: Patch, loaded: Checkpoint) -> None:
    everywhere(patch, "stage_logits", lambda model, x: model.unembed(x))


def residual_without(name: str) -> Fault:
    """What a part wrote is forgotten."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        right = contributions.residual_contributions

        def wrote(*given: Any) -> tuple[list[contributions.Part], Tensor]:
            found, written = right(*given)
            kept = [n for n, each in enumerate(found) if each.name != name]
            return [found[n] for n in kept], written[kept]

        everywhere(patch, "residual_contributions", wrote)

    return plant


def residual_not_centred(patch: Patch, loaded: Checkpoint) -> None:
    def through_norm(model: GPT, written: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        norm = model.transformer.ln_f
        scale = torch.sqrt(written.sum(0).var(correction=0) + norm.eps)
        return (written / scale * norm.weight.double()) @ direction, norm.bias.double() @ direction

    everywhere(patch, "logit_contributions", through_norm)


def residual_without_the_norms_bias(patch: Patch, loaded: Checkpoint) -> None:
    right = contributions.logit_contributions
    everywhere(patch, "logit_contributions", lambda *given: (right(*given)[0], torch.zeros((), dtype=torch.float64)))


def windows_drop_a_token(patch: Patch, loaded: Checkpoint) -> None:
    patch.setattr(
        surprisal, "sequence_batches", lambda *given: (each[:, :-1] for each in loss.sequence_batches(*given))
    )


def score_in_bits(patch: Patch, loaded: Checkpoint) -> None:
    right = surprisal.token_surprisals

    def scored(*given: Any) -> tuple[np.ndarray, ...]:
        nats, *others = right(*given)
        return nats / math.log(2), *others

    everywhere(patch, "token_surprisals", scored)


def another_head_zeroed(patch: Patch, loaded: Checkpoint) -> None:
    right = ablation.logits_without
    everywhere(
        patch,
        "logits_without",
        lambda model, step, layer, kept, mlp: right(model, step, layer, kept.roll(1, 1), mlp),
    )


def another_head_named(patch: Patch, loaded: Checkpoint) -> None:
    """The view names one head and leaves out another."""
    right = ablation.without

    def without(*given: Any) -> tuple[list[contributions.Part], Tensor, Tensor]:
        found, kept, mlp = right(*given)
        return found, kept.roll(1, 1), mlp

    everywhere(patch, "without", without)


def nothing_after_the_layer(patch: Patch, loaded: Checkpoint) -> None:
    """`ablate` leaves out the layers behind, too."""

    def rest_without(model: GPT, step: capture.Layer, layer: int, kept: Tensor, mlp: Tensor) -> Tensor:
        x = step.before + step.block.attn.output(step.gathered * kept[:, :, None, None])
        return model.unembed(model.norm(x + step.block.mlp(step.block.ln_2(x)) * mlp[:, None, None]))

    everywhere(patch, "logits_without", rest_without)


def returning(name: str, change: Callable[[Any], Any]) -> Fault:
    """A function of the lens that returns something else."""

    def plant(patch: Patch, loaded: Checkpoint) -> None:
        home = next(module for module in (logit_lens, surprisal, attention) if hasattr(module, name))
        right = getattr(home, name)
        everywhere(patch, name, lambda *given, **named: change(right(*given, **named)))

    return plant


least_likely_first = returning("top_tokens", lambda found: tuple(each.flip(-1) for each in found))
rank_from_zero = returning("token_surprisals", lambda found: (found[0], found[1] - 1, found[2]))
habits_in_bits = returning(
    "head_statistics", lambda head: dataclasses.replace(head, entropy=head.entropy / math.log(2))
)


SHAPES, PARAMETERS = "shapes: as the settings say", "shapes: all parameters"
TOKENS = "tokens: their bytes are the text's"
SUM, DIFFERENCE = "position: x = wte + wpe", "position: difference of sums"
COSINES = "neighbors: cosines one by one"
ROWS, FUTURE = "attention: rows sum to 1", "attention: nothing from the future"
FIRST, FUSED = "attention: the first sees itself", "attention: shown = fused"
HEAD, STREAM, LOGITS = "head is wte", "float64: the stream after every layer", "float64: logits"
LAST_ROW, EVERY_ROW = "logit_lens: the last row is the model's", "logit_lens: every row, in float64"
WRITTEN, LOGIT = "contributions: parts sum to the stream", "contributions: parts sum to the logit"
MEAN, CHANCE = "surprisal: its mean is the loss", "surprisal: without a head, ln V"
NOTHING, A_HEAD = "ablation: nothing changes nothing", "ablation: a head, in float64"
CAUSALITY = "causality: later tokens change nothing"
ALONE, HEAD_ALONE = "float64: every layer by itself", "float64: the head by itself"
FLOPS, HABITS = "shapes: all FLOPs", "attention: habits, one by one"
GUESSES, RANKS = "logit_lens: guesses, entropy, surprisal, rank", "surprisal: ranks, one by one"
EVERY_TOKEN = "surprisal: a surprisal for every token"
CACHE, ENGINE = "cache: token by token = at once", "engine: token by token = at once"

MODEL = [STREAM, LOGITS, EVERY_ROW, A_HEAD, ENGINE]  # what a model that computes something else fails at
FAULTS: dict[str, tuple[Fault, list[str]]] = {
    "no mask": (no_mask, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask one ahead": (mask_one_ahead, [CAUSALITY, FUSED, CACHE, *MODEL]),
    "mask for whole texts only": (mask_for_whole_texts_only, [CACHE]),
    "scores divided by D": (scores_divided_by(1), [FUSED, *MODEL]),
    "scores not divided": (scores_divided_by(0), [FUSED, *MODEL]),
    "heads reversed": (heads_reversed, [WRITTEN, *MODEL]),
    "heads not turned": (heads_not_turned, [WRITTEN, CAUSALITY, *MODEL]),
    "heads before q, k, v": (heads_before_qkv, MODEL),
    "stale cache": (extending(never_writes), [CACHE]),
    "cache one late": (extending(writes_one_late), [CACHE]),
    "cache without values": (extending(forgets_values), [CACHE]),
    "cache of no numbers": (extending(is_not_cleared), [CACHE]),
    "cached positions from 0": (cached_positions_from_zero, [CACHE]),
    "positions shifted": (positions_shifted, [SUM, DIFFERENCE, WRITTEN, *MODEL]),
    "untied head": (untied_head, [HEAD, PARAMETERS, LOGITS, EVERY_ROW]),
    "other epsilon": (other_epsilon, MODEL),
    "no GELU": (no_gelu, MODEL),
    "ln_1 left out": (left_out("ln_1"), MODEL),
    "ln_2 left out": (left_out("ln_2"), MODEL),
    "ln_f left out": (left_out("ln_f"), [LOGIT, HEAD_ALONE, LOGITS, EVERY_ROW, ENGINE]),
    "norms behind": (norms_behind, [FUSED, LAST_ROW, NOTHING, LOGITS, ENGINE]),
    "one weight changed": (one_weight_changed, [STREAM, LOGITS, EVERY_ROW]),
    "engine one position back": (engine_one_position_back, [ENGINE]),
    "shapes turned": (shapes_turned, [SHAPES]),
    "parameters forgotten": (parameters_forgotten, [PARAMETERS]),
    "token bytes swapped": (token_bytes_swapped, [TOKENS]),
    "bytes of another token": (bytes_of_another_token, [TOKENS]),
    "characters cut": (characters_cut, [TOKENS]),
    "rows of any length": (rows_of_any_length, [COSINES]),
    "pattern over queries": (pattern_of(over=-2), [ROWS, FUSED]),
    "pattern one ahead": (pattern_of(offset=2), [FUTURE, FIRST, FUSED]),
    "pattern hidden by 0": (pattern_of(hidden=0), [FUTURE, FIRST, FUSED]),
    "pattern divided by D": (pattern_of(power=1), [FUSED]),
    "frozen scale": (frozen_scale, [EVERY_ROW]),
    "lens without norm": (lens_without_norm, [LAST_ROW, EVERY_ROW]),
    "residual without attention's bias": (residual_without("attention's bias"), [WRITTEN, LOGIT]),
    "residual without wpe": (residual_without("wpe"), [WRITTEN, LOGIT]),
    "residual without MLPs": (residual_without("MLP"), [WRITTEN, LOGIT]),
    "residual not centred": (residual_not_centred, [LOGIT]),
    "residual without the norm's bias": (residual_without_the_norms_bias, [LOGIT]),
    "windows drop a token": (windows_drop_a_token, [EVERY_TOKEN]),
    "score in bits": (score_in_bits, [MEAN, CHANCE]),
    "another head zeroed": (another_head_zeroed, [A_HEAD]),
    "nothing after the layer": (nothing_after_the_layer, [NOTHING, A_HEAD]),
    "FLOPs halved": (flops_halved, [FLOPS]),
    "engine of one slot": (engine_of_one_slot, [ENGINE]),
    "another head named": (another_head_named, [A_HEAD]),
    "pattern of no numbers": (pattern_of(offset=0), [ROWS, FUTURE, FIRST, FUSED]),
    "least likely first": (least_likely_first, [GUESSES]),
    "rank from 0": (rank_from_zero, [RANKS]),
    "habits in bits": (habits_in_bits, [HABITS]),
}
ELSEWHERE: dict[str, tuple[str, Fault, str]] = {  # faults that show on another model
    "other GELU, weights near 0": ("narrow", other_gelu, ALONE),
    "characters of a model of bytes cut": ("byte", characters_cut, TOKENS),
    "strange bytes of characters": ("other", token_bytes_strange, "tokens"),  # it ends in an error
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_and_named(places: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(wrong(places, "random", plant))


@pytest.mark.parametrize(
    "fault",
    [
        "no mask", "mask one ahead", "scores divided by D", "scores not divided", "heads reversed", "stale cache",
        "cache one late", "positions shifted", "untied head", "other epsilon", "ln_1 left out", "one weight changed",
        "engine one position back", "pattern over queries", "frozen scale", "residual without attention's bias",
        "windows drop a token", "another head zeroed",
    ],
)  # fmt: skip
def test_a_fault_planted_in_a_trained_model_is_caught_and_named(places: dict[str, Path], fault: str) -> None:
    plant, expected = FAULTS[fault]
    assert set(expected) <= set(wrong(places, "trained", plant))


@pytest.mark.parametrize("place", ["random", "other", "byte", "narrow", "trained"])
def test_without_a_fault_every_check_holds(places: dict[str, Path], place: str) -> None:
    assert wrong(places, place, lambda *_: None) == []


def test_every_check_is_proven_by_a_fault_that_it_catches(places: dict[str, Path]) -> None:
    proven = {name for _, expected in FAULTS.values() for name in expected} | {ALONE}
    assert {each.name for each in lens.verify(places["random"]).checks} == proven


@pytest.mark.parametrize("place", ["random", "other"])
def test_either_gelu_in_the_place_of_the_other_is_caught(places: dict[str, Path], place: str) -> None:
    assert set(wrong(places, place, other_gelu)) >= {STREAM, LOGITS, ENGINE}


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_a_fault_that_only_another_model_shows_is_caught_and_named(places: dict[str, Path], fault: str) -> None:
    place, plant, expected = ELSEWHERE[fault]
    assert any(name.startswith(expected) for name in wrong(places, place, plant))


def test_an_error_that_is_no_number_is_wrong_and_is_json(places: dict[str, Path], monkeypatch: Patch) -> None:
    extending(is_not_cleared)(monkeypatch, runs.load(places["random"]))
    seen = lens.verify(places["random"])
    assert not seen.ok
    json.dumps(seen.plain(), allow_nan=False)
