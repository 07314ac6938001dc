"""The next-token loss of a batch, and its exact mean over a whole split.

Nothing here draws random numbers or changes weights. The training loop, the evaluation and the lens use the same sum.

Axis letters: `B` sequences in a batch, `T` positions, `V` vocabulary.
"""

import itertools
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.device import accumulation_dtype
from octavo.distributed import ALONE, World
from octavo.model import GPT


class TokenSequence(Protocol):
    """Token ids with a length and slices: a NumPy array, or the shards of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy, in nats, of logits (B, T, V) against the ids that follow, (B, T). Always in float32.

    A sum rather than a mean: with gradient accumulation the caller divides once by the number of targets of the whole
    batch, so micro-batches of different sizes are weighted correctly.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


def split_loss(
    model: GPT,
    tokens: TokenSequence,
    block_size: int,
    tokens_per_batch: int | None = None,
    world: World = ALONE,
) -> float:
    """Mean loss in nats per token over all of `tokens`, in consecutive sequences of `block_size`.

    Each token except the first is predicted exactly once, from the tokens before it in its sequence. Computed in
    float32 whatever the training precision, so the same weights give the same loss on every device, up to rounding.
    `tokens_per_batch` changes speed and memory only; by default it is chosen for the model's device. The batches are
    divided among the processes of `world`.
    """
    was_training = model.training
    model.eval()
    device = model.lm_head.weight.device
    total = torch.zeros((), dtype=accumulation_dtype(device), device=device)
    tokens_per_batch = tokens_per_batch or default_tokens_per_batch(device, model.settings.vocab_size)
    with torch.inference_mode(), kernels.fast_path(device):
        batches = sequence_batches(tokens, block_size, tokens_per_batch)
        for batch in itertools.islice(batches, world.rank, None, world.size):
            ids = torch.from_numpy(batch).to(device)  # (B, T + 1)
            total += next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    model.train(was_training)
    world.sum([total])
    return total.item() / (len(tokens) - 1)


def default_tokens_per_batch(device: torch.device, vocab_size: int) -> int:
    """How many tokens to run through a model at once for their logits.

    On a CPU the batch should fit into the caches: 64,000 tokens at once took 1.5 times as long as 4,096.
    """
    if device.type == "cpu":
        return min(1 << 12, (64 << 20) // vocab_size)  # float32 logits of at most 256 MiB
    return min(1 << 17, (512 << 20) // vocab_size)


def sequence_batches(tokens: TokenSequence, block_size: int, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Split `tokens` into consecutive sequences, as batches (B, T + 1) of int64.

    The last token of a sequence is the first of the next, so that every token except the very first is a target exactly
    once. Tokens left at the end are a batch of one shorter sequence. A batch has at most `tokens_per_batch` tokens, but
    at least one sequence.
    """
    rows = max(1, tokens_per_batch // block_size)
    full_sequences = (len(tokens) - 1) // block_size
    for first in range(0, full_sequences, rows):
        count = min(rows, full_sequences - first)
        start = first * block_size
        flat = np.asarray(tokens[start : start + count * block_size + 1], dtype=np.int64)
        yield np.lib.stride_tricks.sliding_window_view(flat, block_size + 1)[::block_size].copy()
    rest = np.asarray(tokens[full_sequences * block_size :], dtype=np.int64)
    if len(rest) > 1:
        yield rest[None]
