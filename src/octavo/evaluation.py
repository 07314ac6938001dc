"""How well a model knows a text: loss, perplexity, bits per byte. Exact, over the whole text.

Bits per byte compare models with different tokenizers, for all of them are charged for the same bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from octavo.checkpoint import Checkpoint
from octavo.data import sources
from octavo.data.dataset import is_prepared, open_dataset
from octavo.data.prepare import encode_all, reopen_dataset
from octavo.data.shards import Shards
from octavo.errors import OctavoError
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.settings import Settings
from octavo.tokenizers import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per token, its exponential, and bits per byte of text, in windows of `block_size`."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int  # that were predicted: all but the first
    bytes: int  # of those tokens
    block_size: int


def evaluate(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray | Shards, block_size: int | None = None
) -> Evaluation:
    """Score `tokens` in consecutive windows of `block_size` (the model's own, if not said).

    Raises `OctavoError` where there is nothing to predict, or an id is beyond the model's vocabulary.
    """
    if block_size is not None and block_size < 1:
        raise OctavoError(
            f"block_size={block_size} is not a number of tokens", f"--block-size {model.settings.block_size}"
        )
    if len(tokens) < 2:
        raise OctavoError(f"{len(tokens)} tokens: nothing to predict", "a text of at least two tokens")
    if int(tokens.max()) >= model.settings.vocab_size:
        raise OctavoError(
            f"token id {int(tokens.max())} is beyond the model's vocabulary of {model.settings.vocab_size}",
            "the tokenizer that the model was trained with",
        )
    if block_size is not None and block_size > model.settings.block_size:
        raise OctavoError(
            f"block_size={block_size} is more than the model's {model.settings.block_size} positions",
            f"--block-size {model.settings.block_size}",
        )
    block_size = block_size or model.settings.block_size
    loss = split_loss(model, tokens, block_size)
    if not math.isfinite(loss):
        raise OctavoError(f"the model's loss is {loss:g}: its weights are broken", "an earlier checkpoint")
    size = max(1, count_bytes(tokenizer, tokens) - count_bytes(tokenizer, tokens[:1]))
    return Evaluation(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # beyond, a float overflows
        bits_per_byte=loss * (len(tokens) - 1) / (size * math.log(2)),
        tokens=len(tokens) - 1,
        bytes=size,
        block_size=block_size,
    )


def evaluate_run(
    loaded: Checkpoint,
    source: str | None = None,
    block_size: int | None = None,
    unknown: str = "error",
    encoding: str = "utf-8",
    errors: str = "strict",
    text_field: str = "text",
) -> Evaluation:
    """Score a text with a loaded checkpoint; without one, the validation split that it was trained beside.

    A prepared folder stands for its validation split. Raises `OctavoError` for a text that can't be had.
    """
    if source is None:
        if not isinstance(loaded.settings, Settings) or "data" not in loaded.info:
            raise OctavoError(
                f"{loaded.folder} doesn't say which text it was trained on", f"octavo eval {loaded.folder} SOURCE"
            )
        again = reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer)
        tokens: np.ndarray | Shards = again.tokens("val")
    elif is_prepared(source):
        prepared = open_dataset(Path(source))
        if prepared.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
            raise OctavoError(f"{source} was prepared with another tokenizer than the model's", "the text itself")
        tokens = prepared.tokens("val")
    else:
        tokens = encode_all(sources.read(source, encoding, errors, text_field), loaded.tokenizer, unknown)
    return evaluate(loaded.model, loaded.tokenizer, tokens, block_size)


def count_bytes(tokenizer: Tokenizer, tokens: np.ndarray | Shards) -> int:
    """How many bytes of text the tokens stand for."""
    lengths = np.array([len(piece) for piece in tokenizer.token_bytes], dtype=np.int64)
    return sum(int(lengths[tokens[i : i + (1 << 22)]].sum()) for i in range(0, len(tokens), 1 << 22))
