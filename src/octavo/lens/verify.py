"""Every identity of the lens, asserted on one's own checkpoint, with the largest error that was found.

Two kinds of check stand here. What a view shows is held against what the model computes. And the model is held against
`octavo.lens.reference`, which recomputes it in float64 from the files alone: a lens made of the model's own steps would
repeat the model's own mistakes.

The axis letters: `T` positions, `C` width, `V` the vocabulary.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from octavo import estimate
from octavo.checkpoint import Checkpoint
from octavo.errors import OctavoError
from octavo.generation.decoder import decoder
from octavo.lens import reference
from octavo.lens.ablation import logits_without, without
from octavo.lens.attention import Head, head_statistics
from octavo.lens.capture import attention_pattern, explicit_attention, finite, inference, logits, walk
from octavo.lens.contributions import logit_contributions, residual_contributions
from octavo.lens.embedding import cosines
from octavo.lens.logit_lens import stage_logits, summarize_rows
from octavo.lens.shapes import shapes
from octavo.lens.surprisal import token_surprisals
from octavo.lens.tokens import RUN, describe_model, load_checkpoint, tokenize
from octavo.lens.view import Table, View
from octavo.loss import split_loss
from octavo.model import GPT, KVCache

_LONGEST = 128  # tokens
_MARGIN = 1e-4  # of float32's logits against others'
Found = Iterator[tuple[str, float, float]]  # what was looked at, how far it is off, how far it may be


@dataclass(frozen=True)
class Check:
    """An identity: how far off it is at most, how far it may be."""

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

    def plain(self) -> dict[str, Any]:
        values = super().plain()
        for each in values["checks"]:  # JSON has no NaN
            each["error"], each["tolerance"] = (
                n if math.isfinite(n) else None for n in (each["error"], each["tolerance"])
            )
        return values

    def tables(self) -> list[Table]:
        rows = [
            (each.name, f"{each.error:.2g}", f"{each.tolerance:g}", "ok" if each.ok else "WRONG")
            for each in self.checks
        ]
        wrong = [each.name for each in self.checks if not each.ok]
        verdict = f"wrong: {', '.join(wrong)}" if wrong else f"all {len(rows)} checks hold"
        return [Table(f"{self.model}: {verdict}", ("check", "largest error", "may be", ""), rows)]


def verify(run: RUN, *, seed: int = 0) -> Verification:
    """Hold every view, the cache, the engine and the causal mask against one another and against float64.

    On random ids, as many as the block has and at most 128. Errors of logits are relative to the largest of them, where
    that is above 1, and may be 1e-4, or what float32's rounding amounts to in a model that makes much of little: 100
    times what rounding every norm and sum does. Layers by themselves are held against float64 in float64. An error that
    is no number is not below any tolerance, and a check that can't be made is wrong.
    """
    loaded = load_checkpoint(run)
    model, weights = loaded.model, reference.Files(loaded.folder)
    T = min(_LONGEST, model.settings.block_size)
    idx = torch.randint(model.settings.vocab_size, (1, T), generator=torch.Generator().manual_seed(seed))
    with inference(model):
        finite(model(idx))
        streams = reference.streams(weights, idx[0].numpy())
        rounded = reference.logits(weights, reference.streams(weights, idx[0].numpy(), rounded=True)[-1])
        rounding = _apart(torch.from_numpy(rounded), torch.from_numpy(reference.logits(weights, streams[-1])))
        margin = max(_MARGIN, 100 * rounding)
        groups = (
            _shapes(model),
            _tokens(loaded),
            _position(loaded),
            _neighbors(model, int(idx[0, 0])),
            _attention(model, idx, margin),
            _exact(model, idx, weights, streams, margin),
            _lens(loaded, idx, weights, streams, margin),
            _residual(model, idx),
            _score(loaded, idx),
            _ablate(model, idx, weights, margin),
            _causality(model, idx),
            _cache(model, idx, margin),
        )
        found = [each for group in groups for each in _made(group)]
    checks = [Check(name, float(error), tolerance, bool(error <= tolerance)) for name, error, tolerance in found]
    return Verification(describe_model(model.settings), all(check.ok for check in checks), checks)


def _made(group: Found) -> Found:
    """The checks of a group, as far as they go: one that ends in an error is wrong under the group's name."""
    name = getattr(group, "__name__", "check").strip("_")
    try:
        yield from group
    except OctavoError as error:
        yield f"{name}: {error.message}", math.inf, 0
    except (ValueError, IndexError, RuntimeError) as error:
        yield f"{name}: {error}", math.inf, 0


def _shapes(model: GPT) -> Found:
    settings = model.settings
    T = settings.block_size
    axes = {
        "B": 1,
        "T": T,
        "C": settings.n_embd,
        "4C": 4 * settings.n_embd,
        "H": settings.n_head,
        "D": settings.head_size,
        "V": settings.vocab_size,
    }
    seen = shapes(settings)
    wrong = [each for each in seen.stages if each.shape != tuple(axes[letter] for letter in each.axes.split())]
    yield "shapes: as the settings say", len(wrong), 0
    held = sum(parameter.numel() for parameter in model.parameters())  # a tied one is given once
    yield "shapes: all parameters", abs(seen.parameters - held) + abs(estimate.parameters(settings) - held), 0
    matrices = settings.n_layer * 12 * settings.n_embd**2 + settings.vocab_size * settings.n_embd
    squares = settings.n_layer * 2 * T * settings.n_embd
    yield "shapes: all FLOPs", abs(seen.flops - 2 * T * (matrices + squares)), 0


def _tokens(loaded: Checkpoint) -> Found:
    known = loaded.tokenizer
    text = "".join(piece.decode(errors="ignore") for piece in known.token_bytes[:4096])
    if known.kind != "char":
        text += "é किताब 🦉"  # of which some tokens are a part of a character
    reading = tokenize(loaded, text, limit=None)
    pieces = [bytes.fromhex(token.bytes) for token in reading.tokens]
    whole = all(
        b"".join(pieces[group.first : group.first + group.count]) == group.text.encode() for group in reading.groups
    )
    counted = [at for group in reading.groups for at in range(group.first, group.first + group.count)]
    wrong = (b"".join(pieces) != text.encode()) + (not whole) + (counted != list(range(len(pieces))))
    yield "tokens: their bytes are the text's", wrong, 0


def _position(loaded: Checkpoint) -> Found:
    model = loaded.model
    wte, wpe = model.transformer.wte.weight, model.transformer.wpe.weight
    block_size, id = model.settings.block_size, loaded.tokenizer.vocab_size - 1
    x = torch.cat([model.embed(torch.tensor([[id]]), t)[0] for t in range(block_size)])  # (T, C)
    yield "position: x = wte + wpe", _apart(x, wte[id] + wpe), 0
    ends = (0, block_size - 1)
    size = max(1.0, x.abs().max().item())
    yield "position: difference of sums", _most((x[ends[0]] - x[ends[1]]) - (wpe[ends[0]] - wpe[ends[1]])) / size, 1e-6


def _neighbors(model: GPT, id: int) -> Found:
    wte = model.transformer.wte.weight.numpy()
    row = wte[id].tolist()
    length = math.sqrt(math.fsum(each * each for each in row))
    some = np.unique(np.linspace(0, len(wte) - 1, 64).astype(int))
    plain = []
    for other in wte[some].tolist():
        size = math.sqrt(math.fsum(each * each for each in other))
        plain.append(math.fsum(a * b for a, b in zip(row, other, strict=True)) / max(length * size, 1e-300))
    yield "neighbors: cosines one by one", float(np.abs(cosines(wte, [id])[some] - plain).max()), 1e-6


def _attention(model: GPT, idx: Tensor, margin: float) -> Found:
    sums, future, first, habits = [0.0], [0.0], [0.0], [0.0]
    for i, layer in enumerate(walk(model, model.embed(idx))):
        for h in range(model.settings.n_head):
            weights = attention_pattern(layer.q[0, h], layer.k[0, h])
            sums.append(_most(weights.sum(-1) - 1))
            future.append(_most(weights.triu(1)))
            first.append(_most(weights[0] - torch.eye(len(weights))[0]))
            if len(weights) > 1 and h == i % model.settings.n_head:
                habits.append(_habits_apart(head_statistics(i, h, weights), weights.double().numpy()))
    yield "attention: rows sum to 1", _worst(sums), 1e-5
    yield "attention: nothing from the future", _worst(future), 0
    yield "attention: the first sees itself", _worst(first), 0
    yield "attention: habits, one by one", _worst(habits), 1e-4
    yield "attention: shown = fused", _apart(logits(model, idx, explicit_attention), model(idx)), margin


def _habits_apart(seen: Head, weights: np.ndarray) -> float:
    """How far a head's habits are from those that are counted row by row."""
    plain = np.zeros(5)
    for t, row in enumerate(weights[1:], 1):
        some = row[row > 0]
        plain += [-(some * np.log(some)).sum(), (row * (t - np.arange(len(row)))).sum(), row[t - 1], row[0], row[t]]
    ours = [seen.entropy, seen.distance, seen.previous, seen.first, seen.itself]
    return float(np.abs(np.array(ours) - plain / (len(weights) - 1)).max() / max(1.0, plain.max() / (len(weights) - 1)))


def _exact(model: GPT, idx: Tensor, weights: reference.Files, streams: list[np.ndarray], margin: float) -> Found:
    yield "head is wte", _most(model.lm_head.weight - model.transformer.wte.weight), 0
    alone = [_layer_apart(*each) for each in zip(model.transformer.h, streams[:-1], streams[1:], strict=True)]
    yield "float64: every layer by itself", _worst(alone), 1e-9
    last = torch.from_numpy(streams[-1])
    read_off = model.unembed(model.norm(last.float()))
    yield (
        "float64: the head by itself",
        _apart(read_off, torch.from_numpy(reference.logits(weights, streams[-1]))),
        1e-5,
    )
    x = model.embed(idx)
    seen = [x[0], *(layer.after[0] for layer in walk(model, x))]
    errors = [_apart(ours, theirs) for ours, theirs in zip(seen, map(torch.from_numpy, streams), strict=True)]
    yield "float64: the stream after every layer", _worst(errors), margin
    yield "float64: logits", _apart(model(idx)[0], torch.from_numpy(reference.logits(weights, streams[-1]))), margin


def _layer_apart(block: nn.Module, before: np.ndarray, after: np.ndarray) -> float:
    """How far a block in float64 is from the plain one, where both are given the same: relative to what is written.

    Nothing adds up from layer to layer here, neither rounding that would look like a mistake nor what would hide one.
    """
    ours = copy.deepcopy(block).double()(torch.from_numpy(before)[None])[0]
    written = torch.from_numpy(after - before)
    return _most(ours - torch.from_numpy(after)) / max(_most(written), 1e-30)


def _lens(loaded: Checkpoint, idx: Tensor, weights: reference.Files, streams: list[np.ndarray], margin: float) -> Found:
    model = loaded.model
    x = model.embed(idx)
    seen = [stage_logits(model, x)[:, -4:].clone()]
    for layer in walk(model, x):
        seen.append(stage_logits(model, layer.after)[:, -4:].clone())  # not (layers, T, V)
        last = layer.after
    yield "logit_lens: the last row is the model's", _most(stage_logits(model, last) - model(idx)), 0
    theirs = [torch.from_numpy(reference.logits(weights, stream[-4:])) for stream in streams]
    errors = [_apart(a[0], b) for a, b in zip(seen, theirs, strict=True)]
    yield "logit_lens: every row, in float64", _worst(errors), margin
    guesses = [_guesses_apart(a[0], idx[0, -4:]) for a in seen]
    yield "logit_lens: guesses, entropy, surprisal, rank", _worst(guesses), 1e-4


def _guesses_apart(logits: Tensor, came: Tensor) -> float:
    """How far what the lens says of logits (P, V) is from what sorting them and a softmax in float64 say."""
    ids, probabilities, entropy, surprisal, rank = summarize_rows(logits.clone(), came, 5)
    shares = logits.double().softmax(-1)
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    mine = logits.gather(1, came[:, None])
    wrong = (ids != order[:, : ids.shape[1]]).sum() + (rank != 1 + (logits > mine).sum(1)).sum()
    return _worst(
        [
            float(wrong),
            _most(probabilities - shares.gather(1, ids)),
            _apart(entropy, torch.special.entr(shares).sum(-1)),
            _apart(surprisal, -logits.double().log_softmax(-1).gather(1, came[:, None])[:, 0]),
        ]
    )


def _residual(model: GPT, idx: Tensor) -> Found:
    stream, logit = [0.0], [0.0]
    answer = model(idx)[0]
    *_, last = walk(model, model.embed(idx))
    for t in {0, idx.size(1) // 2, idx.size(1) - 1}:
        _, written = residual_contributions(model, idx, t)
        size = max(last.after[0, t].norm().item(), 1e-30)
        stream.append((written.sum(0) - last.after[0, t]).norm().item() / size)
        id = int(answer[t].argmax())
        share, rest = logit_contributions(model, written, model.lm_head.weight[id].double())
        logit.append(_apart(share.sum() + rest, answer[t, id]))
    yield "contributions: parts sum to the stream", _worst(stream), 1e-5
    yield "contributions: parts sum to the logit", _worst(logit), _MARGIN


def _score(loaded: Checkpoint, idx: Tensor) -> Found:
    """Over two windows and a token more, so that borders between them are seen."""
    model = loaded.model
    block_size = model.settings.block_size
    ids = idx[0].repeat(2 * block_size // idx.size(1) + 2)[: min(2 * block_size, 4 * _LONGEST) + 2].numpy()
    surprisal, rank, _ = token_surprisals(model, ids)
    loss = split_loss(model, ids, block_size)
    yield "surprisal: a surprisal for every token", abs(len(surprisal) - (len(ids) - 1)), 0
    yield "surprisal: its mean is the loss", abs(surprisal.mean() - loss) / max(1.0, loss), 1e-6
    first = model(torch.from_numpy(ids[None, :block_size]))[0]
    came = torch.from_numpy(ids[1 : block_size + 1])[:, None]
    plain = 1 + (first > first.gather(1, came)).sum(1)
    yield "surprisal: ranks, one by one", float(np.abs(rank[:block_size] - plain.numpy()).max()), 0
    blind = copy.copy(model)
    blind._modules = dict(model._modules)
    blind.lm_head = nn.Linear(model.settings.n_embd, model.settings.vocab_size, bias=False)
    nn.init.zeros_(blind.lm_head.weight)
    chance = math.log(model.settings.vocab_size)
    yield "surprisal: without a head, ln V", abs(token_surprisals(blind, ids)[0].mean() - chance), 1e-6


def _ablate(model: GPT, idx: Tensor, weights: reference.Files, margin: float) -> Found:
    settings = model.settings
    whole, nothing = (torch.ones(1, settings.n_head), torch.ones(1)), [0.0]
    for i, layer in enumerate(walk(model, model.embed(idx))):
        nothing.append(_most(logits_without(model, layer, i, *whole) - model(idx)))
        if i == settings.n_layer // 2:
            named, kept, mlp = without(i, settings.n_head)
            n, head = next((n, part.head) for n, part in reversed(list(enumerate(named))) if part.head is not None)
            ours = logits_without(model, layer, i, kept[n : n + 1], mlp[n : n + 1])[0, -4:]
            streams = reference.streams(weights, idx[0].numpy(), zeroed=(i, head))
            theirs = torch.from_numpy(reference.logits(weights, streams[-1][-4:]))
    yield "ablation: nothing changes nothing", _worst(nothing), 0
    yield "ablation: a head, in float64", _apart(ours, theirs) if settings.n_head > 1 else 0.0, margin


def _causality(model: GPT, idx: Tensor) -> Found:
    """A later token changes no earlier answer."""
    before, errors = model(idx), [0.0]
    for t in {idx.size(1) // 2, idx.size(1) - 1} - {0}:
        changed = idx.clone()
        changed[0, t:] = (changed[0, t:] + 1) % model.settings.vocab_size
        errors.append(_apart(model(changed)[:, :t], before[:, :t]))
    yield "causality: later tokens change nothing", _worst(errors), 1e-6


def _cache(model: GPT, idx: Tensor, margin: float) -> Found:
    """A prompt, then token by token: by the model's own cache, and by what `sample` and `serve` run, beside another."""
    T, full = idx.size(1), model(idx)[0]
    start = T // 2
    pieces = [(a, b) for a, b in [(0, start), *((t, t + 1) for t in range(start, T))] if b > a]
    cache = KVCache(model)
    own = [model(idx[:, a:b], cache)[0] for a, b in pieces]
    yield "cache: token by token = at once", _apart(torch.cat(own), full), margin
    engine, other = decoder(model, 2)[0], (idx + 1) % model.settings.vocab_size
    errors = []
    for slot, both in enumerate((torch.cat([idx, other]), torch.cat([other, idx]))):
        theirs = [
            engine.forward(
                both[:, a:b].flatten().tolist(),
                [0] * (b - a) + [1] * (b - a),
                2 * list(range(a, b)),
                list(range(slot * (b - a), (slot + 1) * (b - a))),
            )
            for a, b in pieces
        ]
        errors.append(_apart(torch.cat(theirs), full))
    yield "engine: token by token = at once", _worst(errors), margin


def _worst(errors: list[float]) -> float:
    """The largest, or NaN if one is: `max` keeps what it saw before one."""
    return float(np.max(errors))


def _most(errors: Tensor) -> float:
    return errors.abs().max().item()


def _apart(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number where that is above 1."""
    return _most(ours.double() - theirs.double()) / max(1.0, _most(theirs))
