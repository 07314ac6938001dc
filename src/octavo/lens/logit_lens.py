"""The logit lens: what the model would say if it stopped after each layer (nostalgebraist, 2020).

Every layer's stream goes through `ln_f` afresh, its own mean and its own scale, and through the head. The last row is
then the model's own answer, to the bit.

The axis letters: `T` positions, `P` of them that are shown, `L` layers, `V` the vocabulary, `K` guesses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.lens.capture import finite, inference, walk
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, make_token, resolve_index, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT

_MOST = 50  # guesses for each position
_AT_ONCE = 1 << 22  # logits that are judged at a time: few enough for a cache, enough for two cores
_GROUP = 64  # tokens of the vocabulary that are first judged by their largest


@dataclass(frozen=True, eq=False)
class LogitLens(View):
    """Guesses after each of L + 1 stages, the embedding and every layer, at P positions.

    `ids` and `probabilities` (L + 1, P, K) are the likeliest tokens; `vocabulary` names them. `entropy` (L + 1, P) is
    in nats. `surprisal` and `rank` (L + 1, P) are those of the token that really came next, NaN and 0 where none did.
    """

    caveat: ClassVar[str] = (
        "The head was trained to read the last layer alone. Early rows show how the stream drifts towards it, "
        "not what an early layer believes."
    )

    tokens: list[Token]
    positions: list[int]
    ids: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray
    surprisal: np.ndarray
    rank: np.ndarray
    vocabulary: dict[int, str]
    left_out: int

    def tables(self) -> list[Table]:
        stages = ["embedding", *(f"after layer {i}" for i in range(len(self.ids) - 1))]
        rows = [
            (
                position,
                self.tokens[position].label,
                stage,
                "  ".join(
                    f"{self.vocabulary[int(id)]} {share:.2f}"
                    for id, share in zip(self.ids[i, p, :5], self.probabilities[i, p, :5], strict=True)
                ),
                int(self.rank[i, p]) or None,
            )
            for p, position in reversed(list(enumerate(self.positions)))
            for i, stage in enumerate(stages)
        ]
        return [
            Table(
                "what would come next, if the model stopped there",
                ("position", "token", "stage", "likeliest", "rank of what came"),
                rows,
            )
        ]

    def plain(self) -> dict[str, object]:
        values = super().plain()
        values["surprisal"] = [[None if x != x else x for x in row] for row in values["surprisal"]]  # JSON has no NaN
        return values


def logit_lens(
    run: RUN, text: TEXT = None, *, top: int = 5, positions: Sequence[int] | None = None, unknown: str = "error"
) -> LogitLens:
    """The `top` guesses after every layer at `positions`, all of the text if not said.

    Logits of one layer at a time are held, (T, V), never those of all.
    """
    loaded = load_checkpoint(run)
    reading = tokenize(loaded, text, unknown)
    model, T = loaded.model, len(reading.tokens)
    if not 1 <= top <= _MOST:
        raise OctavoError(f"top={top}: between 1 and {_MOST} guesses are shown", "--top 5")
    chosen = list(range(T)) if positions is None else [resolve_index(each, T, "position") for each in positions]
    following = torch.tensor([token.id for token in reading.tokens[1:]])
    parts: list[tuple[Tensor, ...]] = []
    with inference(model):
        x = model.embed(reading.ids)
        parts.append(_judged(model, x, following, chosen, top))
        for layer in walk(model, x):
            parts.append(_judged(model, layer.after, following, chosen, top))
    ids, probabilities, entropy, surprisal, rank = (torch.stack(each).numpy() for each in zip(*parts, strict=True))
    words = {int(id): make_token(loaded.tokenizer, int(id)).label for id in np.unique(ids)}
    return LogitLens(reading.tokens, chosen, ids, probabilities, entropy, surprisal, rank, words, reading.left_out)


def stage_logits(model: GPT, x: Tensor) -> Tensor:
    """Logits (B, T, V) from the stream after any layer: its own norm, then the head."""
    return model.unembed(model.norm(x))


def _judged(model: GPT, x: Tensor, following: Tensor, chosen: list[int], top: int) -> tuple[Tensor, ...]:
    """Of one stage: the likeliest ids and their probabilities (P, K); entropy, surprisal and rank of what came (P,)."""
    logits = stage_logits(model, x)[0]  # (T, V), all positions, so that the last stage has the model's bits
    came = torch.full((len(logits),), -1)
    came[: len(following)] = following
    if len(chosen) < len(logits):
        logits, came = logits[chosen], came[chosen]
    few = max(1, _AT_ONCE // logits.size(1))
    parts = [
        summarize_rows(rows, next, top)
        for rows, next in zip(torch.split(logits, few), torch.split(came, few), strict=True)
    ]
    whole = tuple(torch.cat(each) for each in zip(*parts, strict=True))
    finite(whole[2])  # an entropy is none where one of its logits isn't
    return whole


def summarize_rows(logits: Tensor, came: Tensor, top: int) -> tuple[Tensor, ...]:
    """The same of some rows of logits, which it changes; `came` is -1 where nothing did."""
    best, ids = top_tokens(logits, top)
    mine = logits.gather(1, came.clamp_min(0)[:, None])
    scratch = torch.empty_like(logits)
    above = torch.gt(logits, mine, out=scratch).sum(-1).long()  # as floats, whose sum is quick, and exact to 2^24
    rank = torch.where(came < 0, 0, 1 + above)
    most = best[:, :1].clone()
    mine, best = mine - most, best - most
    logits -= most
    odds = torch.exp(logits, out=scratch)
    total = odds.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(odds, logits) / total
    surprisal = torch.where(came < 0, torch.nan, total.log() - mine[:, 0])
    return ids, best.exp() / total[:, None], entropy, surprisal, rank


def top_tokens(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest of logits (P, V) and their ids, (P, K) each, largest first; of equals the lower id first.

    By groups: the `top` largest lie in the `top` groups with the largest maxima, so most of V is only read once.
    """
    P, V = logits.shape
    top = min(top, V)
    groups = V // _GROUP
    if groups > 2 * top:
        whole, rest = logits[:, : groups * _GROUP].view(P, groups, _GROUP), logits[:, groups * _GROUP :]
        # A stable sort and not topk: of groups with equal maxima the first has the lower ids.
        maxima = whole.amax(-1)  # (P, groups)
        least = maxima.topk(top).values[:, -1:]
        # Above the least comes first, then what equals it, each from the lowest id on: a number for each, no two alike.
        order = ((maxima >= least).float() + (maxima > least).float()) * groups - torch.arange(groups)
        where = order.topk(top).indices.sort().values  # (P, K)
        inside = whole.gather(1, where[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
        ids = (where[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)
        ids = torch.cat([ids, torch.arange(groups * _GROUP, V).expand(P, -1)], 1)
        values, at = torch.cat([inside, rest], 1).sort(dim=-1, descending=True, stable=True)
        return values[:, :top], ids.gather(1, at[:, :top])
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    return values[:, :top], ids[:, :top]
