"""Run a text through the model block by block and keep what each step computed.

The steps are methods of the model itself (`octavo.model`), called in the order of `Block.forward`, so a view shows what
was trained. Only the attention pattern is computed here, because the fused kernel of the model never stores it.
`octavo.lens.verify` compares these steps with `Block.forward` bit for bit, the pattern with the fused kernel, and both
with `octavo.lens.reference`, which shares no code with the model.

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
from octavo.model import GPT, Block

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys and values to the output of each head


@dataclass(frozen=True)
class LayerActivations:
    """What one block computed. Only one block's activations are in memory at a time, unless the caller keeps more."""

    block: Block
    resid_pre: Tensor  # (B, T, C) the residual stream before the block
    q: Tensor  # (B, H, T, D)
    k: Tensor  # (B, H, T, D)
    v: Tensor  # (B, H, T, D)
    heads: Tensor  # (B, H, T, D) the output of each head: its weighted mean of the values
    attention: Tensor  # (B, T, C) what attention adds to the residual stream
    mlp_hidden: Tensor  # (B, T, 4C) the MLP's hidden units, after the GELU
    mlp: Tensor  # (B, T, C) what the MLP adds to the residual stream
    resid_post: Tensor  # (B, T, C) the residual stream after the block


@contextlib.contextmanager
def inference(model: GPT) -> Iterator[None]:
    """The context of every view: evaluation mode, float32, no gradients, and the kernels that training uses."""
    if model.lm_head.weight.dtype != torch.float32:
        raise OctavoError(f"the model is in {model.lm_head.weight.dtype}, views need float32", "model.float()")
    was_training = model.training
    model.eval()
    kernels.keep_freed_memory()  # each block allocates tensors of the same sizes again
    try:
        with torch.inference_mode(), kernels.fast_path(model.lm_head.weight.device):
            yield
    finally:
        model.train(was_training)


def run_blocks(model: GPT, x: Tensor, attend: Attend | None = None) -> Iterator[LayerActivations]:
    """Run the blocks one after the other on embedded texts (B, T, C), and yield what each computed.

    `attend` replaces the model's own attention.
    """
    for block in model.transformer.h:
        assert isinstance(block, Block)
        q, k, v = block.attn.project(block.ln_1(x))  # (B, H, T, D)
        heads = (attend or block.attn.attend)(q, k, v)  # (B, H, T, D)
        attention = block.attn.output(heads)  # (B, T, C)
        resid_mid = x + attention  # (B, T, C)
        hidden = block.mlp.expand(block.ln_2(resid_mid))  # (B, T, 4C)
        mlp = block.mlp.contract(hidden)  # (B, T, C)
        layer = LayerActivations(block, x, q, k, v, heads, attention, hidden, mlp, resid_mid + mlp)
        x = layer.resid_post
        yield layer


def logits(model: GPT, idx: Tensor, attend: Attend | None = None) -> Tensor:
    """The logits (B, T, V) of ids (B, T), computed with `run_blocks`."""
    x = model.embed(idx)
    for layer in run_blocks(model, x, attend):
        x = layer.resid_post
    return model.unembed(model.norm(x))


def attention_pattern(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(D)), (..., T, T): row t is how position t distributes its attention."""
    T, D = q.shape[-2:]
    scores = q @ k.mT / math.sqrt(D)  # (..., T, T)
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu_(1)
    return scores.masked_fill_(future, -torch.inf).softmax(-1)  # in place, which halves the time at 512 positions


def attend_by_pattern(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention computed from the pattern that the views show, in place of the model's fused kernel."""
    return attention_pattern(q, k) @ v


def require_finite(logits: Tensor) -> Tensor:
    """Return the logits. Raises `OctavoError` if one is NaN or infinite."""
    # The sum is fast, and not finite if any logit is not. A sum can also overflow float32, so check again.
    if not logits.sum().isfinite() and not logits.isfinite().all():
        raise OctavoError("the model's logits are not all finite: its weights are broken", "an earlier checkpoint")
    return logits
