"""Evaluate a model on a text: loss, perplexity and bits per byte, computed exactly over the whole text.

Bits per byte compare models with different tokenizers, because the total loss is divided by the number of bytes, which
hardly depends on the tokenizer: the bytes of the text after its first token, including characters that a tokenizer
cannot encode. A special token is not text and has no bytes. All of the text is used, not random batches of it: every
token except the first is predicted once.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from octavo import runs
from octavo.checkpoint import Checkpoint
from octavo.data.dataset import is_prepared, open_dataset
from octavo.data.prepare import encode_corpus, reopen_dataset
from octavo.data.shards import Shards
from octavo.errors import OctavoError
from octavo.loss import split_loss
from octavo.model import GPT
from octavo.progress import ProgressReporter
from octavo.runs import RunLike
from octavo.settings import DataSettings, Settings, SourceLike, as_source
from octavo.tokenizers import Tokenizer, UnknownCharacters
from octavo.units import format_count

_TOKENS_PER_LOOKUP = 1 << 22  # that `count_bytes` handles at a time
_LARGEST_EXPONENT = 700.0  # exp(710) overflows float64


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per token, perplexity, and bits per byte of text, in consecutive sequences of `block_size`."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int  # predicted tokens: all but the first
    bytes: int  # the bytes of the text after its first token
    block_size: int
    unknown: UnknownCharacters | None = None  # skipped or replaced; `bytes` counts them


def evaluate(
    run: RunLike,
    source: SourceLike | None = None,
    *,
    block_size: int | None = None,
    unknown: str = "error",
    encoding: str = "utf-8",
    errors: str = "strict",
    text_field: str = "text",
    special_tokens: bool = False,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate a run on a source; without one, on the validation split that its training used.

    A prepared folder means its validation split. `unknown` is "error", "skip" or "replace": how to handle characters
    that the tokenizer does not know. `encoding`, `errors`, `text_field` and `special_tokens` say how the source is
    read: see `DataSettings`. Raises `OctavoError` if the text is not available.
    """
    loaded = runs.load(run, device)
    data: DataSettings | None = None
    if source is not None:
        data = DataSettings(
            source=as_source(source),
            encoding=encoding,
            errors=errors,
            text_field=text_field,
            special_tokens=special_tokens,
        )
    tokens, unknown_characters = _read_tokens(loaded, data, unknown)
    return evaluate_tokens(loaded.model, loaded.tokenizer, tokens, block_size, unknown_characters)


def evaluate_tokens(
    model: GPT,
    tokenizer: Tokenizer,
    tokens: np.ndarray | Shards,
    block_size: int | None = None,
    unknown_characters: UnknownCharacters | None = None,
) -> Evaluation:
    """Evaluate a model on token ids, in consecutive sequences of `block_size` (default: the model's).

    `unknown_characters` were skipped or replaced when the text was encoded; their bytes count too.
    Raises `OctavoError` if there is nothing to predict, or an id is outside the model's vocabulary.
    """
    longest = model.settings.block_size
    block_size = longest if block_size is None else block_size
    if not 1 <= block_size <= longest:
        raise OctavoError(
            f"block_size={block_size}: expected 1 to {longest}, the model's own block_size", f"--block-size {longest}"
        )
    if len(tokens) < 2:
        count = format_count(len(tokens), "token")
        raise OctavoError(f"the text has {count}: nothing to predict", "a text of at least two tokens")
    if (largest := int(tokens.max())) >= model.settings.vocab_size:
        raise OctavoError(
            f"token id {largest} is outside the model's vocabulary of {model.settings.vocab_size}",
            "the tokenizer that the model was trained with",
        )
    report = ProgressReporter("evaluating", len(tokens) - 1, "tokens")
    loss = split_loss(model, tokens, block_size, on_batch=report)
    if not math.isfinite(loss):
        raise OctavoError(f"the model's loss is {loss:g}: its weights are broken", "an earlier checkpoint")
    lost_bytes = unknown_characters.lost_bytes if unknown_characters else 0
    n_bytes = max(1, count_bytes(tokenizer, tokens) - count_bytes(tokenizer, tokens[:1]) + lost_bytes)
    return Evaluation(
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=loss * (len(tokens) - 1) / (n_bytes * math.log(2)),
        tokens=len(tokens) - 1,
        bytes=n_bytes,
        block_size=block_size,
        unknown=unknown_characters,
    )


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats per token; always finite."""
    return math.exp(min(loss, _LARGEST_EXPONENT))


def count_bytes(tokenizer: Tokenizer, tokens: np.ndarray | Shards) -> int:
    """The number of bytes of text that the tokens encode. A special token encodes none."""
    lengths = np.array([len(token) for token in tokenizer.token_bytes], dtype=np.int64)
    lengths[list(tokenizer.special_ids)] = 0
    starts = range(0, len(tokens), _TOKENS_PER_LOOKUP)
    return sum(int(lengths[tokens[start : start + _TOKENS_PER_LOOKUP]].sum()) for start in starts)


def _read_tokens(
    loaded: Checkpoint, data: DataSettings | None, unknown: str
) -> tuple[np.ndarray | Shards, UnknownCharacters | None]:
    """The tokens to evaluate on, and the characters that were skipped or replaced. `data` describes the source."""
    if data is None:
        if not isinstance(loaded.settings, Settings) or not loaded.info.get("data"):
            raise OctavoError(
                f"{loaded.folder} does not record which text it was trained on", f"octavo eval {loaded.folder} SOURCE"
            )
        return reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer).result.tokens["val"], None
    if is_prepared(data.source):
        if data != DataSettings(source=data.source):
            raise OctavoError(
                f"{data.source_name} is prepared: encoding, errors, text_field and special_tokens have no effect on it",
                "leave them out, or give the text that it was prepared from",
            )
        dataset = open_dataset(data.source)
        if dataset.tokenizer.fingerprint != loaded.tokenizer.fingerprint:
            raise OctavoError(
                f"{data.source_name} was prepared with another tokenizer than the model's",
                "the text it was prepared from",
            )
        return dataset.tokens["val"], None
    return encode_corpus(data, loaded.tokenizer, unknown).result
