"""Prefix cache: keys and values of earlier prompts, reused by a prompt that starts with the same tokens.

Keys and values depend only on a token, the tokens before it and its position, so a prompt can reuse those of another
one as far as the two are equal. The cache scope is part of the key: requests of different scopes never share a
prefix, so response times reveal nothing about other clients' prompts.
"""

import collections
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

from octavo.generation.decoder import PrefixKV

_MIN_TOKENS = 16  # shorter prefixes are computed faster than looked up


@dataclass(frozen=True)
class Prefix:
    """A cached prompt, of which the first `length` positions can be reused."""

    kv: PrefixKV
    length: int


class PrefixCache:
    """Holds at most `max_bytes`; evicts the least recently used prompt."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._entries: collections.OrderedDict[tuple[str, tuple[int, ...]], PrefixKV] = collections.OrderedDict()

    def find(self, scope: str, ids: list[int]) -> Prefix | None:
        """The longest cached prefix of `ids`. It never covers the last token, whose logits are needed."""
        best, best_length, reusable = None, _MIN_TOKENS - 1, ids[:-1]
        for key in self._entries:
            if key[0] == scope and (length := _common_length(key[1], reusable)) > best_length:
                best, best_length = key, length
        if best is None:
            return None
        self._entries.move_to_end(best)
        return Prefix(self._entries[best], best_length)

    def add(self, scope: str, ids: list[int], save: Callable[[], PrefixKV]) -> None:
        """Cache a prompt. `save` is called only if the prompt isn't cached yet."""
        key = (scope, tuple(ids))
        if not self.max_bytes or len(ids) < _MIN_TOKENS:
            return
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        kv = save()
        self._entries[key] = kv
        self.bytes += _size(kv)
        while self.bytes > self.max_bytes:
            _, evicted = self._entries.popitem(last=False)
            self.bytes -= _size(evicted)


def _common_length(a: tuple[int, ...], b: list[int]) -> int:
    """The length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _size(kv: PrefixKV) -> int:
    return sum(tensor.nbytes for pair in kv for tensor in pair)
