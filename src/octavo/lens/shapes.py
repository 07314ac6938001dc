"""The walk through the model, stage by stage: names, shapes, parameters, FLOPs, as they are when a text goes through.

Shapes are read off the tensors of a real pass. Where there is only a preset, the pass runs on PyTorch's meta device,
whose tensors have shapes and no numbers: the largest model takes no memory and no time.

The axis letters: `B` texts, `T` positions, `C` width, `H` heads of width `D = C / H`, `V` the vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from octavo.checkpoint import meta_model
from octavo.errors import OctavoError
from octavo.lens.capture import Layer, attention_pattern, inference, walk
from octavo.lens.tokens import RUN, TEXT, Token, describe_model, load_checkpoint, resolve_index, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT
from octavo.settings import ModelSettings

_CORNER = 16  # rows and columns of a stage that are shown


@dataclass(frozen=True, eq=False)
class Stage:
    """A stage: what it is called in the code, what it does, the shape it gives, and what it costs, `times` over."""

    name: str
    does: str
    axes: str
    shape: tuple[int, ...]
    parameters: int
    flops: int  # of products; sums, norms and softmax are left out, a percent or so
    times: int  # n_layer, where every layer has one
    values: np.ndarray | None  # the first 16 rows and columns, of the text, layer and head that are shown
    columns: list[int] | None = None  # of the logits, which: the likeliest tokens after the last one


@dataclass(frozen=True, eq=False)
class Shapes(View):
    """All stages in order. `parameters` and `flops` are those of the whole model and of the whole pass over B x T."""

    model: str
    layer: int  # whose values are shown
    head: int
    tokens: list[Token]  # none, where there is only a preset
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
                stage.does,
            )
            for stage in self.stages
        ]
        total = ("all", "", "", "", self.parameters, self.flops, "")
        return [
            Table(
                self.model, ("stage", "axes", "shape", "times", "parameters", "FLOPs", "what it does"), [*rows, total]
            )
        ]


def shapes(
    run: RUN | ModelSettings, text: TEXT = None, *, layer: int = 0, head: int = 0, unknown: str = "error"
) -> Shapes:
    """The walk of a text through a model, or of a whole block through one that has only settings.

    >>> from octavo.settings import resolve
    >>> shapes(resolve("gpt2-512", vocab_size=50257)).stages[-1].shape
    (1, 512, 50257)
    """
    tokens: list[Token] = []
    if isinstance(run, ModelSettings):
        if text is not None:
            raise OctavoError("a preset has only settings, so there is no tokenizer to read a text with", "a RUN")
        if run.vocab_size < 1:
            raise OctavoError("these settings leave the vocabulary to a tokenizer", "--vocab-size 50257")
        model, idx = meta_model(run), torch.empty(1, run.block_size, dtype=torch.long, device="meta")
    else:
        reading = tokenize(loaded := load_checkpoint(run), text, unknown)
        model, idx, tokens = loaded.model, reading.ids, reading.tokens
    layer, head = (
        resolve_index(layer, model.settings.n_layer, "layer"),
        resolve_index(head, model.settings.n_head, "head"),
    )
    with inference(model):
        stages = list(_stages(model, idx, layer, head))
    return Shapes(
        describe_model(model.settings),
        layer,
        head,
        tokens,
        stages,
        sum(stage.parameters * stage.times for stage in stages),
        sum(stage.flops * stage.times for stage in stages),
    )


def _stages(model: GPT, idx: Tensor, layer: int, head: int) -> Iterator[Stage]:
    part = model.transformer
    B, T = idx.shape
    yield _stage("idx", "the ids of the tokens", "B T", idx)
    yield _stage("wte", "a row for each token: what", "B T C", part.wte(idx), part.wte)
    yield _stage("wpe", "a row for each position: where", "T C", part.wpe.weight[:T], part.wpe)
    x = model.embed(idx)
    yield _stage("x", "their sum, the residual stream", "B T C", x)
    shown: list[Stage] = []
    for i, step in enumerate(walk(model, x)):
        block = list(_block(step, model.settings.n_layer, head))
        if shown:
            assert [(s.shape, s.parameters) for s in block] == [(s.shape, s.parameters) for s in shown], (
                "layers are alike"
            )
        shown = shown if shown and i != layer else block
        x = step.after
    yield from shown
    x = model.norm(x)
    yield _stage("ln_f", "the last layer norm", "B T C", x, part.ln_f)
    flops = 2 * B * T * model.settings.n_embd * model.settings.vocab_size
    logits = model.unembed(x)
    stage = _stage("logits", "a score for each token, by its row of wte", "B T V", logits, flops=flops)
    if stage.values is not None:  # its first columns would be whatever has the first ids
        best = logits[0, -1].topk(min(_CORNER, logits.size(-1))).indices
        stage = replace(stage, values=logits[0][:_CORNER, best].numpy().copy(), columns=best.tolist())
    yield stage


def _block(layer: Layer, times: int, head: int) -> Iterator[Stage]:
    block = layer.block
    B, H, T, D = layer.q.shape
    C = H * D
    product, square = 2 * B * T * C, 2 * B * H * T * T * D  # of C inputs with one output; of T positions with T
    scores = layer.q @ layer.k.mT / math.sqrt(D)
    shares = attention_pattern(layer.q, layer.k)
    middle = layer.before + layer.attention
    for name, does, axes, tensor, module, flops in (
        ("h.ln_1", "each position to mean 0 and variance 1", "B T C", block.ln_1(layer.before), block.ln_1, 0),
        (
            "h.attn.c_attn",
            "q, k and v of every head: three of these",
            "B H T D",
            layer.q,
            block.attn.c_attn,
            3 * C * product,
        ),
        ("h.attn: q kT / sqrt(D)", "how well each key answers each query", "B H T T", scores, None, square),
        ("h.attn: softmax", "shares that sum to 1, none of the future's", "B H T T", shares, None, 0),
        ("h.attn: shares v", "the mixture of values that a head takes", "B H T D", layer.gathered, None, square),
        ("h.attn.c_proj", "the heads side by side, mixed", "B T C", layer.attention, block.attn.c_proj, C * product),
        ("x + attention", "what was seen, into the stream", "B T C", middle, None, 0),
        ("h.ln_2", "again to mean 0 and variance 1", "B T C", block.ln_2(middle), block.ln_2, 0),
        (
            "h.mlp.c_fc, GELU",
            "four times as wide: the hidden units",
            "B T 4C",
            layer.hidden,
            block.mlp.c_fc,
            4 * C * product,
        ),
        ("h.mlp.c_proj", "back to the stream's width", "B T C", layer.mlp, block.mlp.c_proj, 4 * C * product),
        ("x + mlp", "what was made of it, into the stream", "B T C", layer.after, None, 0),
    ):
        yield _stage(name, does, axes, tensor, module, flops, times, head)


def _stage(
    name: str,
    does: str,
    axes: str,
    tensor: Tensor,
    module: nn.Module | None = None,
    flops: int = 0,
    times: int = 1,
    head: int = 0,
) -> Stage:
    parameters = sum(each.numel() for each in module.parameters()) if module is not None else 0
    return Stage(name, does, axes, tuple(tensor.shape), parameters, flops, times, _corner(tensor, head))


def _corner(tensor: Tensor, head: int) -> np.ndarray | None:
    """The first rows and columns, of one text and one head where there are several; nothing on the meta device."""
    if tensor.is_meta:
        return None
    if tensor.dim() == 4:
        tensor = tensor[:, head]
    square = tensor if tensor.dim() == 2 else tensor[0]
    return square[:_CORNER, :_CORNER].numpy().copy()
