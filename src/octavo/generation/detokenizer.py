"""Streaming detokenization, with stop strings."""

from collections.abc import Sequence

from octavo.tokenizers import StreamDecoder, Tokenizer


class StopAwareDetokenizer:
    """Token ids in, text out as soon as it is certain.

    The text never ends within a character, and never with what may be the start of a stop string.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), min_tokens: int = 0, include_stop: bool = False
    ) -> None:
        """A stop string counts if it ends after the text of the first `min_tokens` tokens.

        `include_stop`: the stop string is the end of the text, rather than left out.
        """
        # A byte-level model may generate bytes that are not UTF-8. They are left out of the text, not of the ids.
        self._decoder = StreamDecoder(tokenizer, errors="ignore")
        self._stop, self._min_tokens, self._include_stop = list(stop), min_tokens, include_stop
        self._held = ""
        self._early = 0  # characters of `_held` that belong to the first `min_tokens` tokens
        self._count = 0  # tokens
        self.length = 0  # characters decoded, held ones included
        self.stop_string: str | None = None  # the one that was found; what follows it is not part of the text

    def push(self, id: int) -> str:
        """The text that this token makes certain."""
        text = self._decoder.push(id)
        self.length += len(text)
        self._count += 1
        if self.stop_string is not None:
            return ""
        self._held += text
        if self._count <= self._min_tokens:
            self._early = len(self._held)
        starts = [
            (start, len(string), string)
            for string in self._stop
            if (start := self._held.find(string, max(0, self._early - len(string) + 1))) >= 0
        ]
        if starts:
            start, length, self.stop_string = min(starts)
            # Cut off what follows the stop string: it is not part of the text, so nothing is held back any longer.
            certain = start + length if self._include_stop else start
            self._held = self._held[:certain]
        else:
            certain = len(self._held) - _partial_match(self._stop, self._held)
        text, self._held = self._held[:certain], self._held[certain:]
        self._early = max(0, self._early - certain)
        return text

    def finish(self) -> str:
        """The text that was held back. Call it at the end, when no stop string can be completed any more."""
        text, self._held = self._held, ""
        return text


def _partial_match(stop: list[str], text: str) -> int:
    """The length of the longest suffix of `text` that a stop string begins with."""
    longest = min(len(text), max((len(string) for string in stop), default=1) - 1)
    for n in range(longest, 0, -1):
        suffix = text[-n:]
        if any(string.startswith(suffix) for string in stop):
            return n
    return 0
