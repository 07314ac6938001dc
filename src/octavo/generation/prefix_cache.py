"""What was read of prompts, kept for the next one that begins alike.

Keys and values depend on a token, those before it and its position, so a prompt may begin with what another left,
as far as the two agree. Nobody's prompt is found by anybody who doesn't share it: `share` is part of the key.
"""

import collections
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from octavo.generation.decoder import Kept

_LEAST = 16  # tokens; fewer are read sooner than found


@dataclass(frozen=True)
class Prefix:
    """What to restore a slot from, and how many of its first positions then hold what was asked for."""

    tensors: Kept
    length: int


class PrefixCache:
    """The prompts used last, within `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._kept: collections.OrderedDict[tuple[str, tuple[int, ...]], Kept] = collections.OrderedDict()

    def find(self, share: str, ids: list[int]) -> Prefix | None:
        """The longest beginning of `ids` that was read, short of its last token, whose logits are wanted."""
        best, longest, before = None, _LEAST - 1, ids[:-1]
        for key in self._kept:
            if key[0] == share and (length := _common(key[1], before)) > longest:
                best, longest = key, length
        if best is None:
            return None
        self._kept.move_to_end(best)
        return Prefix(self._kept[best], longest)

    def add(self, share: str, ids: list[int], keep: Callable[[], Kept]) -> None:
        """Keep what was read of a prompt, if there is room; those unused for longest go."""
        key = (share, tuple(ids))
        if not self.limit or len(ids) < _LEAST:
            return
        if key in self._kept:
            self._kept.move_to_end(key)
            return
        kept = keep()
        self._kept[key] = kept
        self.bytes += _size(kept)
        while self.bytes > self.limit:
            _, gone = self._kept.popitem(last=False)
            self.bytes -= _size(gone)


def _common(a: tuple[int, ...], b: list[int]) -> int:
    """How many ids two texts begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _size(kept: Kept) -> int:
    return sum(tensor.nbytes for pair in kept for tensor in pair)
