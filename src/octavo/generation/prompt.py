"""Encodes a prompt, from text or token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

from octavo.errors import OctavoError
from octavo.tokenizers import Tokenizer, UnknownCharacters


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as token ids.

    For an empty prompt, `is_empty` is True, and `ids` is one start token. `unknown` are the characters that were
    skipped or replaced; `text` is without them.
    """

    text: str
    ids: list[int]
    is_empty: bool = False
    unknown: UnknownCharacters | None = None


def encode_prompt(
    tokenizer: Tokenizer, prompt: str | Sequence[int], unknown: str = "error", special_tokens: bool = False
) -> Prompt:
    """A prompt from text or token ids. If it has no token, a start token is added: bos, eos, a line break or
    else token 0.

    `unknown` and `special_tokens` are those of `Tokenizer.encode`.
    """
    found = None
    if isinstance(prompt, str):
        encoded, found = tokenizer.encode_and_report(prompt, unknown, special_tokens)
        ids = [int(id) for id in encoded]
        text = prompt if found is None else tokenizer.decode(ids)
    else:
        ids = list(prompt)
        if invalid := next((str(id) for id in ids if not 0 <= id < tokenizer.vocab_size), None):
            raise OctavoError(
                f"there is no token {invalid[:20]}: this tokenizer has {tokenizer.vocab_size} tokens",
                f"ids from 0 to {tokenizer.vocab_size - 1}",
            )
        text = tokenizer.decode(ids)
    if ids:
        return Prompt(text, ids, unknown=found)
    start = tokenizer.end_of_text if tokenizer.beginning_of_text is None else tokenizer.beginning_of_text
    ids = [start] if start is not None else [int(id) for id in tokenizer.encode("\n", "skip")] or [0]
    return Prompt("", ids, is_empty=True, unknown=found)
