"""What the model expects next: the logits of all tokens, from which any temperature, top-k or top-p follows."""

from dataclasses import dataclass

import numpy as np
import torch

from octavo.lens.capture import finite, inference
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, make_token, tokenize
from octavo.lens.view import Table, View

_NAMED = 1000  # tokens, the likeliest, that are given with their names
_SHOWN = 20


@dataclass(frozen=True, eq=False)
class NextToken(View):
    """The logits (V,) of the token after a text. `vocabulary` names the likeliest thousand."""

    tokens: list[Token]
    logits: np.ndarray
    vocabulary: dict[int, str]
    left_out: int

    def tables(self) -> list[Table]:
        odds = np.exp(self.logits.astype(np.float64) - self.logits.max())
        shares = odds / odds.sum()
        best = list(self.vocabulary)[:_SHOWN]
        rows = [(self.vocabulary[id], id, float(shares[id]), float(self.logits[id])) for id in best]
        title = (
            f"what comes next: {len(rows)} of {len(self.logits):,} tokens, {shares[best].sum():.1%} of the probability"
        )
        return [Table(title, ("token", "id", "probability", "logit"), rows)]


def next_token(run: RUN, text: TEXT = None, *, unknown: str = "error") -> NextToken:
    """The logits after the last token of a text."""
    loaded = load_checkpoint(run)
    reading = tokenize(loaded, text, unknown)
    model = loaded.model
    with inference(model):
        hidden = model.hidden(reading.ids)
        logits = finite(model.unembed(hidden[:, -1:]))[0, 0, : loaded.tokenizer.vocab_size]
        best = torch.argsort(logits, descending=True, stable=True)[:_NAMED].tolist()
    names = {id: make_token(loaded.tokenizer, id).label for id in best}
    return NextToken(reading.tokens, logits.numpy(), names, reading.left_out)
