"""Which tokens a training step uses: a pure function of the corpus, the settings and the step.

Each epoch cuts the text into sequences of `block_size` tokens, starting at a random offset, and visits them in a random
order without replacement. Offset and order are computed by hashing (seed, epoch). So nothing is stored that grows with
the corpus, a resumed run uses the same tokens, and several processes divide the same batch among them.

Axis letters: `B` sequences in a batch, `T` positions in a sequence.
"""

import functools
from typing import Protocol

import numpy as np

from octavo.data.shards import Shards
from octavo.distributed import ALONE, World
from octavo.errors import OctavoError
from octavo.settings import Settings


class Sampler:
    """Batches of a sequence of ids. The batch of any step can be computed, in any order."""

    def __init__(self, tokens: Shards, block_size: int, batch_size: int, seed: int) -> None:
        self._tokens, self.length = tokens, len(tokens)
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        if self.length < block_size + 1:
            raise OctavoError(
                f"the training split has {self.length} tokens; a sequence needs block_size + 1 = {block_size + 1}",
                f"a longer text, or --block-size {max(1, self.length // 8)}",
            )
        # An epoch has one sequence fewer than would fit, so that any offset below block_size is possible. 10 tokens
        # have room for 3 sequences of block_size 3 and the last target, so an epoch has 2, from offset 0, 1 or 2 on.
        # If only one sequence fits, an epoch has that one, and there are fewer offsets.
        self.sequences_per_epoch = max(1, (self.length - 1) // block_size - 1)
        self._offset_count = min(block_size, self.length - self.sequences_per_epoch * block_size)

    def starts(self, step: int) -> np.ndarray:
        """The position of the first token of each sequence in the batch, (B,)."""
        index = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, index_in_epoch = np.divmod(index, self.sequences_per_epoch)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            _, offset_hash = _epoch_hashes(self.seed, int(epoch))
            offset = offset_hash % self._offset_count
            sequence = permute(index_in_epoch[rows], self.sequences_per_epoch, self.seed, int(epoch))
            starts[rows] = offset + sequence * self.block_size
        return starts

    def batch(self, step: int, rows: slice = slice(None)) -> np.ndarray:
        """The batch of a step, int64 (B, T + 1): inputs are all but the last column, targets all but the first.

        With `rows`, only these rows of it.
        """
        return self._tokens.sequences(self.starts(step)[rows], self.block_size + 1)


class BatchOfStep(Protocol):
    """A function from a step to its batch, (B, T + 1), that leaves out the first `skipped` batches."""

    def __call__(self, step: int, skipped: int = 0) -> np.ndarray: ...


def batches(tokens: Shards, settings: Settings, world: World = ALONE) -> BatchOfStep:
    """The batches of a run. If several processes train, each gets its rows of every batch.

    The first `curriculum_fraction` of the steps use N times as many sequences of block_size / N tokens, where N is
    `curriculum_splits`: attention is cheaper, and the gradient averages over more contexts (Li et al., "Curriculum
    Learning: A Regularization Method for Efficient and Stable Billion-Scale GPT Model Pre-Training", 2021).
    If a run is resumed with another `max_steps`, the sequences become longer at another step.
    """
    N = settings.curriculum_splits
    full = Sampler(tokens, settings.block_size, settings.batch_size, settings.seed)
    short = Sampler(tokens, settings.block_size // N, settings.batch_size * N, settings.seed)

    def batch_of_step(step: int, skipped: int = 0) -> np.ndarray:
        sampler = short if step < settings.curriculum_fraction * settings.max_steps else full
        return sampler.batch(step + skipped, world.rows(sampler.batch_size))

    return batch_of_step


def permute(index: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """The images of `index` under a permutation of range(size), which follows from (seed, epoch).

    A four-round Feistel network on the next even number of bits, applied repeatedly until the result is below `size`:
    cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys, _ = _epoch_hashes(seed, epoch)
    out = index.astype(np.uint64)
    pending = np.ones(len(out), dtype=bool)
    while pending.any():
        left, right = out[pending] >> half, out[pending] & mask
        for key in round_keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        out[pending] = (left << half) | right
        pending = out >= size
    return out


@functools.lru_cache(maxsize=4)  # each step asks for those of its epoch twice
def _epoch_hashes(seed: int, epoch: int) -> tuple[list[int], int]:
    """Five hashes of (seed, epoch): the four round keys of `permute`, and one for the offset of the epoch.

    The seed is hashed first. With seed XOR epoch, two seeds would have the same epochs in another order.
    """
    hashed_seed = int(_mix(np.array([seed], dtype=np.uint64), 0)[0])
    key = int(_mix(np.array([epoch], dtype=np.uint64), hashed_seed)[0])
    *round_keys, offset_hash = _mix(np.arange(5, dtype=np.uint64), key).tolist()
    return round_keys, offset_hash


def _mix(x: np.ndarray, key: int) -> np.ndarray:
    """A 64-bit hash of each x and the key: the finalizer of splitmix64 (Steele et al., 2014). It wraps around."""
    x = (x ^ np.uint64(key)) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed
