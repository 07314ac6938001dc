"""The view `attention`: how each position of a text distributes its attention, head by head.

The axis letters: `T` positions, `H` heads.
"""

import html
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo import runs
from octavo.lens.arguments import resolve_index
from octavo.lens.capture import attention_pattern, inference, run_blocks
from octavo.lens.tokens import Text, Token, tokenize
from octavo.lens.view import Table, View, shaded
from octavo.runs import RunLike

_PICTURE_TOKENS = 64  # the longest text whose pattern a notebook shows
# The thresholds of a head's habit, see `HeadStatistics`
_MIN_MEAN_WEIGHT = 0.5  # for the habits `previous`, `first` and `itself`
_MIN_DISTANT_WEIGHT = 0.3  # for `distant`
_MIN_RELATIVE_ENTROPY = 0.85  # for `diffuse`: a fraction of the entropy of equal weights


@dataclass(frozen=True)
class HeadStatistics:
    """Statistics of a head over a text: means over all positions except the first, which can only attend to itself.

    `habit` names what the head mostly does: `previous`, `first` or `itself`, the largest of these if it is at least
    0.5; else `distant`, if that is at least 0.3; else `diffuse`, if the entropy is at least 85% of that of equal
    weights; else `mixed`.
    """

    layer: int
    head: int
    entropy: float  # nats; 0: all attention on one position
    distance: float  # mean distance in tokens, weighted by attention
    previous: float  # attention weight of the previous position
    first: float  # attention weight of the first position
    itself: float  # attention weight of the position itself
    distant: float  # largest attention weight of a position that is neither the first, nor the previous, nor itself
    habit: str


@dataclass(frozen=True, eq=False)
class Attention(View):
    """One head's pattern, and statistics of all heads. Row t of `weights` is how position t distributes attention."""

    caveat: ClassVar[str] = (
        "Attention shows where a head looks, not why, nor what it does with what it finds: for that, see `ablation` "
        "and `contributions`."
    )

    tokens: list[Token]
    layer: int
    head: int
    weights: np.ndarray  # (T, T)
    heads: list[HeadStatistics]
    left_out: int  # how many tokens at the end of the text were truncated

    def picture(self) -> str:
        """The pattern of a text of at most `_PICTURE_TOKENS` tokens, as an HTML table of shaded cells."""
        if len(self.tokens) > _PICTURE_TOKENS:
            return ""
        labels = [html.escape(token.label) for token in self.tokens]
        header = "".join(f"<th>{label}</th>" for label in labels)
        rows = "".join(
            f"<tr><th>{label}</th>"
            + "".join(shaded("", float(weight), float(weight), "td") for weight in row[: t + 1])
            + "</tr>"
            for t, (label, row) in enumerate(zip(labels, self.weights, strict=True))
        )
        return f"<table><tr><th></th>{header}</tr>{rows}</table>"

    def tables(self) -> list[Table]:
        labels = [token.label for token in self.tokens]
        rows = []
        for t, row in enumerate(self.weights):
            top = [s for s in np.argsort(-row, kind="stable")[:3] if row[s] > 0]
            rows.append((t, labels[t], "  ".join(f"{labels[s]} ({s}) {row[s]:.2f}" for s in top)))
        statistics = [
            (h.layer, h.head, h.habit, h.entropy, h.distance, h.previous, h.first, h.itself, h.distant)
            for h in self.heads
        ]
        columns = (
            *("layer", "head", "habit", "entropy", "distance"),
            *("to previous", "to first", "to itself", "to a distant one"),
        )
        return [
            Table("statistics of the heads, averaged over the text", columns, statistics),
            Table(
                f"layer {self.layer}, head {self.head}: the three tokens that each token attends to most",
                ("position", "token", "token (position) weight"),
                rows,
            ),
        ]


def attention(
    run: RunLike, text: Text = None, *, layer: int | None = None, head: int | None = None, unknown: str = "error"
) -> Attention:
    """The pattern of one head over a text of up to `block_size` tokens, and every head's statistics.

    By default, the head with the largest `distant` is shown. With only `layer` or only `head`, it is chosen among the
    heads of that layer, or among the heads with that number.

    Patterns are computed one head at a time, so memory does not grow with the number of heads. Rows sum to 1, and
    later positions have exactly 0.
    """
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown)
    model, n_head = loaded.model, loaded.model.settings.n_head
    layer = None if layer is None else resolve_index(layer, model.settings.n_layer, "layer")
    head = None if head is None else resolve_index(head, n_head, "head")
    statistics: list[HeadStatistics] = []
    chosen: HeadStatistics | None = None
    with inference(model):
        for i, activations in enumerate(run_blocks(model, model.embed(tokenized.ids))):
            for h in range(n_head):
                weights = attention_pattern(activations.q[0, h], activations.k[0, h])  # (T, T)
                statistics.append(head_statistics(i, h, weights))
                is_candidate = layer in (None, i) and head in (None, h)
                if is_candidate and (chosen is None or statistics[-1].distant > chosen.distant):
                    chosen, chosen_weights = statistics[-1], weights.numpy()
    assert chosen
    return Attention(tokenized.tokens, chosen.layer, chosen.head, chosen_weights, statistics, tokenized.left_out)


def head_statistics(layer: int, head: int, weights: Tensor) -> HeadStatistics:
    """The statistics of a pattern (T, T)."""
    T = len(weights)
    if T == 1:
        return HeadStatistics(
            layer, head, entropy=0.0, distance=0.0, previous=0.0, first=1.0, itself=1.0, distant=0.0, habit="first"
        )
    rows, positions = weights[1:], torch.arange(T, dtype=weights.dtype)
    entropy = torch.special.entr(rows).sum(-1).mean().item()
    previous, first = weights.diagonal(-1).mean().item(), rows[:, 0].mean().item()
    itself = weights.diagonal()[1:].mean().item()
    # The largest of columns 1 to t - 2; rows 1 and 2 have no such column.
    distant = (rows[:, 1:].tril(-2).amax(-1).sum() / max(1, T - 3)).item()
    return HeadStatistics(
        layer,
        head,
        entropy=entropy,
        distance=(positions[1:] - rows @ positions).mean().item(),
        previous=previous,
        first=first,
        itself=itself,
        distant=distant,
        habit=_name_habit(T, entropy, {"previous": previous, "first": first, "itself": itself}, distant),
    )


def _name_habit(T: int, entropy: float, weights: dict[str, float], distant: float) -> str:
    """The habit of a head, see `HeadStatistics`. `weights` are the means `previous`, `first` and `itself`."""
    largest = max(weights, key=lambda name: weights[name])
    if weights[largest] >= _MIN_MEAN_WEIGHT:
        return largest
    if distant >= _MIN_DISTANT_WEIGHT:
        return "distant"
    entropy_of_equal_weights = sum(math.log(t + 1) for t in range(1, T)) / (T - 1)
    return "diffuse" if entropy >= _MIN_RELATIVE_ENTROPY * entropy_of_equal_weights else "mixed"
