"""The bf16 weights that a GPU computes with, beside the float32 master weights that are trained.

Autocast casts every weight again in each forward and keeps the residual stream in float32. A copy that is refreshed
once per update avoids both. The largest matmul is the output head's, and GPUs are fastest when its sides are multiples
of 64: the copy's vocabulary is rounded up, and the caller drops the logits beyond the model's own vocabulary.

On a CPU the copy was 1.1 times slower than autocast (measured), so only GPUs use it.
"""

import dataclasses

import torch

from octavo.model import GPT

_VOCAB_MULTIPLE = 64


class Bf16Weights:
    """A copy of a model in bf16, `model`, whose gradients are added to those of the original."""

    def __init__(self, model: GPT) -> None:
        vocab_size = -(-model.settings.vocab_size // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
        with torch.device("meta"):
            copy = GPT(dataclasses.replace(model.settings, vocab_size=vocab_size))
        self.model = copy.to_empty(device=model.lm_head.weight.device).to(torch.bfloat16)
        self.model.tie()
        for parameter in self.model.parameters():
            parameter.detach().zero_()  # the added rows of the vocabulary stay zero
        # (master, copy) for each parameter. Only wte, which is also the output head, has more rows in the copy.
        self._pairs = list(zip(model.parameters(), self.model.parameters(), strict=True))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the master weights as they are now."""
        torch._foreach_copy_([copy[: len(master)] for master, copy in self._pairs], [m for m, _ in self._pairs])

    @torch.no_grad()
    def accumulate_master_gradients(self) -> None:
        """Add the copy's gradients to the master weights' gradients, in float32, and clear the copy's."""
        for master, _ in self._pairs:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        # The conditions are for mypy: every parameter has both gradients, so the two lists pair up.
        totals = [master.grad for master, _ in self._pairs if master.grad is not None]
        torch._foreach_add_(totals, [copy.grad[: len(m)] for m, copy in self._pairs if copy.grad is not None])
        self.model.zero_grad()
