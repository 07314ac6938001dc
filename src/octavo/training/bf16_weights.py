"""The bf16 copy of a model that a GPU computes with, beside the float32 weights that are trained.

Autocast casts every weight anew in each forward, and keeps the residual stream in float32. A copy that is
refreshed once an update does neither. The head's product is the widest of all, and GPUs want its sides to be
multiples of 64: the copy's vocabulary is rounded up, and whoever calls it leaves those logits out.

On CPUs the copy was 1.1 times slower than autocast, so only GPUs take it.
"""

import dataclasses

import torch

from octavo.model import GPT

_MULTIPLE = 64


class Bf16Weights:
    """A model's weights in bf16. Its gradients go to the model's own parameters."""

    def __init__(self, model: GPT) -> None:
        rounded = -(-model.settings.vocab_size // _MULTIPLE) * _MULTIPLE
        with torch.device("meta"):
            copy = GPT(dataclasses.replace(model.settings, vocab_size=rounded))
        self.model = copy.to_empty(device=model.lm_head.weight.device).to(torch.bfloat16)
        self.model.tie()
        for parameter in self.model.parameters():
            parameter.detach().zero_()  # the rows that only the copy has stay so
        # Each of the model's parameters with its copy, of which wte alone is longer.
        self.pairs = list(zip(model.parameters(), self.model.parameters(), strict=True))

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the model's weights as they are now."""
        torch._foreach_copy_([copy[: len(own)] for own, copy in self.pairs], [own for own, _ in self.pairs])

    @torch.no_grad()
    def accumulate_into_master_weights(self) -> None:
        """Add the copy's gradients to the model's, in float32, and forget them."""
        for own, _ in self.pairs:
            if own.grad is None:
                own.grad = torch.zeros_like(own)
        into = [own.grad for own, _ in self.pairs if own.grad is not None]
        torch._foreach_add_(into, [copy.grad[: len(own)] for own, copy in self.pairs if copy.grad is not None])
        self.model.zero_grad()
