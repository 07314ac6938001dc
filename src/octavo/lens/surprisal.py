"""The view `surprisal`: the negative log-probability of every token of a text. Its mean is the loss.

The axis letters: `B` sequences, `T` positions, `V` the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from octavo import runs
from octavo.errors import OctavoError
from octavo.evaluation import count_bytes, perplexity
from octavo.lens.capture import inference, require_finite
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View, shaded
from octavo.loss import sequence_batches
from octavo.model import GPT
from octavo.runs import RunLike

_MAX_TOKENS = 1 << 16  # of a text
_MAX_LOGITS_PER_BATCH = 1 << 25  # limits the memory of the sequences of a batch
_PICTURE_TOKENS = 2000  # tokens that a notebook shows in color


@dataclass(frozen=True, eq=False)
class Surprisal(View):
    """Every token's surprisal, -ln p in nats, and its rank among all tokens; NaN and 0 for the first token.

    `predictions` are the tokens that the model found most likely at each position.
    """

    nullable: ClassVar[tuple[str, ...]] = ("surprisal",)

    tokens: list[Token]
    surprisal: np.ndarray
    rank: np.ndarray
    predictions: list[str]
    loss: float  # nats per token
    perplexity: float
    bits_per_byte: float
    block_size: int
    left_out: int  # how many tokens at the end of the text were truncated

    def picture(self) -> str:
        """The text, each token on a background that is darker the higher its surprisal is relative to the highest."""
        nats = np.nan_to_num(self.surprisal).tolist()
        highest = max(1.0, *nats)
        spans = [
            shaded(token.label, each / highest, each)
            for token, each in zip(self.tokens[:_PICTURE_TOKENS], nats, strict=False)
        ]
        return f"<p>{''.join(spans)}</p>"

    def tables(self) -> list[Table]:
        columns = zip(self.tokens, self.surprisal, self.rank, self.predictions, strict=True)
        rows = [
            (position, token.label, float(nats), float(nats) / math.log(2), float(np.exp(-nats)), int(rank), prediction)
            for position, (token, nats, rank, prediction) in enumerate(columns)
            if position
        ]
        bits = f"{self.bits_per_byte:.4f} bits per byte"
        title = f"loss {self.loss:.4f} nats per token, perplexity {self.perplexity:.3f}, {bits}"
        return [Table(title, ("position", "token", "nats", "bits", "probability", "rank", "most likely"), rows)]


def surprisal(run: RunLike, text: Text = None, *, unknown: str = "error") -> Surprisal:
    """The surprisal and rank of every token, in consecutive sequences of `block_size`, as `octavo eval` does."""
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown, limit=_MAX_TOKENS)
    ids = tokenized.ids[0].numpy()
    if len(ids) < 2:
        raise OctavoError("the text is one token: there is nothing to predict", "a longer text")
    nats, rank, predictions = token_surprisals(loaded.model, ids)
    loss = float(np.mean(nats))
    return Surprisal(
        tokenized.tokens,
        np.concatenate([[np.nan], nats]),
        np.concatenate([[0], rank]),
        ["", *(make_token(loaded.tokenizer, int(id)).label for id in predictions)],
        loss,
        perplexity(loss),
        float(np.sum(nats)) / (max(1, count_bytes(loaded.tokenizer, ids[1:])) * math.log(2)),
        loaded.model.settings.block_size,
        tokenized.left_out,
    )


def token_surprisals(
    model: GPT, ids: np.ndarray, max_logits_per_batch: int = _MAX_LOGITS_PER_BATCH
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three values for every id but the first: its surprisal in nats, its rank from 1, and the most likely id.

    `max_logits_per_batch` limits the number of sequences in a batch: it changes memory and speed only.
    """
    results = []
    with inference(model):
        for batch in sequence_batches(
            ids, model.settings.block_size, max(1, max_logits_per_batch // model.settings.vocab_size)
        ):
            sequences = torch.from_numpy(batch)  # (B, T + 1)
            logits = require_finite(model(sequences[:, :-1]))  # (B, T, V)
            target_logits = logits.gather(-1, sequences[:, 1:, None])  # (B, T, 1)
            surprisals = logits.logsumexp(-1) - target_logits[..., 0]  # (B, T)
            ranks = 1 + (logits > target_logits).sum(-1)
            results.append([each.flatten() for each in (surprisals.double(), ranks, logits.argmax(-1))])
    nats, rank, predictions = (torch.cat(each).numpy() for each in zip(*results, strict=True))
    return nats, rank, predictions
