"""The view `verify`: check on your own checkpoint everything that the views rely on, and report the largest errors.

There are two kinds of checks. One compares what a view shows with what the model computes. The other compares the model
with `octavo.lens.reference`, which recomputes it in float64 from the files alone: a lens made of the model's own steps
would repeat the model's own mistakes.

The axis letters: `T` positions, `C` width, `V` the vocabulary.
"""

import copy
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from octavo import estimate, runs
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch
from octavo.interop import gpt2_folder
from octavo.lens import reference
from octavo.lens.ablation import logits_without, parts_and_masks
from octavo.lens.arguments import describe_model
from octavo.lens.attention import HeadStatistics, head_statistics
from octavo.lens.capture import attend_by_pattern, attention_pattern, inference, logits, require_finite, run_blocks
from octavo.lens.contributions import decompose_residual, logit_contributions
from octavo.lens.embedding import cosines
from octavo.lens.flow import flow
from octavo.lens.logit_lens import stage_logits, summarize_rows
from octavo.lens.shapes import shapes
from octavo.lens.surprisal import token_surprisals
from octavo.lens.tokens import tokenize
from octavo.lens.view import Table, View
from octavo.loss import split_loss
from octavo.model import GPT, KVCache
from octavo.progress import track
from octavo.runs import RunLike

_MAX_TOKENS = 128  # random ids
# The tolerance of float32 logits is the larger of two: `_MIN_TOLERANCE`, relative to the largest logit, and
# `_ROUNDING_FACTOR` times the error that `rounded=True` causes in the logits of the reference.
_MIN_TOLERANCE = 1e-4
_ROUNDING_FACTOR = 100
_LAST_POSITIONS = 4  # whose logits are compared at every stage
Measurements = Iterator[tuple[str, float, float]]  # the name of a check, the largest error, the tolerance


@dataclass(frozen=True)
class Check:
    """A check: the largest error, and the error that is tolerated. NaN and infinity are never tolerated."""

    nullable: ClassVar[tuple[str, ...]] = ("error", "tolerance")

    name: str
    error: float
    tolerance: float
    ok: bool


@dataclass(frozen=True, eq=False)
class Verification(View):
    """All checks of a checkpoint."""

    model: str
    ok: bool
    checks: list[Check]

    def tables(self) -> list[Table]:
        rows = [
            (check.name, f"{check.error:.2g}", f"{check.tolerance:g}", "ok" if check.ok else "WRONG")
            for check in self.checks
        ]
        wrong = [check.name for check in self.checks if not check.ok]
        verdict = f"wrong: {', '.join(wrong)}" if wrong else f"all {len(rows)} checks hold"
        return [Table(f"{self.model}: {verdict}", ("check", "largest error", "tolerance", ""), rows)]


def verify(run: RunLike, *, seed: int = 0) -> Verification:
    """Compare the views, the KV cache, the decoder and the causal mask with one another and with a float64 reference.

    The input is random token ids, up to 128. Errors of logits are relative to the largest logit if that is above 1. The
    tolerance is the larger of 1e-4 and 100 times the effect of float32 rounding in this model. Single blocks are
    compared in float64. A check that raises an exception fails.
    """
    loaded = runs.load(run)
    if not gpt2_folder.safetensors_files(loaded.folder):
        raise OctavoError(
            f"verify computes from model.safetensors, which {loaded.folder} does not have",
            f"octavo train SOURCE --init {loaded.folder} --max-steps 0, which makes a run of these weights",
        )
    model, weights = loaded.model, reference.Weights(loaded.folder)
    T = min(_MAX_TOKENS, model.settings.block_size)
    idx = torch.randint(model.settings.vocab_size, (1, T), generator=torch.Generator().manual_seed(seed))
    with inference(model):
        require_finite(model(idx))
        streams = reference.streams(weights, idx[0].numpy())
        rounded = reference.logits(weights, reference.streams(weights, idx[0].numpy(), rounded=True)[-1])
        exact = reference.logits(weights, streams[-1])
        tolerance = max(
            _MIN_TOLERANCE, _ROUNDING_FACTOR * _relative_error(torch.from_numpy(rounded), torch.from_numpy(exact))
        )
        groups = {
            "shapes": _check_shapes(model),
            "tokens": _check_tokens(loaded),
            "position": _check_position(loaded),
            "neighbors": _check_neighbors(model, int(idx[0, 0])),
            "attention": _check_attention(model, idx, tolerance),
            "flow": _check_flow(loaded, idx, streams, tolerance),
            "reference": _check_layers(model, idx, weights, streams, tolerance),
            "logit_lens": _check_logit_lens(model, idx, weights, streams, tolerance),
            "contributions": _check_contributions(model, idx),
            "surprisal": _check_surprisal(model, idx, tolerance),
            "ablation": _check_ablation(model, idx, weights, tolerance),
            "causality": _check_causality(model, idx),
            "cache": _check_cache(model, idx, tolerance),
        }
        names = track(list(groups), "checking", "groups of checks")
        measurements = [each for name in names for each in _measure(name, groups[name])]
    checks = [Check(name, float(error), tolerance, bool(error <= tolerance)) for name, error, tolerance in measurements]
    return Verification(describe_model(model.settings), all(check.ok for check in checks), checks)


def _measure(name: str, group: Measurements) -> Measurements:
    """The measurements of a group; an exception ends the group with an infinite error under the group's name."""
    try:
        yield from group
    except OctavoError as error:
        yield f"{name}: {error.message}", math.inf, 0
    except (ValueError, IndexError, RuntimeError) as error:
        yield f"{name}: {error}", math.inf, 0


def _check_shapes(model: GPT) -> Measurements:
    settings = model.settings
    T, C = settings.block_size, settings.n_embd
    axes = {
        "B": 1,
        "T": T,
        "C": C,
        "4C": 4 * C,
        "H": settings.n_head,
        "D": settings.head_size,
        "V": settings.vocab_size,
    }
    view = shapes(settings)
    wrong = [stage for stage in view.stages if stage.shape != tuple(axes[letter] for letter in stage.axes.split())]
    yield "shapes: match the settings", len(wrong), 0
    count = sum(parameter.numel() for parameter in model.parameters())  # a tied parameter is listed once
    error = abs(view.parameters - count) + abs(estimate.parameters(settings) - count)
    yield "shapes: parameter count", error, 0
    # Multiply-adds per token: a layer has 4 C² weights in its attention and 8 C² in its MLP, lm_head has V C. Scores
    # and weighted values take T C each.
    n_weights = settings.n_layer * 12 * C**2 + settings.vocab_size * C
    attention = settings.n_layer * 2 * T * C
    yield "shapes: FLOP count", abs(view.flops - 2 * T * (n_weights + attention)), 0


def _check_tokens(loaded: Checkpoint) -> Measurements:
    tokenizer = loaded.tokenizer
    contents = [content for id, content in enumerate(tokenizer.token_bytes) if id not in tokenizer.special_ids]
    text = "".join(content.decode(errors="ignore") for content in contents[:4096])
    if tokenizer.kind != "char":
        text += "é किताब 🦉"  # in bytes, some of its tokens are only part of a character
    view = tokenize(loaded, text, limit=sys.maxsize)
    contents = [bytes.fromhex(token.bytes) for token in view.tokens]
    is_whole = all(
        b"".join(contents[group.first : group.first + group.count]) == group.text.encode() for group in view.groups
    )
    positions = [i for group in view.groups for i in range(group.first, group.first + group.count)]
    wrong = (b"".join(contents) != text.encode()) + (not is_whole) + (positions != list(range(len(contents))))
    yield "tokens: bytes equal the text", wrong, 0


def _check_position(loaded: Checkpoint) -> Measurements:
    model = loaded.model
    wte, wpe = model.transformer.wte.weight, model.transformer.wpe.weight
    block_size, id = model.settings.block_size, loaded.tokenizer.vocab_size - 1
    x = torch.cat([model.embed(torch.tensor([[id]]), t)[0] for t in range(block_size)])  # (T, C)
    yield "position: x = wte + wpe", _relative_error(x, wte[id] + wpe), 0
    first, last = 0, block_size - 1
    scale = max(1.0, _max_abs(x))
    error = _max_abs((x[first] - x[last]) - (wpe[first] - wpe[last])) / scale
    yield "position: differences of x and wpe are equal", error, 1e-6


def _check_neighbors(model: GPT, id: int) -> Measurements:
    wte = model.transformer.wte.weight.numpy()
    row = wte[id].tolist()
    norm = math.sqrt(math.fsum(x * x for x in row))
    others = np.unique(np.linspace(0, len(wte) - 1, 64).astype(int))
    exact = []
    for other in wte[others].tolist():
        other_norm = math.sqrt(math.fsum(x * x for x in other))
        exact.append(math.fsum(a * b for a, b in zip(row, other, strict=True)) / max(norm * other_norm, 1e-300))
    yield "neighbors: cosines = plain Python", float(np.abs(cosines(wte, [id])[others] - exact).max()), 1e-6


def _check_attention(model: GPT, idx: Tensor, tolerance: float) -> Measurements:
    sums, future, first, statistics = [0.0], [0.0], [0.0], [0.0]
    n_head = model.settings.n_head
    for i, layer in enumerate(run_blocks(model, model.embed(idx))):
        for h in range(n_head):
            weights = attention_pattern(layer.q[0, h], layer.k[0, h])  # (T, T)
            sums.append(_max_abs(weights.sum(-1) - 1))
            future.append(_max_abs(weights.triu(1)))
            first.append(_max_abs(weights[0] - torch.eye(len(weights))[0]))
            if len(weights) > 1 and h == i % n_head:  # one head per layer: this check is slow
                statistics.append(_statistics_error(head_statistics(i, h, weights), weights.double().numpy()))
    yield "attention: rows sum to 1", _nan_max(sums), 1e-5
    yield "attention: nothing from the future", _nan_max(future), 0
    yield "attention: position 0 attends to itself", _nan_max(first), 0
    yield "attention: statistics = a loop over rows", _nan_max(statistics), 1e-4
    by_pattern = logits(model, idx, attend_by_pattern)
    yield "attention: pattern = fused kernel", _relative_error(by_pattern, model(idx)), tolerance


def _statistics_error(head: HeadStatistics, weights: np.ndarray) -> float:
    """The error of a head's statistics against sums over the rows, one by one."""
    exact, distant = np.zeros(5), 0.0
    for t, row in enumerate(weights[1:], 1):
        positive = row[row > 0]
        entropy, distance = -(positive * np.log(positive)).sum(), (row * (t - np.arange(len(row)))).sum()
        exact += [entropy, distance, row[t - 1], row[0], row[t]]
        distant += max(row[1 : t - 1], default=0.0)
    exact = np.append(exact / (len(weights) - 1), distant / max(1, len(weights) - 3))
    shown = np.array([head.entropy, head.distance, head.previous, head.first, head.itself, head.distant])
    return float(np.abs(shown - exact).max() / max(1.0, exact.max()))


def _check_flow(loaded: Checkpoint, idx: Tensor, streams: list[np.ndarray], tolerance: float) -> Measurements:
    view = flow(loaded, idx[0].tolist())
    exact = torch.from_numpy(np.stack(streams)[:, view.first :][..., view.columns])  # (L + 1, T, D)
    yield (
        "flow: residual stream against the reference",
        _relative_error(torch.from_numpy(view.stream[::2]), exact),
        tolerance,
    )
    norms = np.sqrt((np.stack(streams)[:, view.first :] ** 2).sum(-1))
    yield (
        "flow: norms against the reference",
        _relative_error(torch.from_numpy(view.norms[::2]), torch.from_numpy(norms)),
        tolerance,
    )
    most_likely = loaded.model(idx)[0, view.first :].softmax(-1).amax(-1)
    error = _max_abs(torch.from_numpy(view.prediction_probabilities) - most_likely)
    yield "flow: probabilities of the predictions are those of the model", error, 1e-4


def _check_layers(
    model: GPT, idx: Tensor, weights: reference.Weights, streams: list[np.ndarray], tolerance: float
) -> Measurements:
    yield "model: lm_head is tied to wte", _max_abs(model.lm_head.weight - model.transformer.wte.weight), 0
    layers = zip(model.transformer.h, streams[:-1], streams[1:], strict=True)
    yield "reference: each block, on the reference's input", _nan_max([_layer_error(*layer) for layer in layers]), 1e-9
    exact = torch.from_numpy(reference.logits(weights, streams[-1]))
    actual = model.unembed(model.norm(torch.from_numpy(streams[-1]).float()))
    yield "reference: lm_head, on the reference's input", _relative_error(actual, exact), 1e-5
    x = model.embed(idx)
    stages = [x[0], *(layer.resid_post[0] for layer in run_blocks(model, x))]
    errors = [_relative_error(a, torch.from_numpy(b)) for a, b in zip(stages, streams, strict=True)]
    yield "reference: residual stream after every layer", _nan_max(errors), tolerance
    yield "reference: logits", _relative_error(model(idx)[0], exact), tolerance


def _layer_error(block: nn.Module, before: np.ndarray, after: np.ndarray) -> float:
    """The error of one block in float64 on the reference's input, relative to what the block adds.

    Every block starts from the reference, so rounding errors do not accumulate over the layers. Accumulated errors
    could look like a mistake, or hide one.
    """
    actual = copy.deepcopy(block).double()(torch.from_numpy(before)[None])[0]
    added = torch.from_numpy(after - before)
    return _max_abs(actual - torch.from_numpy(after)) / max(_max_abs(added), 1e-30)


def _check_logit_lens(
    model: GPT, idx: Tensor, weights: reference.Weights, streams: list[np.ndarray], tolerance: float
) -> Measurements:
    x = model.embed(idx)
    stages = [stage_logits(model, x)[0, -_LAST_POSITIONS:].clone()]
    for layer in run_blocks(model, x):
        # A copy, so that the logits (T, V) are freed.
        stages.append(stage_logits(model, layer.resid_post)[0, -_LAST_POSITIONS:].clone())
        last = layer.resid_post
    yield "logit_lens: the last stage equals the model", _max_abs(stage_logits(model, last) - model(idx)), 0
    exact = [torch.from_numpy(reference.logits(weights, stream[-_LAST_POSITIONS:])) for stream in streams]
    errors = [_relative_error(actual, expected) for actual, expected in zip(stages, exact, strict=True)]
    yield "logit_lens: every stage against the reference", _nan_max(errors), tolerance
    errors = [_summary_error(stage, idx[0, -_LAST_POSITIONS:]) for stage in stages]
    yield "logit_lens: top tokens, entropy, surprisal, rank", _nan_max(errors), 1e-4


def _summary_error(logits: Tensor, targets: Tensor) -> float:
    """The error of `summarize_rows` on logits (P, V) against a sort and a float64 softmax."""
    ids, probabilities, entropy, surprisal, rank = summarize_rows(logits.clone(), targets, 5)
    expected_probabilities = logits.double().softmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    target_logits = logits.gather(1, targets[:, None])
    n_wrong = (ids != order[:, : ids.shape[1]]).sum() + (rank != 1 + (logits > target_logits).sum(1)).sum()
    exact_surprisal = -logits.double().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return _nan_max(
        [
            float(n_wrong),
            _max_abs(probabilities - expected_probabilities.gather(1, ids)),
            _relative_error(entropy, torch.special.entr(expected_probabilities).sum(-1)),
            _relative_error(surprisal, exact_surprisal),
        ]
    )


def _check_contributions(model: GPT, idx: Tensor) -> Measurements:
    stream_errors, logit_errors = [0.0], [0.0]
    logits = model(idx)[0]
    *_, last = run_blocks(model, model.embed(idx))
    for t in {0, idx.size(1) // 2, idx.size(1) - 1}:
        _, added = decompose_residual(model, idx, t)
        norm = max(last.resid_post[0, t].norm().item(), 1e-30)
        stream_errors.append((added.sum(0) - last.resid_post[0, t]).norm().item() / norm)
        id = int(logits[t].argmax())
        part_logits, bias_logit = logit_contributions(model, added, model.lm_head.weight[id].double())
        logit_errors.append(_relative_error(part_logits.sum() + bias_logit, logits[t, id]))
    yield "contributions: parts sum to the residual stream", _nan_max(stream_errors), 1e-5
    yield "contributions: parts sum to the logit", _nan_max(logit_errors), _MIN_TOLERANCE


def _check_surprisal(model: GPT, idx: Tensor, tolerance: float) -> Measurements:
    """Check the surprisal of 2 `block_size` + 1 tokens, or of 513 if these are fewer.

    Up to a `block_size` of 256, these are two whole sequences and a third of one token, with the boundaries between.
    """
    block_size = model.settings.block_size
    length = min(2 * block_size, 4 * _MAX_TOKENS) + 2  # the first token of the text has no surprisal
    ids = idx[0].repeat(2 * block_size // idx.size(1) + 2)[:length].numpy()
    surprisal, rank, _ = token_surprisals(model, ids)
    loss = split_loss(model, ids, block_size)
    yield "surprisal: one for every token", abs(len(surprisal) - (len(ids) - 1)), 0
    # The loss may be computed in C. A hundredth of the tolerance is the effect of rounding, or 1e-6.
    yield "surprisal: its mean is the loss", abs(surprisal.mean() - loss) / max(1.0, loss), tolerance / 100
    first_logits = model(torch.from_numpy(ids[None, :block_size]))[0]
    targets = torch.from_numpy(ids[1 : block_size + 1])[:, None]
    exact_rank = 1 + (first_logits > first_logits.gather(1, targets)).sum(1)
    yield "surprisal: ranks, recounted", float(np.abs(rank[:block_size] - exact_rank.numpy()).max()), 0
    uniform = copy.copy(model)
    uniform._modules = dict(model._modules)
    uniform.lm_head = nn.Linear(model.settings.n_embd, model.settings.vocab_size, bias=False)
    nn.init.zeros_(uniform.lm_head.weight)
    expected = math.log(model.settings.vocab_size)
    yield "surprisal: is ln V if lm_head is zero", abs(token_surprisals(uniform, ids)[0].mean() - expected), 1e-6


def _check_ablation(model: GPT, idx: Tensor, weights: reference.Weights, tolerance: float) -> Measurements:
    n_layer, n_head = model.settings.n_layer, model.settings.n_head
    keep_all, errors = (torch.ones(1, n_head), torch.ones(1)), [0.0]
    for i, layer in enumerate(run_blocks(model, model.embed(idx))):
        errors.append(_max_abs(logits_without(model, layer, i, *keep_all) - model(idx)))
        if i == n_layer // 2:
            parts, head_masks, mlp_mask = parts_and_masks(i, n_head)
            n, head = [(n, part.head) for n, part in enumerate(parts) if part.head is not None][-1]  # the last head
            actual = logits_without(model, layer, i, head_masks[[n]], mlp_mask[[n]])[0, -_LAST_POSITIONS:]
            streams = reference.streams(weights, idx[0].numpy(), ablated=(i, head))
            exact = torch.from_numpy(reference.logits(weights, streams[-1][-_LAST_POSITIONS:]))
    yield "ablation: keeping all parts changes nothing", _nan_max(errors), 0
    # Ablating the only head of a layer also drops the bias of its attention, which the reference keeps.
    yield "ablation: a head against the reference", _relative_error(actual, exact) if n_head > 1 else 0.0, tolerance


def _check_causality(model: GPT, idx: Tensor) -> Measurements:
    before, errors = model(idx), [0.0]
    for t in {idx.size(1) // 2, idx.size(1) - 1} - {0}:
        changed = idx.clone()
        changed[0, t:] = (changed[0, t:] + 1) % model.settings.vocab_size
        errors.append(_relative_error(model(changed)[:, :t], before[:, :t]))
    yield "causality: later tokens change nothing", _nan_max(errors), 1e-6


def _check_cache(model: GPT, idx: Tensor, tolerance: float) -> Measurements:
    """Compare a full forward pass with prefill and decode: with the model's KV cache, and with the engine's decoder.

    Each batch of the decoder also has the ids of another text, in its other slot, which must change nothing.
    """
    T, expected = idx.size(1), model(idx)[0]
    prompt = T // 2
    steps = [(start, end) for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, T))] if end > start]
    cache = KVCache(model)
    cached = [model(idx[:, start:end], cache)[0] for start, end in steps]
    yield "cache: prefill and decode = full forward", _relative_error(torch.cat(cached), expected), tolerance
    decoder, other = create_decoder(model, 2)[0], (idx + 1) % model.settings.vocab_size
    errors = []
    for slot, texts in enumerate((torch.cat([idx, other]), torch.cat([other, idx]))):
        decoded = []
        for start, end in steps:
            batch = Batch()
            for row, ids in enumerate(texts[:, start:end].tolist()):
                n_logits = len(ids) if row == slot else 0
                batch.add(ids, row, start, n_logits)
            decoded.append(decoder.forward(batch))
        errors.append(_relative_error(torch.cat(decoded), expected))
    yield "decoder: prefill and decode = full forward", _nan_max(errors), tolerance


def _nan_max(errors: list[float]) -> float:
    """The largest error, or NaN if one is NaN, which Python's `max` may lose."""
    return float(np.max(errors))


def _max_abs(errors: Tensor) -> float:
    return errors.abs().max().item()


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected number if that is above 1."""
    return _max_abs(actual.double() - expected.double()) / max(1.0, _max_abs(expected))
