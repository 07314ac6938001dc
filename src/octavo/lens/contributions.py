"""What each part of the model did to a prediction: by what it wrote (`residual`), and by doing without it (`ablate`).

The axis letters: `T` positions, `C` width, `H` heads of width `D`, `L` layers, `V` the vocabulary, `N` trials.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.lens.capture import finite, inference, walk
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, make_token, resolve_index, tokenize
from octavo.lens.view import Table, View
from octavo.model import GPT


@dataclass(frozen=True)
class Part:
    """A part of the model: `name`, its layer and head where it has them."""

    name: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        where = [f"{what} {n}" for what, n in (("layer", self.layer), ("head", self.head)) if n is not None]
        return ", ".join([*where, self.name] if self.name != "head" else where)


@dataclass(frozen=True, eq=False)
class Contributions(View):
    """What each part wrote into the stream at one position, and how much of a token's logit came from it.

    `contributions` sum to `logit`; with `against`, all of it is the logit's lead over that token's. `norms` are the
    lengths of what was written.
    """

    caveat: ClassVar[str] = (
        "A contribution is what a part wrote towards the token directly, through the final norm at the scale "
        "it had here. What later parts made of it counts as theirs."
    )

    tokens: list[Token]
    position: int
    token: Token
    against: Token | None
    logit: float
    parts: list[Part]
    contributions: np.ndarray  # one for each part
    norms: np.ndarray
    stream: np.ndarray  # (L + 1,) the stream's length before the first layer and after each
    left_out: int

    def tables(self) -> list[Table]:
        order = np.argsort(-np.abs(self.contributions), kind="stable")
        rows = [(str(self.parts[i]), float(self.contributions[i]), float(self.norms[i])) for i in order]
        lead = f" over {self.against.label}" if self.against else ""
        title = f"the logit of {self.token.label}{lead} after position {self.position}: {self.logit:.4f}"
        return [Table(title, ("part", "contribution", "length"), rows)]


def contributions(
    run: RUN,
    text: TEXT = None,
    *,
    position: int = -1,
    token: str | None = None,
    against: str | None = None,
    unknown: str = "error",
) -> Contributions:
    """How a token's logit after `position` came about: the embeddings, every head, every MLP, and the biases.

    The token is the likeliest, if not said. Raises `OctavoError` for a text that is not one token.
    """
    loaded = load_checkpoint(run)
    reading = tokenize(loaded, text, unknown)
    model = loaded.model
    position = resolve_index(position, len(reading.tokens), "position")
    with inference(model):
        parts, written = residual_contributions(model, reading.ids, position)
        stream = written.sum(0)  # (C,) in float64
        logits = finite(model.unembed(model.norm(stream.float())))
        chosen = resolve_token(run=loaded, text=token) if token is not None else int(logits.argmax())
        other = resolve_token(run=loaded, text=against) if against is not None else None
        direction = model.lm_head.weight[chosen].double()
        if other is not None:
            direction = direction - model.lm_head.weight[other].double()
        share, rest = logit_contributions(model, written, direction)
    norms, stream = written.norm(dim=-1), lengths(parts, written)
    if model.transformer.ln_f.bias is not None:
        parts.append(Part("ln_f's bias"))
        share, norms = torch.cat([share, rest[None]]), torch.cat([norms, torch.zeros(1)])
    return Contributions(
        reading.tokens,
        position,
        make_token(loaded.tokenizer, chosen),
        None if other is None else make_token(loaded.tokenizer, other),
        share.sum().item(),
        parts,
        share.numpy(),
        norms.numpy(),
        stream.numpy(),
        reading.left_out,
    )


def residual_contributions(model: GPT, idx: Tensor, position: int) -> tuple[list[Part], Tensor]:
    """All parts, and what each added to the stream at a position, (N, C) in float64, in which adding up is exact
    enough to leave only the model's own rounding."""
    settings = model.settings
    token, where = model.transformer.wte.weight[idx[0, position]], model.transformer.wpe.weight[position]
    parts, written = [Part("wte"), Part("wpe")], [token.double(), where.double()]
    for i, layer in enumerate(walk(model, model.embed(idx))):
        out = layer.block.attn.c_proj
        by_head = out.weight.double().view(settings.n_embd, settings.n_head, settings.head_size)  # (C, H, D)
        heads = torch.einsum("chd,hd->hc", by_head, layer.gathered[0, :, position].double())
        parts += [Part("head", i, h) for h in range(settings.n_head)]
        written += list(heads)
        if out.bias is not None:
            parts.append(Part("attention's bias", i))
            written.append(out.bias.double())
        parts.append(Part("MLP", i))
        written.append(layer.mlp[0, position].double())
    return parts, torch.stack(written)


def logit_contributions(model: GPT, written: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Each part's share of stream (N, C) in `direction` behind the final norm, (N,), and what the norm's bias adds."""
    norm = model.transformer.ln_f
    stream = written.sum(0)
    scale = torch.sqrt(stream.var(correction=0) + norm.eps)
    centred = written - written.mean(-1, keepdim=True)
    share = (centred / scale * norm.weight.double()) @ direction
    return share, norm.bias.double() @ direction if norm.bias is not None else torch.zeros((), dtype=torch.float64)


def lengths(parts: list[Part], written: Tensor) -> Tensor:
    """The stream's length before the first layer and after each, (L + 1,), from what every part wrote."""
    ends = [n for n, part in enumerate(parts) if part.name in ("wpe", "MLP")]
    ends_of_layers: Tensor = written.cumsum(0)[ends].norm(dim=-1)
    return ends_of_layers


def resolve_token(run: RUN, text: str) -> int:
    """The id of a text that is one token."""
    ids = load_checkpoint(run).tokenizer.encode(text)
    if not len(ids):
        raise OctavoError("an empty text is no token", "a token's text, as `octavo inspect RUN tokens` shows them")
    if len(ids) != 1:
        names = " ".join(token.label for token in (make_token(load_checkpoint(run).tokenizer, int(id)) for id in ids))
        raise OctavoError(f"{text!r} is {len(ids)} tokens here: {names}", "one of them")
    return int(ids[0])
