"""The view `logit_lens`: what the model would predict if it stopped after each layer (nostalgebraist, 2020).

A stage is the residual stream after the embedding or after a layer. Each stage goes through the final norm, with its
own mean and scale, and through lm_head. The last stage is the model's own prediction, bit for bit.

The axis letters: `T` positions, `P` positions that are shown, `L` layers, `V` the vocabulary, `K` top tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo import runs
from octavo.errors import OctavoError
from octavo.lens.arguments import resolve_index
from octavo.lens.capture import inference, require_finite, run_blocks
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT
from octavo.runs import RunLike

_MAX_TOP = 50  # top tokens per position
_BATCH_LOGITS = 1 << 22  # per batch of rows: 16 MiB, which fits into a large CPU cache and keeps several cores busy
_GROUP = 64  # group size in `top_tokens`, which first takes the maximum of each 64 consecutive ids


@dataclass(frozen=True, eq=False)
class LogitLens(View):
    """Predictions of the next token at L + 1 stages, the embedding and every layer, at P positions.

    `ids` and `probabilities` (L + 1, P, K) are the most likely tokens; `vocabulary` has the labels of these ids.
    `entropy` (L + 1, P) is in nats. `surprisal` and `rank` (L + 1, P) are those of the actual next token; NaN and 0 at
    the last position.
    """

    caveat: ClassVar[str] = (
        "lm_head was trained to read only the last layer. Early stages show how the residual stream approaches the "
        "model's prediction, not what an early layer predicts."
    )
    nullable: ClassVar[tuple[str, ...]] = ("surprisal",)

    tokens: list[Token]
    positions: list[int]
    ids: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray
    surprisal: np.ndarray
    rank: np.ndarray
    vocabulary: dict[int, str]
    left_out: int  # how many tokens at the end of the text were truncated

    def tables(self) -> list[Table]:
        stages = ["embedding", *(f"after layer {i}" for i in range(len(self.ids) - 1))]
        rows = []
        for p in reversed(range(len(self.positions))):  # the last position first, because a terminal cuts long tables
            position = self.positions[p]
            for i, stage in enumerate(stages):
                best = zip(self.ids[i, p, :5], self.probabilities[i, p, :5], strict=True)
                predictions = "  ".join(f"{self.vocabulary[int(id)]} {probability:.2f}" for id, probability in best)
                rows.append((position, self.tokens[position].label, stage, predictions, int(self.rank[i, p]) or None))
        columns = ("position", "token", "stage", "most likely", "rank of the next token")
        return [Table("the next token, if the model stopped after each stage", columns, rows)]


def logit_lens(
    run: RunLike, text: Text = None, *, top: int = 5, positions: Sequence[int] | None = None, unknown: str = "error"
) -> LogitLens:
    """The `top` predictions after the embedding and every layer, at some `positions` or all.

    The logits (T, V) of one layer at a time are in memory, never those of all layers.
    """
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown)
    model, T = loaded.model, len(tokenized.tokens)
    if not 1 <= top <= _MAX_TOP:
        raise OctavoError(f"top={top}: between 1 and {_MAX_TOP} predictions are shown", "--top 5")
    chosen = list(range(T)) if positions is None else [resolve_index(each, T, "position") for each in positions]
    targets = torch.tensor([token.id for token in tokenized.tokens[1:]] + [-1])  # (T,)
    stages = []
    with inference(model):
        x = model.embed(tokenized.ids)  # (1, T, C)
        stages.append(_summarize(model, x, targets, chosen, top))
        for layer in run_blocks(model, x):
            stages.append(_summarize(model, layer.resid_post, targets, chosen, top))
    ids, probabilities, entropy, surprisal, rank = (torch.stack(each).numpy() for each in zip(*stages, strict=True))
    vocabulary = {int(id): make_token(loaded.tokenizer, int(id)).label for id in np.unique(ids)}
    return LogitLens(
        tokenized.tokens, chosen, ids, probabilities, entropy, surprisal, rank, vocabulary, tokenized.left_out
    )


def stage_logits(model: GPT, x: Tensor) -> Tensor:
    """The logits (B, T, V) from the residual stream after any layer: the final norm, then lm_head."""
    return model.unembed(model.norm(x))


def _summarize(model: GPT, x: Tensor, targets: Tensor, chosen: list[int], top: int) -> tuple[Tensor, ...]:
    """Apply `summarize_rows` to one stage at the chosen positions, one batch of rows at a time."""
    logits = stage_logits(model, x)[0]  # (T, V), all positions: a smaller matmul may round differently
    if len(chosen) < len(logits):
        logits, targets = logits[chosen], targets[chosen]
    rows = max(1, _BATCH_LOGITS // logits.size(1))
    batches = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    summaries = [summarize_rows(*batch, top) for batch in batches]
    ids, probabilities, entropy, surprisal, rank = (torch.cat(each) for each in zip(*summaries, strict=True))
    require_finite(entropy)  # an entropy is not finite if one of its logits is not
    return ids, probabilities, entropy, surprisal, rank


def summarize_rows(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, ...]:
    """Summarize logits (P, V): ids and probabilities (P, K) of the `top` tokens, entropy, surprisal and rank (P,).

    Surprisal and rank are those of the `targets` (P,), or NaN and 0 if the target is -1. Overwrites the logits.
    """
    top_logits, ids = top_tokens(logits, top)
    target_logits = logits.gather(1, targets.clamp_min(0)[:, None])
    scratch = torch.empty_like(logits)
    # A float output of the comparison makes the sum fast. Counts in float32 are exact up to 2^24.
    n_above = torch.gt(logits, target_logits, out=scratch).sum(-1).long()
    rank = torch.where(targets < 0, 0, 1 + n_above)
    maximum = top_logits[:, :1].clone()
    target_logits, top_logits = target_logits - maximum, top_logits - maximum
    logits -= maximum
    exponentials = torch.exp(logits, out=scratch)
    total = exponentials.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(exponentials, logits) / total
    surprisal = torch.where(targets < 0, torch.nan, total.log() - target_logits[:, 0])
    return ids, top_logits.exp() / total[:, None], entropy, surprisal, rank


def top_tokens(logits: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest of logits (P, V) and their ids, (P, K) each, in descending order; equal ones by ascending id.

    The `top` largest logits are in the `top` groups of ids with the largest maxima. So only these groups are sorted.
    The rest of the vocabulary is read once, to find the maxima.
    """
    P, V = logits.shape
    top = min(top, V)
    n_groups = V // _GROUP
    if n_groups <= 2 * top:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values[:, :top], ids[:, :top]
    grouped, rest = logits[:, : n_groups * _GROUP].view(P, n_groups, _GROUP), logits[:, n_groups * _GROUP :]
    # topk breaks ties arbitrarily, but of groups with equal maxima, the first must be selected: it has the lowest ids.
    maxima = grouped.amax(-1)  # (P, groups)
    threshold = maxima.topk(top).values[:, -1:]
    # Each group gets a distinct key, with n = n_groups: 2n - index above the threshold, n - index at it, -index below.
    sort_key = ((maxima >= threshold).float() + (maxima > threshold).float()) * n_groups - torch.arange(n_groups)
    selected = sort_key.topk(top).indices.sort().values  # (P, K)
    candidates = grouped.gather(1, selected[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    ids = (selected[:, :, None] * _GROUP + torch.arange(_GROUP)).flatten(1)
    ids = torch.cat([ids, torch.arange(n_groups * _GROUP, V).expand(P, -1)], 1)
    values, order = torch.cat([candidates, rest], 1).sort(dim=-1, descending=True, stable=True)
    return values[:, :top], ids.gather(1, order[:, :top])
