"""What happens to the loss and to the next token when a part of the model writes nothing.

The axis letters: `T` positions, `C` width, `H` heads of width `D`, `V` the vocabulary, `N` trials.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from octavo.errors import OctavoError
from octavo.lens.capture import Layer, finite, inference, walk
from octavo.lens.contributions import Part
from octavo.lens.tokens import RUN, TEXT, Token, load_checkpoint, make_token, resolve_index, tokenize
from octavo.lens.view import Table, View
from octavo.loss import next_token_loss
from octavo.model import GPT, Block

_AT_ONCE = 1 << 25  # logits of all trials that run together
_LONGEST = 256  # tokens that `ablation` looks at: it runs the model once for every part


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
        rows = [
            (str(t.part), t.loss, t.change, t.next.label, t.probability)
            for t in sorted(self.trials, key=lambda trial: -trial.change)
        ]
        title = f"loss {self.loss:.4f} nats a token; next: {self.next.label}, {self.probability:.3f}"
        return [Table(title, ("without", "loss", "change", "next", f"share of {self.next.label}"), rows)]


def ablation(run: RUN, text: TEXT = None, *, layer: int | None = None, unknown: str = "error") -> Ablation:
    """Loss and next token without each head, each attention, each MLP and each layer; of one `layer`, if said."""
    loaded = load_checkpoint(run)
    model = loaded.model
    reading = tokenize(loaded, text, unknown, limit=min(_LONGEST, model.settings.block_size))
    if len(reading.tokens) < 2:
        raise OctavoError("one token: there is no next one to next_token, so no loss", "a longer text")
    chosen = range(model.settings.n_layer) if layer is None else [resolve_index(layer, model.settings.n_layer, "layer")]
    trials, whole = [], None
    with inference(model):
        for i, step in enumerate(walk(model, model.embed(reading.ids))):
            if i not in chosen:
                continue
            parts, keep_heads, keep_mlp = without(i, model.settings.n_head)
            at_once = max(1, _AT_ONCE // (len(reading.tokens) * model.settings.vocab_size))
            for first in range(0, len(parts), at_once):
                these = slice(first, first + at_once)
                # The whole model runs beside them, so what changes is the part's doing and no rounding's.
                heads, mlp = (torch.cat([torch.ones_like(k[:1]), k[these]]) for k in (keep_heads, keep_mlp))
                loss, last = _outcome(model, logits_without(model, step, i, heads, mlp), reading.ids)
                likely = int(last[0].argmax())
                whole = whole or (loss[0].item(), likely, last[0, likely].item())
                trials += [
                    Trial(
                        part,
                        loss[n].item(),
                        (loss[n] - loss[0]).item(),
                        last[n, likely].item(),
                        make_token(loaded.tokenizer, int(last[n].argmax())),
                    )
                    for n, part in enumerate(parts[these], 1)
                ]
    assert whole is not None
    return Ablation(
        reading.tokens, whole[0], make_token(loaded.tokenizer, whole[1]), whole[2], trials, reading.left_out
    )


def without(layer: int, n_head: int) -> tuple[list[Part], Tensor, Tensor]:
    """The parts of a layer, and for each what is kept without it: of the heads (N, H), of the MLP (N,)."""
    heads, mlp = torch.ones(n_head + 3, n_head), torch.ones(n_head + 3)
    heads[:n_head] -= torch.eye(n_head)
    parts = [Part("head", layer, h) for h in range(n_head)]
    parts += [Part("attention", layer), Part("MLP", layer), Part("attention and MLP", layer)]
    heads[n_head], heads[n_head + 2] = 0, 0
    mlp[n_head + 1 :] = 0
    return parts, heads, mlp


def logits_without(model: GPT, step: Layer, layer: int, heads: Tensor, mlp: Tensor) -> Tensor:
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
