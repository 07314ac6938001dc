"""A text's way through the model, step by step, and what fused attention hides of it.

The steps are the model's own (`octavo.model`), called in its own order, so what is seen is what was trained. The
attention pattern alone is spelled out here, for the fused kernel never holds it; `octavo.lens.verify` holds the one
against the other, and both against `octavo.lens.reference`, which shares no step with the model.

The axis letters: `B` texts, `T` positions, `C` width, `H` heads of width `D`, `V` the vocabulary.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo import kernels
from octavo.errors import OctavoError
from octavo.model import GPT, Block, CausalSelfAttention

Attend = Callable[[CausalSelfAttention, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Layer:
    """What one block did with a text. Gone with the step of the walk, unless it is kept."""

    block: Block
    before: Tensor  # (B, T, C) the residual stream that came in
    q: Tensor  # (B, H, T, D)
    k: Tensor
    v: Tensor
    gathered: Tensor  # (B, H, T, D) what each head took from the values
    attention: Tensor  # (B, T, C) what attention adds to the stream
    hidden: Tensor  # (B, T, 4C) the MLP's units, after the GELU
    mlp: Tensor  # (B, T, C) what the MLP adds
    after: Tensor  # (B, T, C) the stream that goes out


@contextlib.contextmanager
def inference(model: GPT) -> Iterator[None]:
    """The context of every view: evaluation mode, float32, no gradients, and the kernels that training has."""
    if model.lm_head.weight.dtype != torch.float32:
        raise OctavoError(f"the model is in {model.lm_head.weight.dtype}, the lens looks at float32", "model.float()")
    was_training = model.training
    model.eval()
    kernels.keep_freed_memory()
    try:
        with torch.inference_mode(), kernels.fast_path(model.lm_head.weight.device):
            yield
    finally:
        model.train(was_training)


def fused_attention(attn: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as the model runs it."""
    return attn.attend(q, k, v)


def explicit_attention(attn: CausalSelfAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention by the pattern that the views show."""
    return attention_pattern(q, k) @ v


def attention_pattern(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)), (..., T, T): what share of each position's attention goes to which."""
    T, D = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(D)  # (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


def walk(model: GPT, x: Tensor, attend: Attend = fused_attention) -> Iterator[Layer]:
    """Every block's work on an embedded text (B, T, C), one after the other."""
    for block in model.transformer.h:
        assert isinstance(block, Block)
        q, k, v = block.attn.project(block.ln_1(x))
        gathered = attend(block.attn, q, k, v)
        attention = block.attn.output(gathered)
        middle = x + attention
        hidden = block.mlp.expand(block.ln_2(middle))
        mlp = block.mlp.contract(hidden)
        layer = Layer(block, x, q, k, v, gathered, attention, hidden, mlp, middle + mlp)
        x = layer.after
        yield layer


def logits(model: GPT, idx: Tensor, attend: Attend = fused_attention) -> Tensor:
    """The logits (B, T, V) at the end of the walk."""
    x = model.embed(idx)
    for layer in walk(model, x, attend):
        x = layer.after
    return model.unembed(model.norm(x))


def finite(logits: Tensor) -> Tensor:
    """The logits, if they are numbers that end."""
    # Their sum is quickly made, and finite but for one that is not, or sums beyond float32.
    if not logits.sum().isfinite() and not logits.isfinite().all():
        raise OctavoError("the model's logits are not all finite: its weights are broken", "an earlier checkpoint")
    return logits
