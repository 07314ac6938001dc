"""Guesses of the next tokens of a sequence, from what has followed the same tokens earlier in it.

Names, phrases and whole passages of a prompt come back in what a model writes. A guess costs almost nothing: while one
sequence decodes, reading the weights takes most of the time, and a few more rows in the batch use the same weights. The
engine keeps the guesses that are the tokens that the model itself chooses, so the text is the same ("prompt lookup
decoding", Saxena, 2023).
"""

from collections.abc import Sequence

_N = 3  # tokens that must have occurred before
_MAX_WAIT = 16  # tokens without a guess after guesses that were wrong


class PromptLookup:
    """The guesses for one sequence."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._following: dict[tuple[int, ...], int] = {}  # of _N tokens: the place after their last occurrence
        self._wait, self._next_wait = 0, 1
        for id in ids:
            self.append(id)

    def append(self, id: int) -> None:
        if len(self._ids) >= _N:
            self._following[tuple(self._ids[-_N:])] = len(self._ids)
        self._ids.append(id)

    def guess(self, count: int) -> list[int]:
        """At most `count` guessed tokens, none if the last tokens are new or guesses have been wrong lately."""
        if self._wait:
            self._wait -= 1
            return []
        place = self._following.get(tuple(self._ids[-_N:]))
        return [] if place is None else self._ids[place : place + count]

    def report(self, right: int) -> None:
        """Say how many tokens of the last guess were right. After wrong guesses the next one waits, ever longer."""
        self._wait = 0 if right else self._next_wait
        self._next_wait = 1 if right else min(2 * self._next_wait, _MAX_WAIT)
