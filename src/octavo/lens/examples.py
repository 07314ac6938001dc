"""Prompts to start with: beginnings of sentences of the validation split, which the model was not trained on."""

import re

from octavo.checkpoint import Checkpoint
from octavo.data.prepare import reopen_dataset
from octavo.errors import OctavoError
from octavo.settings import Settings

_COUNT = 5
_SEARCH_TOKENS = 400  # tokens in which to look for a sentence
_MAX_TOKENS = 32
_MAX_CHARACTERS = 60
_MIN_WORDS = 4
# A sentence begins after a line break, or after a final punctuation mark and a space.
_SENTENCE = re.compile(r"(?:[\n\r]|[.!?।؟。…]\s)\s*([^\n\r.!?।؟。…]+)")


def examples(loaded: Checkpoint) -> list[str]:
    """Up to five beginnings of sentences, of whole words, from evenly spaced places of the split, the longest first.

    The list is empty if the training text is not available, or has no sentences.
    """
    if not isinstance(loaded.settings, Settings) or not loaded.info.get("data"):
        return []
    try:
        tokens = reopen_dataset(loaded.settings, loaded.info["data"], loaded.tokenizer).result.tokens["val"]
    except OctavoError:
        return []
    starts = range(0, len(tokens), -(-len(tokens) // _COUNT))
    beginnings = (_beginning(loaded, tokens[start : start + _SEARCH_TOKENS].tolist()) for start in starts)
    return sorted({text for text in beginnings if text}, key=lambda text: (-len(text), text))


def _beginning(loaded: Checkpoint, ids: list[int]) -> str | None:
    """The beginning of the first sentence that is long enough."""
    max_tokens = min(_MAX_TOKENS, max(1, loaded.model.settings.block_size // 2))
    for match in _SENTENCE.finditer(loaded.tokenizer.decode(ids)):
        words = re.findall(r"\S+\s*", match[1])
        while len(words) > _MIN_WORDS:
            words.pop()  # at least the last one: the model continues with it
            text = "".join(words).rstrip()
            if len(text) <= _MAX_CHARACTERS and len(loaded.tokenizer.encode(text, "skip")) <= max_tokens:
                return text
    return None
