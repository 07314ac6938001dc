"""Which tokens a step sees: a pure function of (corpus, settings, step).

An epoch cuts the text into windows of `block_size` from a random phase, and visits them in a random order
without replacement. Order and phase come from hashing (seed, epoch), so nothing is stored that grows with
the corpus, a resumed run sees the same tokens, and processes only cut the same batch up.

The axis letters: `B` sequences in a batch, `T` positions in a window.
"""

from collections.abc import Callable

import numpy as np

from octavo.data.shards import Shards
from octavo.errors import OctavoError
from octavo.settings import Settings


class Sampler:
    """Batches of a row of ids. `batch(step)` may be asked in any order."""

    def __init__(self, tokens: Shards, block_size: int, batch_size: int, seed: int) -> None:
        self._tokens, self.length = tokens, len(tokens)
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        if self.length < block_size + 1:
            raise OctavoError(
                f"the training text has {self.length} tokens, and a window needs block_size + 1 = {block_size + 1}",
                f"a longer text, or --block-size {max(1, self.length // 8)}",
            )
        whole = (self.length - 1) // block_size
        # One window fewer than fit leaves room for any phase; a text of a single window has what room it has.
        self.windows = max(1, whole - 1)
        self._phases = min(block_size, self.length - self.windows * block_size)

    def starts(self, step: int) -> np.ndarray:
        """Where each of the batch's windows begins in the text, (B,)."""
        place = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.uint64)
        epochs, within = np.divmod(place, np.uint64(self.windows))
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            phase = int(_keys(self.seed, int(epoch))[-1]) % self._phases
            window = permuted(within[rows], self.windows, self.seed, int(epoch))
            starts[rows] = phase + window.astype(np.int64) * self.block_size
        return starts

    def batch(self, step: int) -> np.ndarray:
        """The batch of a step, int64 (B, T + 1): inputs without the last column, targets without the first."""
        return self._tokens.windows(self.starts(step), self.block_size + 1)


def batches(tokens: Shards, settings: Settings) -> Callable[[int], np.ndarray]:
    """The batch of any step, (B, T + 1); settings that differ in `max_steps` alone change lengths at another step.

    At first, where the settings say so, T is a part of the block and B as many times more: attention costs that
    much less, and a batch of more places is a better one (Li et al., "Curriculum Learning: A Regularization
    Method for Efficient and Stable Billion-Scale GPT Model Pre-Training", 2021).
    """
    parts = settings.curriculum_splits
    whole = Sampler(tokens, settings.block_size, settings.batch_size, settings.seed)
    short = Sampler(tokens, settings.block_size // parts, settings.batch_size * parts, settings.seed)
    return lambda step: (short if step < settings.curriculum_fraction * settings.max_steps else whole).batch(step)


def permuted(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of range(size), chosen by (seed, epoch), puts each index.

    A four-round Feistel network on the next even number of bits, walked along its cycles until it falls
    below `size` (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    keys = _keys(seed, epoch)
    out = index.astype(np.uint64)
    todo = np.ones(len(out), dtype=bool)
    while todo.any():
        left, right = out[todo] >> half, out[todo] & mask
        for key in keys[:4]:
            left, right = right, left ^ (_mix(right, int(key)) & mask)
        out[todo] = (left << half) | right
        todo = out >= size
    return out


def _keys(seed: int, epoch: int) -> np.ndarray:
    """Five numbers of a seed's epoch. The seed is hashed first: one xor with it would only swap epochs."""
    hashed = int(_mix(np.array([seed], dtype=np.uint64), 0)[0])
    return _mix(np.arange(5, dtype=np.uint64), int(_mix(np.array([epoch], dtype=np.uint64), hashed)[0]))


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of each x and the key: splitmix64's finaliser (Steele et al., 2014)."""
    with np.errstate(over="ignore"):  # it is meant to wrap around
        x = (x ^ np.uint64(key % 2**64)) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
