"""The view `contributions`: how much every head, MLP and bias contributed to a logit (direct logit attribution).

The residual stream is a sum: the embeddings, and what every head and MLP added. So a logit is a sum too, if the final
norm's scale is held fixed.

The axis letters: `T` positions, `C` width, `H` heads of width `D`, `L` layers, `V` the vocabulary, `N` parts.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo import runs
from octavo.lens.arguments import TokenLike, resolve_index, resolve_token
from octavo.lens.capture import inference, require_finite, run_blocks
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT
from octavo.runs import RunLike


@dataclass(frozen=True)
class Part:
    """A component of the model that adds to the residual stream: its name, and its layer and head if it has them."""

    name: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        place = [f"{kind} {n}" for kind, n in (("layer", self.layer), ("head", self.head)) if n is not None]
        name = [] if self.name == "head" else [self.name]  # "layer 0, head 1" says it already
        return ", ".join([*place, *name])


@dataclass(frozen=True, eq=False)
class Contributions(View):
    """What each part added to the residual stream at one position, and its contribution to a token's logit.

    `contributions` sum to `logit`. With `against`, another token, both are logit differences: the token's logit minus
    that of the other. `norms` are the L2 norms of what the parts added.
    """

    caveat: ClassVar[str] = (
        "A contribution is what a part added to the token's logit directly, with the final norm's scale held fixed. "
        "What a later part computed from that part's output counts as the later part's contribution."
    )

    tokens: list[Token]
    position: int
    token: Token
    against: Token | None
    logit: float
    parts: list[Part]
    contributions: np.ndarray  # (N,)
    norms: np.ndarray  # (N,)
    stream: np.ndarray  # (L + 1,) the L2 norm of the residual stream before the first layer and after each
    left_out: int  # how many tokens at the end of the text were truncated

    def tables(self) -> list[Table]:
        order = np.argsort(-np.abs(self.contributions), kind="stable")
        rows = [(str(self.parts[i]), float(self.contributions[i]), float(self.norms[i])) for i in order]
        other = f" minus that of {self.against.label}" if self.against else ""
        title = f"the logit of {self.token.label}{other} after position {self.position}: {self.logit:.4f}"
        return [Table(title, ("part", "contribution", "norm"), rows)]


def contributions(
    run: RunLike,
    text: Text = None,
    *,
    position: int = -1,
    token: TokenLike | None = None,
    against: TokenLike | None = None,
    unknown: str = "error",
) -> Contributions:
    """The contributions of the embeddings, every head, every MLP and the biases to a token's logit after `position`.

    By default `token` is the most likely one. Raises `OctavoError` if `token` or `against` is a text that
    is not exactly one token.
    """
    loaded = runs.load(run)
    tokenized = tokenize(loaded, text, unknown)
    model, tokenizer = loaded.model, loaded.tokenizer
    position = resolve_index(position, len(tokenized.tokens), "position")
    with inference(model):
        parts, added = decompose_residual(model, tokenized.ids, position)
        logits = require_finite(model.unembed(model.norm(added.sum(0).float())))  # (V,)
        id = int(logits.argmax()) if token is None else resolve_token(tokenizer, token)
        other = None if against is None else resolve_token(tokenizer, against)
        direction = model.lm_head.weight[id].double()
        if other is not None:
            direction = direction - model.lm_head.weight[other].double()
        part_logits, bias_logit = logit_contributions(model, added, direction)
    norms, stream_norms = added.norm(dim=-1), _stream_norms(parts, added)
    if model.transformer.ln_f.bias is not None:
        parts.append(Part("ln_f's bias"))
        part_logits, norms = torch.cat([part_logits, bias_logit[None]]), torch.cat([norms, torch.zeros(1)])
    return Contributions(
        tokenized.tokens,
        position,
        make_token(tokenizer, id),
        None if other is None else make_token(tokenizer, other),
        part_logits.sum().item(),
        parts,
        part_logits.numpy(),
        norms.numpy(),
        stream_norms.numpy(),
        tokenized.left_out,
    )


def decompose_residual(model: GPT, idx: Tensor, position: int) -> tuple[list[Part], Tensor]:
    """All parts, and what each added to the residual stream at a position, (N, C).

    Computed in float64, so that the sum differs from the model's residual stream only by the model's float32 rounding.
    """
    settings = model.settings
    wte_row, wpe_row = model.transformer.wte.weight[idx[0, position]], model.transformer.wpe.weight[position]
    parts, added = [Part("wte"), Part("wpe")], [wte_row.double(), wpe_row.double()]
    for i, layer in enumerate(run_blocks(model, model.embed(idx))):
        c_proj = layer.block.attn.c_proj
        by_head = c_proj.weight.double().view(settings.n_embd, settings.n_head, settings.head_size)  # (C, H, D)
        heads = torch.einsum("chd,hd->hc", by_head, layer.heads[0, :, position].double())  # (H, C)
        parts += [Part("head", i, h) for h in range(settings.n_head)]
        added += list(heads)
        if c_proj.bias is not None:
            parts.append(Part("attention's bias", i))
            added.append(c_proj.bias.double())
        parts.append(Part("MLP", i))
        added.append(layer.mlp[0, position].double())
    return parts, torch.stack(added)


def logit_contributions(model: GPT, added: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """The contributions of the parts (N,) and of ln_f's bias to the logit of `direction` (C,), a row of lm_head.

    The difference of two rows gives the contributions to the difference of their logits.
    """
    norm = model.transformer.ln_f
    stream = added.sum(0)  # (C,)
    scale = torch.sqrt(stream.var(correction=0) + norm.eps)
    centered = added - added.mean(-1, keepdim=True)  # (N, C)
    part_logits = (centered / scale * norm.weight.double()) @ direction  # (N,)
    bias_logit = norm.bias.double() @ direction if norm.bias is not None else torch.zeros((), dtype=torch.float64)
    return part_logits, bias_logit


def _stream_norms(parts: list[Part], added: Tensor) -> Tensor:
    """The L2 norm of the residual stream before the first layer and after each, (L + 1,)."""
    # wpe is the last part before the first layer, the MLP the last part of each layer.
    last_parts = [n for n, part in enumerate(parts) if part.name in ("wpe", "MLP")]
    norms: Tensor = added.cumsum(0)[last_parts].norm(dim=-1)
    return norms
