"""int8 weights: how a matrix is rounded, and a model with the rounded weights in float32.

A weight matrix is rounded together with the gain of its inputs. A few channels of a trained GPT-2 have a gain many
times that of the others and a correspondingly small weight, which would be rounded to 0 (Wei et al., "Outlier
Suppression", 2022, 4.1). What computes the inputs is divided by the same gain, so the product is the same: the gain and
bias of the layer norm before the matrix, or the values of attention before its output projection.

With int8 weights the KV cache is int8 too, with one scale for the key of a position and head, and one for its value.
So the channels of a head must have the same size: values are divided by the gain above, keys by their own size, by
which queries are multiplied.

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


def input_gains(model: GPT) -> Iterator[Tensor]:
    """The gain (C,) of each matrix's inputs, in the order of `linears_with_norms`."""
    for block in model.transformer.h:
        yield _norm_gain(block.ln_1)  # type: ignore[arg-type]
        yield _output_rms(block.attn.c_attn, block.ln_1)[2]  # type: ignore[union-attr, arg-type]
        yield _norm_gain(block.ln_2)  # type: ignore[arg-type]
        yield _ones(4 * model.settings.n_embd)
    yield _norm_gain(model.transformer.ln_f)


def output_factors(model: GPT) -> Iterator[Tensor]:
    """What each matrix's outputs (O,) are multiplied by, in the order of `linears_with_norms`."""
    C = model.settings.n_embd
    for block in model.transformer.h:
        _, keys, values = _output_rms(block.attn.c_attn, block.ln_1)  # type: ignore[union-attr, arg-type]
        yield torch.cat([keys, 1 / keys, 1 / values])
        yield from map(_ones, (C, 4 * C, C))
    yield _ones(model.settings.vocab_size)


def _ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float32, device="cpu")


@torch.no_grad()
def _norm_gain(norm: nn.LayerNorm) -> Tensor:
    gain = norm.weight.detach().clone()
    gain[gain.abs() <= 1e-6 * gain.abs().max()] = 1  # a channel that the norm switches off: nothing to divide by
    return gain


@torch.no_grad()
def _output_rms(c_attn: nn.Linear, norm: nn.LayerNorm) -> Tensor:
    """The root mean square of each query, key and value channel (3, C), if the normalized inputs are independent."""
    mean = c_attn.weight.new_zeros(len(c_attn.weight)) if c_attn.bias is None else c_attn.bias.detach()
    if norm.bias is not None:
        mean = mean + c_attn.weight @ norm.bias
    variance = (c_attn.weight * norm.weight).square().sum(1)
    rms = (variance + mean.square()).sqrt().view(3, -1)
    return rms.clamp_min(1e-6 * float(rms.max())).clamp_min(1e-30)


@torch.no_grad()
def quantize_int8(weight: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight (O, C), given the gain of its inputs (C,). Returns int8 values (O, C) and a scale per output (O,).

    The weight is about `values * scale[:, None] / gain`.
    """
    weight = weight.detach() * gain
    scale = weight.abs().amax(1).clamp_min(1e-30) / 127
    return (weight / scale[:, None]).round().to(torch.int8), scale


def round_to_int8(model: GPT) -> GPT:
    """A copy of the model whose float32 weights have the values that int8 can represent."""
    model = copy.deepcopy(model)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())  # untied: the embedding stays exact
    gains = list(input_gains(model))
    for (linear, _), gain in zip(linears_with_norms(model), gains, strict=True):
        values, scale = quantize_int8(linear.weight, gain)
        linear.weight.data = values.float() * scale[:, None] / gain
    return model
