"""Rows of (token, slot, position) in, logits out: the model as the engine runs it.

A slot is the memory of one text: keys and values of up to `block_size` positions. Rows of one slot stand side by
side, in the order of their positions; a prompt is many rows, a text under way one. `TorchDecoder` runs them with the
model's own steps on any device; `octavo.generation.native` in C, on a CPU. What both share is tested to be the same.

The axis letters: `N` rows, `W` of them whose logits are wanted, `T` positions, `V` the vocabulary.
"""

import contextlib
import copy
import itertools
from typing import Protocol

import torch
from torch import Tensor

from octavo import kernels
from octavo.errors import OctavoError
from octavo.generation import native
from octavo.model import GPT, KVCache

QUANTIZE = ("none", "int8")
Kept = list[tuple[Tensor, Tensor]]  # keys and values of the first positions of a slot, layer by layer


class Decoder(Protocol):
    """What the engine asks of whoever runs the model."""

    def forward(self, ids: list[int], slots: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """Run N rows; give the logits (W, V) of those that `wanted` counts out, in float32 on the CPU."""

    def keep(self, slot: int, length: int) -> Kept:
        """A copy of what a slot holds of its first positions."""

    def restore(self, slot: int, kept: Kept) -> None:
        """Put such a copy into a slot."""


def decoder(model: GPT, slots: int, quantize: str = "none", use_native: bool = True) -> tuple[Decoder, list[str]]:
    """The fastest decoder there is for this model and machine, and a note where that isn't the expected one."""
    if quantize not in QUANTIZE:
        raise OctavoError(f"quantize={quantize!r} is not one of {', '.join(QUANTIZE)}", "--quantize int8")
    on_cpu = model.lm_head.weight.device.type == "cpu"
    if quantize == "int8" and not on_cpu:
        raise OctavoError("int8 weights are for a CPU", "--device cpu, or no --quantize")
    notes = []
    if use_native and on_cpu:
        try:
            return native.NativeDecoder(model, slots, quantize == "int8"), []
        except native.UnavailableError as error:
            notes.append(f"{error}, so text is written by PyTorch alone, at about half the speed")
            if quantize == "int8":
                notes.append("int8 weights are rounded all the same, but take the room and time of float32")
    return TorchDecoder(rounded(model) if quantize == "int8" else model, slots), notes


class TorchDecoder:
    """The model's own steps on a cache with a row for each slot."""

    def __init__(self, model: GPT, slots: int) -> None:
        self.model, self.cache = model, KVCache(model, slots)
        self.device = model.lm_head.weight.device

    @torch.inference_mode()
    def forward(self, ids: list[int], slots: list[int], positions: list[int], wanted: list[int]) -> Tensor:
        """As `Decoder` has it. Slots with as many rows as one another run as one batch."""
        runs = [list(run) for _, run in itertools.groupby(range(len(ids)), key=slots.__getitem__)]
        hidden = torch.empty(len(ids), self.model.settings.n_embd, device=self.device)
        # A row a text is hardly a product, and oneDNN compiles anew for each length of text: 0.7 MB apiece, which stay.
        plainly = self.device.type == "cpu" and len(runs) == len(ids)
        with contextlib.nullcontext() if plainly else kernels.fast_path(self.device):
            for T in sorted({len(run) for run in runs}):
                batch = [run for run in runs if len(run) == T]
                cache = self.cache.at([slots[run[0]] for run in batch], [positions[run[0]] for run in batch])
                idx = torch.tensor([[ids[row] for row in run] for run in batch], device=self.device)  # (B, T)
                rows = torch.tensor(batch, device=self.device)
                hidden[rows] = self.model.hidden(idx, cache)  # (B, T, C)
            return self.model.unembed(hidden[wanted]).float().cpu()  # (W, V)

    def keep(self, slot: int, length: int) -> Kept:
        """As `Decoder` has it."""
        pairs = zip(self.cache.keys, self.cache.values, strict=True)
        return [(keys[slot, :, :length].clone(), values[slot, :, :length].clone()) for keys, values in pairs]

    def restore(self, slot: int, kept: Kept) -> None:
        """As `Decoder` has it."""
        for keys, values, (k, v) in zip(self.cache.keys, self.cache.values, kept, strict=True):
            keys[slot, :, : k.size(1)], values[slot, :, : v.size(1)] = k, v


def rounded(model: GPT) -> GPT:
    """A copy whose weights are those that int8 stands for."""
    model = copy.deepcopy(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())  # the embedding stays exact
    for linear, norm in native.linears(model):
        whole, scale, gain = native.to_int8(linear.weight, norm)
        linear.weight.data = whole.float() * scale[:, None] / gain
    return model
