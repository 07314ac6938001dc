"""How surprised the model is by each token of a text. Its mean is the model's loss on that text.

The axis letters: `T` positions, `V` the vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from octavo.errors import OctavoError
from octavo.evaluation import count_bytes
from octavo.lens.capture import finite, inference
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, make_token, tokenize
from octavo.lens.view import Table, View, shaded
from octavo.loss import sequence_batches
from octavo.model import GPT

_LONGEST = 1 << 16  # tokens of a text that are token_surprisals one by one
_AT_ONCE = 1 << 25  # logits at once
_DRAWN = 2000  # tokens that a notebook shows in colour


@dataclass(frozen=True, eq=False)
class Surprisal(View):
    """Every token's surprisal, -ln p in nats, and its rank among all tokens; NaN and 0 for the first, which nothing
    foretells. `guesses` are what the model held for likeliest in its place.
    """

    tokens: list[Token]
    surprisal: np.ndarray
    rank: np.ndarray
    guesses: list[str]
    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float
    block_size: int
    left_out: int

    def picture(self) -> str:
        """The text, each token the darker the more it surprised: from none to the most of this text."""
        told = np.nan_to_num(self.surprisal).tolist()
        most = max(1.0, *told)
        spans = [
            shaded(token.label, nats / most, nats) for token, nats in zip(self.tokens[:_DRAWN], told, strict=False)
        ]
        return f"<p>{''.join(spans)}</p>"

    def tables(self) -> list[Table]:
        rows = [
            (at, token.label, float(nats), float(nats) / math.log(2), float(np.exp(-nats)), int(rank), guess)
            for at, (token, nats, rank, guess) in enumerate(
                zip(self.tokens, self.surprisal, self.rank, self.guesses, strict=True)
            )
            if at
        ]
        bits = f"{self.bits_per_byte:.4f} bits per byte"
        title = f"loss {self.loss:.4f} nats a token, perplexity {self.perplexity:.3f}, {bits}"
        return [Table(title, ("position", "token", "nats", "bits", "probability", "rank", "likeliest"), rows)]

    def plain(self) -> dict[str, object]:
        values = super().plain()
        values["surprisal"] = [None, *values["surprisal"][1:]]  # JSON has no NaN
        return values


def surprisal(run: RUN, text: TEXT = None, *, unknown: str = "error") -> Surprisal:
    """Surprisal and rank of every token, in consecutive windows of `block_size`, as `octavo eval` reads a text."""
    loaded = load_checkpoint(run)
    reading = tokenize(loaded, text, unknown, limit=_LONGEST)
    ids = reading.ids[0]
    if len(ids) < 2:
        raise OctavoError("one token: nothing foretells it, so there is nothing to score", "a longer text")
    surprisal, rank, guesses = token_surprisals(loaded.model, ids.numpy())
    loss = float(np.mean(surprisal))
    return Surprisal(
        reading.tokens,
        np.concatenate([[np.nan], surprisal]),
        np.concatenate([[0], rank]),
        ["", *(make_token(loaded.tokenizer, int(id)).label for id in guesses)],
        loss,
        math.exp(min(loss, 700.0)),
        float(np.sum(surprisal)) / (count_bytes(loaded.tokenizer, ids.numpy()[1:]) * math.log(2)),
        loaded.model.settings.block_size,
        reading.left_out,
    )


def token_surprisals(model: GPT, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of all ids but the first: surprisal in nats, rank from 1, and the id that was likeliest instead."""
    parts = []
    with inference(model):
        for window in sequence_batches(ids, model.settings.block_size, max(1, _AT_ONCE // model.settings.vocab_size)):
            batch = torch.from_numpy(window)
            logits = finite(model(batch[:, :-1]))  # (B, T, V)
            came = batch[:, 1:, None]
            mine = logits.gather(-1, came)
            nats = logits.logsumexp(-1) - mine[..., 0]
            ranks = 1 + (logits > mine).sum(-1)
            parts.append([each.flatten() for each in (nats.double(), ranks, logits.argmax(-1))])
    surprisal, rank, guesses = (torch.cat(each).numpy() for each in zip(*parts, strict=True))
    return surprisal, rank, guesses
