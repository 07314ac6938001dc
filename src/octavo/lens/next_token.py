"""The view `next_token`: the logits after a text. Sampling at any temperature, top-k or top-p follows from them."""

from dataclasses import dataclass

import numpy as np
import torch

from octavo import runs
from octavo.lens.capture import inference, require_finite
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.runs import RunLike

_MAX_NAMES = 1000  # only the most likely tokens get a label
_TABLE_TOKENS = 20


@dataclass(frozen=True, eq=False)
class NextToken(View):
    """The logits (V,) of the token after a text. `vocabulary`: ids and labels of the 1,000 most likely, in order."""

    tokens: list[Token]
    logits: np.ndarray
    vocabulary: dict[int, str]
    left_out: int  # how many tokens at the end of the text were truncated

    def tables(self) -> list[Table]:
        exponentials = np.exp(self.logits.astype(np.float64) - self.logits.max())
        probabilities = exponentials / exponentials.sum()
        top = list(self.vocabulary)[:_TABLE_TOKENS]
        rows = [(self.vocabulary[id], id, float(probabilities[id]), float(self.logits[id])) for id in top]
        share = f"total probability {probabilities[top].sum():.1%}"
        title = f"the next token: {len(rows)} of {len(self.logits):,} tokens, {share}"
        return [Table(title, ("token", "id", "probability", "logit"), rows)]


def next_token(run: RunLike, text: Text = None, *, unknown: str = "error") -> NextToken:
    """The logits after the last token of a text."""
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown)
    model = loaded.model
    with inference(model):
        hidden = model.hidden(tokenized.ids)  # (1, T, C)
        logits = require_finite(model.unembed(hidden[:, -1:]))[0, 0, : loaded.tokenizer.vocab_size]
        top = torch.argsort(logits, descending=True, stable=True)[:_MAX_NAMES].tolist()
    vocabulary = {id: make_token(loaded.tokenizer, id).label for id in top}
    return NextToken(tokenized.tokens, logits.numpy(), vocabulary, tokenized.left_out)
