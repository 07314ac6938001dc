"""int8 weights: how a matrix is rounded, and a model with the rounded weights in float32.

A weight matrix is rounded together with the gain of the layer norm before it. A few channels of a trained GPT-2 have
a gain many times that of the others and a correspondingly small weight, which would be rounded to 0 (Wei et al.,
"Outlier Suppression", 2022, 4.1). The norm's gain and bias are divided by the same factor, so the product is the same.

Axis letters: `O` outputs, `C` inputs of a matrix.
"""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from octavo.model import GPT


def linears_with_norms(model: GPT) -> Iterator[tuple[nn.Linear, nn.LayerNorm | None]]:
    """Every matrix of the model in the order of the forward pass, with the layer norm directly before it, if any."""
    for block in model.transformer.h:
        yield block.attn.c_attn, block.ln_1  # type: ignore[union-attr, misc]
        yield block.attn.c_proj, None  # type: ignore[union-attr, misc]
        yield block.mlp.c_fc, block.ln_2  # type: ignore[union-attr, misc]
        yield block.mlp.c_proj, None  # type: ignore[union-attr, misc]
    yield model.lm_head, model.transformer.ln_f


@torch.no_grad()
def quantize_int8(weight: Tensor, norm: nn.LayerNorm | None) -> tuple[Tensor, Tensor, Tensor]:
    """Round a weight (O, C). Returns int8 values (O, C), a scale per output (O,) and the norm's gain per input (C,).

    The weight is about `values * scale[:, None] / gain`.
    """
    gain = torch.ones(weight.size(1)) if norm is None else norm.weight.detach().clone()
    gain[gain.abs() <= 1e-6 * gain.abs().max()] = 1  # a channel that the norm switches off: nothing to divide by
    weight = weight.detach() * gain
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale, gain


def round_to_int8(model: GPT) -> GPT:
    """A copy of the model whose float32 weights have the values that int8 can represent."""
    model = copy.deepcopy(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # untied: the embedding stays exact
    for linear, norm in linears_with_norms(model):
        values, scale, gain = quantize_int8(linear.weight, norm)
        linear.weight.data = values.float() * scale[:, None] / gain
    return model
