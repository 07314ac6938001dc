"""What each part of the model did to a prediction: by what it wrote (`residual`), and by doing without it (`ablate`).

The axis letters: `T` positions, `C` width, `H` heads of width `D`, `L` layers, `V` the vocabulary, `N` trials.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.lens.capture import Layer, finite, looking, walk
from octavo.lens.tokens import RUN, TEXT, Token, named, opened, read, within
from octavo.lens.view import Table, View
from octavo.loss import next_token_loss
from octavo.model import GPT, Block

_AT_ONCE = 1 << 25  # logits of all trials that run together
_LONGEST = 256  # tokens that `ablate` looks at: it runs the model once for every part


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
class Residual(View):
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


def residual(run: RUN, text: TEXT = None, *, position: int = -1, token: str | None = None,
             against: str | None = None, unknown: str = "error") -> Residual:  # fmt: skip
    """How a token's logit after `position` came about: the embeddings, every head, every MLP, and the biases.

    The token is the likeliest, if not said. Raises `OctavoError` for a text that is not one token.
    """
    loaded = opened(run)
    reading = read(loaded, text, unknown)
    model = loaded.model
    position = within(position, len(reading.tokens), "position")
    with looking(model):
        parts, written = wrote(model, reading.ids, position)
        stream = written.sum(0)  # (C,) in float64
        logits = finite(model.unembed(model.norm(stream.float())))
        chosen = one_token(run=loaded, text=token) if token is not None else int(logits.argmax())
        other = one_token(run=loaded, text=against) if against is not None else None
        direction = model.lm_head.weight[chosen].double()
        if other is not None:
            direction = direction - model.lm_head.weight[other].double()
        share, rest = through_norm(model, written, direction)
    norms, stream = written.norm(dim=-1), lengths(parts, written)
    if model.transformer.ln_f.bias is not None:
        parts.append(Part("ln_f's bias"))
        share, norms = torch.cat([share, rest[None]]), torch.cat([norms, torch.zeros(1)])
    return Residual(
        reading.tokens, position, named(loaded.tokenizer, chosen),
        None if other is None else named(loaded.tokenizer, other), share.sum().item(),
        parts, share.numpy(), norms.numpy(), stream.numpy(),
        reading.left_out,
    )  # fmt: skip


def wrote(model: GPT, idx: Tensor, position: int) -> tuple[list[Part], Tensor]:
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


def through_norm(model: GPT, written: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
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


def one_token(run: RUN, text: str) -> int:
    """The id of a text that is one token."""
    ids = opened(run).tokenizer.encode(text)
    if not len(ids):
        raise OctavoError("an empty text is no token", "a token's text, as `octavo inspect RUN tokens` shows them")
    if len(ids) != 1:
        names = " ".join(token.label for token in (named(opened(run).tokenizer, int(id)) for id in ids))
        raise OctavoError(f"{text!r} is {len(ids)} tokens here: {names}", "one of them")
    return int(ids[0])


@dataclass(frozen=True)
class Trial:
    """Without a part: the text's loss, how much that is more, and what becomes of the likeliest next token."""

    part: Part
    loss: float
    change: float
    probability: float  # of what is likeliest with all parts
    next: Token  # what is likeliest now


@dataclass(frozen=True, eq=False)
class Ablation(View):
    """A text's `loss` with the whole model, its likeliest next token, and the same without each part."""

    caveat: ClassVar[str] = (
        "A part is left out by writing nothing (zero ablation). Others were trained to rely on it, so a loss "
        "that rises shows it was used, and one that doesn't can mean that others stand in."
    )

    tokens: list[Token]
    loss: float
    next: Token
    probability: float
    trials: list[Trial]
    left_out: int

    def tables(self) -> list[Table]:
        rows = [(str(t.part), t.loss, t.change, t.next.label, t.probability)
                for t in sorted(self.trials, key=lambda trial: -trial.change)]  # fmt: skip
        title = f"loss {self.loss:.4f} nats a token; next: {self.next.label}, {self.probability:.3f}"
        return [Table(title, ("without", "loss", "change", "next", f"share of {self.next.label}"), rows)]


def ablate(run: RUN, text: TEXT = None, *, layer: int | None = None, unknown: str = "error") -> Ablation:
    """Loss and next token without each head, each attention, each MLP and each layer; of one `layer`, if said."""
    loaded = opened(run)
    model = loaded.model
    reading = read(loaded, text, unknown, limit=min(_LONGEST, model.settings.block_size))
    if len(reading.tokens) < 2:
        raise OctavoError("one token: there is no next one to predict, so no loss", "a longer text")
    chosen = range(model.settings.n_layer) if layer is None else [within(layer, model.settings.n_layer, "layer")]
    trials, whole = [], None
    with looking(model):
        for i, step in enumerate(walk(model, model.embed(reading.ids))):
            if i not in chosen:
                continue
            parts, keep_heads, keep_mlp = without(i, model.settings.n_head)
            at_once = max(1, _AT_ONCE // (len(reading.tokens) * model.settings.vocab_size))
            for first in range(0, len(parts), at_once):
                these = slice(first, first + at_once)
                # The whole model runs beside them, so what changes is the part's doing and no rounding's.
                heads, mlp = (torch.cat([torch.ones_like(k[:1]), k[these]]) for k in (keep_heads, keep_mlp))
                loss, last = _outcome(model, rest_without(model, step, i, heads, mlp), reading.ids)
                likely = int(last[0].argmax())
                whole = whole or (loss[0].item(), likely, last[0, likely].item())
                trials += [
                    Trial(part, loss[n].item(), (loss[n] - loss[0]).item(), last[n, likely].item(),
                          named(loaded.tokenizer, int(last[n].argmax())))
                    for n, part in enumerate(parts[these], 1)
                ]  # fmt: skip
    assert whole is not None
    return Ablation(reading.tokens, whole[0], named(loaded.tokenizer, whole[1]), whole[2], trials, reading.left_out)


def without(layer: int, n_head: int) -> tuple[list[Part], Tensor, Tensor]:
    """The parts of a layer, and for each what is kept without it: of the heads (N, H), of the MLP (N,)."""
    heads, mlp = torch.ones(n_head + 3, n_head), torch.ones(n_head + 3)
    heads[:n_head] -= torch.eye(n_head)
    parts = [Part("head", layer, h) for h in range(n_head)]
    parts += [Part("attention", layer), Part("MLP", layer), Part("attention and MLP", layer)]
    heads[n_head], heads[n_head + 2] = 0, 0
    mlp[n_head + 1 :] = 0
    return parts, heads, mlp


def rest_without(model: GPT, step: Layer, layer: int, heads: Tensor, mlp: Tensor) -> Tensor:
    """Logits (N, T, V) of N trials, from a layer on in which heads (N, H) and the MLP (N,) write what is kept of them.

    A layer without all its heads has no attention's bias either.
    """
    block = step.block
    gathered = step.gathered * heads[:, :, None, None]  # (N, H, T, D)
    x = step.before + block.attn.output(gathered) * heads.any(1)[:, None, None]
    x = x + block.mlp(block.ln_2(x)) * mlp[:, None, None]
    for later in model.transformer.h[layer + 1 :]:
        assert isinstance(later, Block)
        x = later(x)
    return finite(model.unembed(model.norm(x)))


def _outcome(model: GPT, logits: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Of N trials the loss in nats a token (N,) and the probabilities of what comes next (N, V)."""
    targets = idx[:, 1:]
    loss = [next_token_loss(each[None, :-1], targets) / targets.numel() for each in logits]
    return torch.stack(loss), logits[:, -1].softmax(-1)
