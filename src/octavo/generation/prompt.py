"""A prompt as text and as token ids: where generation starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as token ids.

    For an empty prompt, `is_empty` is True, and `ids` has the one token that a text starts after.
    """

    text: str
    ids: list[int]
    is_empty: bool = False


def encode_prompt(tokenizer: Tokenizer, prompt: str | Sequence[int], unknown: str = "error") -> Prompt:
    """A prompt from text or token ids. If it has no token, generation starts after the bos token, or a line break."""
    if isinstance(prompt, str):
        ids = [int(id) for id in tokenizer.encode(prompt, unknown)] if prompt else []
        text = prompt
    else:
        ids = list(prompt)
        if invalid := next((str(id) for id in ids if not 0 <= id < tokenizer.vocab_size), None):
            raise OctavoError(
                f"there is no token {invalid[:20]}: this tokenizer has {tokenizer.vocab_size} tokens",
                f"ids from 0 to {tokenizer.vocab_size - 1}",
            )
        text = tokenizer.decode(ids)
    if ids:
        return Prompt(text, ids)
    start = tokenizer.end_of_text if tokenizer.beginning_of_text is None else tokenizer.beginning_of_text
    if start is not None:
        return Prompt("", [start], is_empty=True)
    return Prompt("", [int(id) for id in tokenizer.encode("\n", "skip")] or [0], is_empty=True)
