"""The next-token loss, and its exact mean over a whole split.

The axis letters: `B` windows in a batch, `T` positions in a window, `V` the vocabulary.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.model import GPT


class Row(Protocol):
    """Ids in a row, an array or files: what has a length and gives stretches."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """The summed cross-entropy, in nats, of logits (B, T, V) against the ids that came next, (B, T).

    A sum, so that whoever accumulates divides once by the true number of targets. Always in float32.
    """
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum")


def split_loss(model: GPT, tokens: Row, block_size: int) -> float:
    """Mean loss in nats per token over all of `tokens`, in consecutive windows of `block_size`.

    Every token but the first is predicted once, with between 0 and `block_size` - 1 tokens of its window
    before the one that predicts it. In float32 whatever the training precision, so it is one number everywhere.
    """
    was_training = model.training
    model.eval()
    device = model.lm_head.weight.device
    total = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode(), kernels.fast(device):
        for window in windows(tokens, block_size, _at_once(device, model.settings.vocab_size)):
            ids = torch.from_numpy(window).to(device)
            total += next_token_loss(model(ids[:, :-1]), ids[:, 1:])
    model.train(was_training)
    return total.item() / (len(tokens) - 1)


def _at_once(device: torch.device, vocab_size: int) -> int:
    """Tokens in a batch. On a CPU they stay in its caches: 64,000 at once took 1.5 times as long as 4,096."""
    if device.type == "cpu":
        return min(1 << 12, (64 << 20) // vocab_size)  # float32 logits of at most 256 MB
    return min(1 << 17, (512 << 20) // vocab_size)


def windows(tokens: Row, block_size: int, at_once: int) -> Iterator[np.ndarray]:
    """All of `tokens` as batches (B, T + 1) of int64; windows share the one token where they meet.

    The last batch is the rest, a single shorter window. A batch has at most `at_once` tokens, or one window.
    """
    rows = max(1, at_once // block_size)
    whole = (len(tokens) - 1) // block_size
    for first in range(0, whole, rows):
        count = min(rows, whole - first)
        start = first * block_size
        flat = np.asarray(tokens[start : start + count * block_size + 1], dtype=np.int64)
        yield np.lib.stride_tricks.sliding_window_view(flat, block_size + 1)[::block_size].copy()
    rest = np.asarray(tokens[whole * block_size :], dtype=np.int64)
    if len(rest) > 1:
        yield rest[None]
