"""The next-token loss of a batch, and its exact mean over a whole split.

Nothing here draws random numbers or changes weights. `next_token_loss` is the loss of training, evaluation and the
lens. Where `octavo.fused_step` runs, its C code computes the same loss.

Axis letters: `B` sequences in a batch, `T` positions, `V` vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from octavo import kernels
from octavo.device import accumulation_dtype
from octavo.distributed import ALONE, World
from octavo.fused_step import forward_loss
from octavo.model import GPT


class TokenSequence(Protocol):
    """Token ids with a length and slices: a NumPy array, or the shards of a split."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> np.ndarray: ...


class StoppedError(Exception):
    """The caller asked to stop before the loss of the whole split was computed."""


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
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[int], object] = lambda tokens: None,
) -> float:
    """Mean loss in nats per token over all of `tokens`, in consecutive sequences of `block_size`.

    Each token except the first is predicted exactly once, from the tokens before it in its sequence.

    The loss is computed in float32 whatever the training precision, so the same weights give the same loss on every
    device, up to rounding. There are two exceptions: within `octavo.device.tf32_matmuls` an NVIDIA GPU rounds the
    inputs of matmuls, and a sharded model that trains on a GPU in bf16 has bf16 weights here too (docs/scale.md). On an
    x86 processor `octavo.fused_step` runs the forward if it supports the model.

    `tokens_per_batch` changes speed and memory only; by default it is chosen for the model's device. The batches are
    divided among the processes of `world`. `should_stop` is called before each batch. Once it returns true in one of
    the processes, all raise `StoppedError`. All run the model equally often, since it may be sharded. `on_batch` is
    called after each batch with the number of tokens predicted so far.
    """
    was_training = model.training
    model.eval()
    device = model.lm_head.weight.device
    total = torch.zeros((), dtype=accumulation_dtype(device), device=device)
    tokens_per_batch = tokens_per_batch or default_tokens_per_batch(device, model.settings.vocab_size)
    batch_loss = forward_loss(model)
    slices = batch_slices(len(tokens), block_size, tokens_per_batch)
    # FSDP2 fails in inference mode (PyTorch's issue 197327).
    no_gradients = torch.inference_mode() if world is ALONE else torch.no_grad()
    try:
        with no_gradients, kernels.fast_path(device):
            for first in range(0, len(slices), world.size):  # a round: one batch for each process
                if world.any(should_stop()):
                    raise StoppedError
                has_batch = first + world.rank < len(slices)
                batch = read_batch(tokens, slices[first + world.rank if has_batch else first], block_size)
                ids = torch.from_numpy(batch).to(device)  # (B, T + 1)
                loss = batch_loss(ids) if batch_loss else next_token_loss(model(ids[:, :-1]), ids[:, 1:])
                total += loss if has_batch else 0
                on_batch(slices[min(first + world.size, len(slices)) - 1].stop - 1)
    finally:
        model.train(was_training)
    world.all_reduce([total])
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
    for part in batch_slices(len(tokens), block_size, tokens_per_batch):
        yield read_batch(tokens, part, block_size)


def batch_slices(length: int, block_size: int, tokens_per_batch: int) -> list[slice]:
    """For each batch of `sequence_batches`, the slice of its tokens; `length` is the number of all tokens."""
    tokens = max(1, tokens_per_batch // block_size) * block_size
    end = (length - 1) // block_size * block_size  # of the full sequences
    slices = [slice(start, min(start + tokens, end) + 1) for start in range(0, end, tokens)]
    return slices + [slice(end, length)] * (end < length - 1)


def read_batch(tokens: TokenSequence, part: slice, block_size: int) -> np.ndarray:
    """The sequences (B, T + 1) in one of the `batch_slices`, in int64."""
    flat = np.asarray(tokens[part], dtype=np.int64)
    length = min(block_size, len(flat) - 1)
    return np.lib.stride_tricks.sliding_window_view(flat, length + 1)[::length].copy()
