"""Attention: what share of each position goes to which, head by head.

The axis letters: `T` positions, `H` heads.
"""

import html
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.lens.capture import attention_pattern, inference, walk
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, resolve_index, tokenize
from octavo.lens.view import Table, View, shaded

_DRAWN = 64  # tokens of which a notebook shows the pattern


@dataclass(frozen=True)
class Head:
    """A head's habits over a text, each the mean over all positions but the first, which has no choice."""

    layer: int
    head: int
    entropy: float  # nats; 0: all on one position
    distance: float  # tokens back, weighted by the shares
    previous: float  # share that goes to the position before
    first: float  # share that goes to the first position
    itself: float


@dataclass(frozen=True, eq=False)
class Attention(View):
    """One head's pattern, `weights` (T, T): row t is what position t gives to each; and the habits of all heads."""

    caveat: ClassVar[str] = (
        "Attention says where a head looks, not why, nor what it did with what it saw: `ablate` and "
        "`residual` ask that."
    )

    tokens: list[Token]
    layer: int
    head: int
    weights: np.ndarray  # (T, T)
    heads: list[Head]
    left_out: int

    def picture(self) -> str:
        if len(self.tokens) > _DRAWN:
            return ""
        names = [token.label for token in self.tokens]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            + "".join(shaded("", float(share), float(share), "td") for share in row[: t + 1])
            + "</tr>"
            for t, (name, row) in enumerate(zip(names, self.weights, strict=True))
        )
        return f"<table><tr><th></th>{head}</tr>{rows}</table>"

    def tables(self) -> list[Table]:
        top = [(t, np.argsort(-row, kind="stable")[:3]) for t, row in enumerate(self.weights)]
        named = [token.label for token in self.tokens]
        looks = [
            (
                t,
                named[t],
                "  ".join(f"{named[s]} ({s}) {self.weights[t, s]:.2f}" for s in best if self.weights[t, s] > 0),
            )
            for t, best in top
        ]
        habits = [(h.layer, h.head, h.entropy, h.distance, h.previous, h.first, h.itself) for h in self.heads]
        return [
            Table(
                "the heads, on average over the text",
                ("layer", "head", "entropy", "distance", "to previous", "to first", "to itself"),
                habits,
            ),
            Table(
                f"layer {self.layer}, head {self.head}: where each token looks",
                ("position", "token", "looks at (position) and with what share"),
                looks,
            ),
        ]


def attention(run: RUN, text: TEXT = None, *, layer: int = 0, head: int = 0, unknown: str = "error") -> Attention:
    """The pattern of one head over a text of up to `block_size` tokens, and every head's habits.

    A pattern is made for one head at a time, so memory doesn't grow with their number. Rows sum to 1; what lies after
    a position is exactly 0.
    """
    loaded = load_checkpoint(run)
    reading = tokenize(loaded, text, unknown)
    settings = loaded.model.settings
    layer, head = resolve_index(layer, settings.n_layer, "layer"), resolve_index(head, settings.n_head, "head")
    habits = []
    with inference(loaded.model):
        for i, step in enumerate(walk(loaded.model, loaded.model.embed(reading.ids))):
            for h in range(settings.n_head):
                weights = attention_pattern(step.q[0, h], step.k[0, h])  # (T, T)
                habits.append(head_statistics(i, h, weights))
                if (i, h) == (layer, head):
                    shown = weights.numpy()
    return Attention(reading.tokens, layer, head, shown, habits, reading.left_out)


def head_statistics(layer: int, head: int, weights: Tensor) -> Head:
    T = len(weights)
    if T == 1:
        return Head(layer, head, 0.0, 0.0, 0.0, 1.0, 1.0)
    rows, at = weights[1:], torch.arange(T, dtype=weights.dtype)
    means = [
        torch.special.entr(rows).sum(-1),
        at[1:] - rows @ at,
        weights.diagonal(-1),
        rows[:, 0],
        weights.diagonal()[1:],
    ]
    return Head(layer, head, *(each.mean().item() for each in means))
