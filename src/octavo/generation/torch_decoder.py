"""The decoder that runs the model's own PyTorch modules, on any device: the reference and the fallback.

`octavo.generation.native` must compute the same; tests/test_engine.py compares the two.

Axis letters: `N` rows, `W` rows whose logits are needed, `B` sequences in a sub-batch, `T` rows of each of them, `C`
width of the residual stream, `V` vocabulary.
"""

import contextlib
import itertools

import torch
from torch import Tensor

from octavo import kernels
from octavo.generation.decoder import Batch, PrefixKV
from octavo.model import GPT, KVCache


class TorchDecoder:
    """A `Decoder` whose slots are the sequences of one `KVCache`."""

    is_batch_invariant = False  # PyTorch's kernels round differently for other numbers of rows

    def __init__(self, model: GPT, slots: int) -> None:
        self.model, self.cache = model, KVCache(model, slots)
        self.device, self.dtype = model.lm_head.weight.device, model.lm_head.weight.dtype

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        # Row numbers, grouped by slot. Slots with the same number of rows run as one sub-batch.
        groups = [list(rows) for _, rows in itertools.groupby(range(len(batch.ids)), key=batch.slots.__getitem__)]
        shape = len(batch.ids), self.model.settings.n_embd
        hidden = torch.empty(shape, dtype=self.dtype, device=self.device)  # (N, C)
        # One row per sequence is too little work for oneDNN to pay off, and oneDNN compiles a kernel for every length
        # of a sequence: 0.7 MB each, never freed.
        only_decode = self.device.type == "cpu" and len(groups) == len(batch.ids)
        with contextlib.nullcontext() if only_decode else kernels.fast_path(self.device, with_mask=True):
            for T in sorted({len(rows) for rows in groups}):
                same_length = [rows for rows in groups if len(rows) == T]
                starts = [rows[0] for rows in same_length]
                cache = self.cache.select([batch.slots[i] for i in starts], [batch.positions[i] for i in starts])
                idx = torch.tensor([[batch.ids[i] for i in rows] for rows in same_length], device=self.device)  # (B, T)
                hidden[torch.tensor(same_length, device=self.device)] = self.model.hidden(idx, cache)  # (B, T, C)
            return self.model.unembed(hidden[batch.logit_rows]).float().cpu()  # (W, V)

    def save_prefix(self, slot: int, length: int) -> PrefixKV:
        pairs = zip(self.cache.keys, self.cache.values, strict=True)
        return [(keys[slot, :, :length].clone(), values[slot, :, :length].clone()) for keys, values in pairs]

    def restore_prefix(self, slot: int, prefix: PrefixKV) -> None:
        for keys, values, (k, v) in zip(self.cache.keys, self.cache.values, prefix, strict=True):
            keys[slot, :, : k.size(1)], values[slot, :, : v.size(1)] = k, v
