"""Token ids to text that can no longer change, one token at a time; finds stop strings."""

from collections.abc import Sequence

from octavo.tokenizers import StreamDecoder, Tokenizer


class StopAwareDetokenizer:
    """Token ids in, text out as soon as it is certain.

    The text never ends within a character, and never with what may be the start of a stop string.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        # A byte-level model may generate bytes that are not UTF-8. They are left out of the text, not of the ids.
        self._decoder = StreamDecoder(tokenizer, errors="ignore")
        self._stop = list(stop)
        self._held = ""
        self.length = 0  # characters decoded, held ones included
        self.stopped = False  # a stop string was found; what follows it is not part of the text

    def push(self, id: int) -> str:
        """The text that this token makes certain."""
        text = self._decoder.push(id)
        self.length += len(text)
        if self.stopped:
            return ""
        self._held += text
        starts = [start for string in self._stop if (start := self._held.find(string)) >= 0]
        if starts:
            self.stopped = True
            # Cut at the first stop string: all that is held becomes certain, and nothing stays held below.
            certain, self._held = min(starts), self._held[: min(starts)]
        else:
            certain = len(self._held) - _partial_match(self._stop, self._held)
        text, self._held = self._held[:certain], self._held[certain:]
        return text

    def finish(self) -> str:
        """The text that was held back, at the end: no stop string can complete any more."""
        text, self._held = self._held, ""
        return text


def _partial_match(stop: list[str], text: str) -> int:
    """The length of the longest suffix of `text` that a stop string begins with."""
    longest = min(len(text), max((len(string) for string in stop), default=1) - 1)
    return next((n for n in range(longest, 0, -1) if any(string.startswith(text[-n:]) for string in stop)), 0)
