"""Prefix cache: keys and values of earlier prompts, reused by a prompt that starts with the same tokens.

Keys and values depend only on a token, the tokens before it and its position, so a prompt can reuse those of another
one as far as the two are equal. The cache scope is part of the key: requests of different scopes never share a
prefix, so response times reveal nothing about other clients' prompts.

The cached prompts are kept in lexicographic order. The cached prompt that shares the longest prefix with a new prompt
is a neighbor of the new one's place in this order, so a search among 30,000 prompts compares only a few.
"""

import bisect
import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from octavo.generation.decoder import PrefixKV

_MIN_TOKENS = 16  # shorter prefixes are computed faster than looked up
Key = tuple[str, bytes]  # scope, and token ids as big-endian numbers: their bytes have the order of the ids


@dataclass(frozen=True)
class Prefix:
    """A cached prompt, of which the first `length` positions can be reused."""

    kv: PrefixKV
    length: int


class PrefixCache:
    """Holds at most `max_bytes` of keys, values and token ids; evicts the least recently used prompt."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._entries: collections.OrderedDict[Key, PrefixKV] = collections.OrderedDict()  # by time of use
        self._sorted: list[Key] = []

    def find(self, scope: str, ids: Sequence[int]) -> Prefix | None:
        """The longest cached prefix of `ids`. It never covers the last token, whose logits are needed."""
        key = _key(scope, ids[:-1])
        index = bisect.bisect_left(self._sorted, key)
        best, best_length = None, _MIN_TOKENS - 1
        for neighbor in self._sorted[max(0, index - 1) : index + 1]:
            if (length := _common_length(neighbor, key)) > best_length:
                best, best_length = neighbor, length
        if best is None:
            return None
        self._entries.move_to_end(best)
        return Prefix(self._entries[best], best_length)

    def add(self, scope: str, ids: Sequence[int], save: Callable[[], PrefixKV]) -> None:
        """Cache a prompt. `save` is called only if the prompt isn't cached yet."""
        key = _key(scope, ids)
        if not self.max_bytes or len(ids) < _MIN_TOKENS:
            return
        if key in self._entries:
            self._entries.move_to_end(key)
            return
        self._entries[key] = kv = save()
        bisect.insort(self._sorted, key)
        self.bytes += _size(key, kv)
        while self.bytes > self.max_bytes:
            evicted, kv = self._entries.popitem(last=False)
            del self._sorted[bisect.bisect_left(self._sorted, evicted)]
            self.bytes -= _size(evicted, kv)


def _key(scope: str, ids: Sequence[int]) -> Key:
    return scope, np.array(ids, dtype=">u4").tobytes()


def _common_length(a: Key, b: Key) -> int:
    """The number of tokens in the longest common prefix; 0 for different scopes."""
    if a[0] != b[0]:
        return 0
    count = min(len(a[1]), len(b[1])) // 4
    differs = np.flatnonzero(np.frombuffer(a[1], ">u4", count) != np.frombuffer(b[1], ">u4", count))
    return int(differs[0]) if len(differs) else count


def _size(key: Key, kv: PrefixKV) -> int:
    return len(key[1]) + sum(tensor.nbytes for pair in kv for tensor in pair)
