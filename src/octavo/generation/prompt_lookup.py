"""Speculative decoding without a draft model: the draft tokens are those that followed the same n-gram earlier.

Names, phrases and whole passages of a prompt come back in what a model writes. A draft costs almost nothing: while one
sequence decodes, reading the weights takes most of the time, and a few more rows in the batch use the same weights. The
engine accepts only the draft tokens that the model would have chosen, so the text is the same ("prompt lookup
decoding", Saxena, 2023).
"""

from collections.abc import Sequence

_N = 3  # length of the n-grams
_MAX_WAIT = 16  # steps without a draft after rejected drafts


class PromptLookup:
    """Drafts the next tokens of one sequence."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}  # n-gram: the index after its last occurrence
        self._wait, self._next_wait = 0, 1
        for id in ids:
            self.append(id)

    def append(self, id: int) -> None:
        if len(self._ids) >= _N:
            self._following[tuple(self._ids[-_N:])] = len(self._ids)
        self._ids.append(id)

    def draft(self, count: int) -> list[int]:
        """At most `count` draft tokens; none if the last n-gram is new, or if recent drafts were rejected."""
        if self._wait:
            self._wait -= 1
            return []
        start = self._following.get(tuple(self._ids[-_N:]))
        return [] if start is None else self._ids[start : start + count]

    def report(self, accepted: int) -> None:
        """Record how many tokens of the last draft were accepted. Each rejected draft doubles the wait for the next."""
        self._wait = 0 if accepted else self._next_wait
        self._next_wait = 1 if accepted else min(2 * self._next_wait, _MAX_WAIT)
