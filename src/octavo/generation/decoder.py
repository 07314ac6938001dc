"""The interface between the engine and the code that runs the model: a batch of rows in, logits out.

A row is one token of one sequence: (token id, slot, position). A slot is the KV cache of one sequence, up to
`block_size` positions. A prompt in prefill has many rows in a batch, a sequence that decodes has one. The rows of a
slot are adjacent and in the order of their positions.

`TorchDecoder` implements the interface with the model's own modules on any device, `NativeDecoder` in C on a CPU.

Axis letters: `N` rows, `W` rows whose logits are needed, `V` vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

PrefixKV = list[tuple[Tensor, Tensor]]  # keys and values of the first positions of a slot, for each layer


@dataclass
class Batch:
    """The rows of one step as parallel lists, and the rows whose logits are needed."""

    ids: list[int] = field(default_factory=list)  # (N,)
    slots: list[int] = field(default_factory=list)  # (N,)
    positions: list[int] = field(default_factory=list)  # (N,)
    logit_rows: list[int] = field(default_factory=list)  # (W,) row numbers, in the order of the logits

    def add(self, ids: Sequence[int], slot: int, start: int, n_logits: int) -> None:
        """Append consecutive tokens of a slot, from position `start` on. The last `n_logits` of them need logits."""
        self.ids += ids
        self.slots += [slot] * len(ids)
        self.positions += range(start, start + len(ids))
        self.logit_rows += range(len(self.ids) - n_logits, len(self.ids))


class Decoder(Protocol):
    """Runs the model on batches of rows and owns the KV cache of every slot."""

    is_batch_invariant: bool  # whether a row's logits have the same bits whatever other rows are in the batch

    def forward(self, batch: Batch) -> Tensor:
        """Compute the rows, store their keys and values; return the logits (W, V), in float32 on the CPU."""

    def save_prefix(self, slot: int, length: int) -> PrefixKV:
        """Copy the keys and values of the first `length` positions of a slot."""

    def restore_prefix(self, slot: int, prefix: PrefixKV) -> None:
        """Write the result of `save_prefix` into a slot."""
