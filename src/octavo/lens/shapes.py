"""The view `shapes`: the forward pass stage by stage, with shapes, parameters, FLOPs, and a corner of the values.

Shapes are read off the tensors of a real forward pass. For settings without a trained model, the pass runs on PyTorch's
meta device, whose tensors have shapes and no data: the largest model takes no memory and no time.

The axis letters: `B` texts, `T` positions, `C` width, `H` heads of width `D = C / H`, `V` the vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from octavo import runs
from octavo.errors import OctavoError
from octavo.lens.arguments import describe_model, resolve_index
from octavo.lens.capture import LayerActivations, attention_pattern, inference, run_blocks
from octavo.lens.tokens import Text, Token, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT
from octavo.runs import RunLike
from octavo.settings import ModelSettings
from octavo.weights import meta_model

_CORNER = 16  # rows and columns of a stage's values that are shown


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage: its name in the code, what it computes, the shape of its output, and what it costs each time."""

    name: str
    description: str
    axes: str
    shape: tuple[int, ...]
    parameters: int
    flops: int  # of matrix products; sums, norms and softmax are about a percent and left out
    times: int  # how often the stage occurs: n_layer for the stages of a block, otherwise 1
    values: np.ndarray | None  # the first 16 rows and columns, of the layer and head that are shown
    columns: list[int] | None = None  # for the logits: the token ids, those most likely at the last position


@dataclass(frozen=True, eq=False)
class Shapes(View):
    """All stages in order, the `parameters` of the model, and the `flops` of one forward pass over B x T tokens."""

    model: str
    layer: int  # the layer and head whose values are shown
    head: int
    tokens: list[Token]  # empty without a trained model
    stages: list[Stage]
    parameters: int
    flops: int

    def tables(self) -> list[Table]:
        rows = [
            (
                stage.name,
                f"[{stage.axes.replace(' ', ', ')}]",
                " x ".join(map(str, stage.shape)),
                f"{stage.times} x" if stage.times > 1 else "",
                stage.parameters,
                stage.flops,
                stage.description,
            )
            for stage in self.stages
        ]
        total = ("all", "", "", "", self.parameters, self.flops, "")
        columns = ("stage", "axes", "shape", "times", "parameters", "FLOPs", "description")
        return [Table(self.model, columns, [*rows, total])]


def shapes(
    run: RunLike | ModelSettings, text: Text = None, *, layer: int = 0, head: int = 0, unknown: str = "error"
) -> Shapes:
    """The forward pass of a text through a model, or of `block_size` positions if only settings are given.

    >>> from octavo.settings import resolve
    >>> shapes(resolve("gpt2-512", vocab_size=50257)).stages[-1].shape
    (1, 512, 50257)
    """
    tokens: list[Token] = []
    if isinstance(run, ModelSettings):
        if text is not None:
            raise OctavoError("a preset has only settings, and no tokenizer for a text", "a RUN")
        if run.vocab_size < 1:
            raise OctavoError("these settings leave vocab_size to a tokenizer", "--vocab-size 50257")
        model, idx = meta_model(run), torch.empty(1, run.block_size, dtype=torch.long, device="meta")
    else:
        loaded = runs.load(run)
        tokenized = tokenize(loaded, text, unknown)
        model, idx, tokens = loaded.model, tokenized.ids, tokenized.tokens
    layer = resolve_index(layer, model.settings.n_layer, "layer")
    head = resolve_index(head, model.settings.n_head, "head")
    with inference(model):
        stages = list(forward_stages(model, idx, layer, head))
    parameters = sum(stage.parameters * stage.times for stage in stages)
    flops = sum(stage.flops * stage.times for stage in stages)
    return Shapes(describe_model(model.settings), layer, head, tokens, stages, parameters, flops)


def forward_stages(model: GPT, idx: Tensor, layer: int, head: int) -> Iterator[Stage]:
    """Yield the stages in order; those of a block once, with the values of the given layer and head."""
    transformer = model.transformer
    B, T = idx.shape
    yield _stage("idx", "token ids", "B T", idx)
    yield _stage("wte", "token embedding: a row for each token", "B T C", transformer.wte(idx), transformer.wte)
    yield _stage(
        "wpe", "position embedding: a row for each position", "T C", transformer.wpe.weight[:T], transformer.wpe
    )
    x = model.embed(idx)
    yield _stage("x", "their sum enters the residual stream", "B T C", x)
    selected: list[Stage] = []
    for i, activations in enumerate(run_blocks(model, x)):
        stages = list(_block_stages(activations, model.settings.n_layer, head))
        assert not selected or [(stage.shape, stage.parameters) for stage in stages] == [
            (stage.shape, stage.parameters) for stage in selected
        ], "the layers differ in their shapes"
        selected = stages if not selected or i == layer else selected
        x = activations.resid_post
    yield from selected
    x = model.norm(x)
    yield _stage("ln_f", "final layer norm", "B T C", x, transformer.ln_f)
    flops = 2 * B * T * model.settings.n_embd * model.settings.vocab_size
    logits = model.unembed(x)
    stage = _stage("logits", "a score for each token, by its row of wte", "B T V", logits, flops=flops)
    if stage.values is not None:  # show the most likely tokens rather than those with the first ids
        top = logits[0, -1].topk(min(_CORNER, logits.size(-1))).indices
        stage = replace(stage, values=logits[0][:_CORNER, top].numpy().copy(), columns=top.tolist())
    yield stage


def _block_stages(layer: LayerActivations, times: int, head: int) -> Iterator[Stage]:
    block, attn, mlp = layer.block, layer.block.attn, layer.block.mlp
    B, H, T, D = layer.q.shape
    C = H * D
    linear_flops = 2 * B * T * C * C  # of a linear layer from width C to width C
    pair_flops = 2 * B * H * T * T * D  # a matmul over all pairs of positions has this many, summed over heads
    scores = layer.q @ layer.k.mT / math.sqrt(D)
    weights = attention_pattern(layer.q, layer.k)
    resid_mid = layer.resid_pre + layer.attention

    def stage(
        name: str, description: str, axes: str, tensor: Tensor, module: nn.Module | None = None, flops: int = 0
    ) -> Stage:
        return _stage(name, description, axes, tensor, module, flops, times, head)

    normed = block.ln_1(layer.resid_pre)
    yield stage("h.ln_1", "layer norm: each position to mean 0, variance 1", "B T C", normed, block.ln_1)
    yield stage(
        "h.attn.c_attn",
        "q, k and v of every head: three tensors of this shape",
        "B H T D",
        layer.q,
        attn.c_attn,
        3 * linear_flops,
    )
    yield stage("h.attn: q kT / sqrt(D)", "scores: each query times each key", "B H T T", scores, flops=pair_flops)
    yield stage("h.attn: softmax", "weights that sum to 1, 0 for the future", "B H T T", weights)
    yield stage("h.attn: weights v", "weighted mean of the values", "B H T D", layer.heads, flops=pair_flops)
    yield stage("h.attn.c_proj", "heads concatenated and mixed", "B T C", layer.attention, attn.c_proj, linear_flops)
    yield stage("x + attention", "added to the residual stream", "B T C", resid_mid)
    yield stage("h.ln_2", "layer norm", "B T C", block.ln_2(resid_mid), block.ln_2)
    yield stage(
        "h.mlp.c_fc, GELU", "hidden units, four times as wide", "B T 4C", layer.mlp_hidden, mlp.c_fc, 4 * linear_flops
    )
    yield stage("h.mlp.c_proj", "back to the width C", "B T C", layer.mlp, mlp.c_proj, 4 * linear_flops)
    yield stage("x + mlp", "added to the residual stream", "B T C", layer.resid_post)


def _stage(
    name: str,
    description: str,
    axes: str,
    tensor: Tensor,
    module: nn.Module | None = None,
    flops: int = 0,
    times: int = 1,
    head: int = 0,
) -> Stage:
    parameters = sum(each.numel() for each in module.parameters()) if module is not None else 0
    return Stage(name, description, axes, tuple(tensor.shape), parameters, flops, times, _corner(tensor, head))


def _corner(tensor: Tensor, head: int) -> np.ndarray | None:
    """The first rows and columns of the first text, and of one head; None on the meta device."""
    if tensor.is_meta:
        return None
    if tensor.dim() == 4:
        tensor = tensor[:, head]
    matrix = tensor if tensor.dim() == 2 else tensor[0]
    return matrix[:_CORNER, :_CORNER].numpy().copy()
