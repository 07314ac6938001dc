"""The view `ablation`: the loss and the next token if a part of the model adds nothing to the residual stream.

The axis letters: `T` positions, `C` width, `H` heads of width `D`, `V` the vocabulary, `N` trials.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from octavo import runs
from octavo.errors import OctavoError
from octavo.lens.arguments import resolve_index
from octavo.lens.capture import Layer, inference, require_finite, walk
from octavo.lens.contributions import Part
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.loss import next_token_loss
from octavo.model import GPT, Block
from octavo.runs import RunLike

_MAX_TOKENS = 256  # because the rest of the model runs again for every part
_LOGITS_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class Trial:
    """Without a part: the text's loss, its change, and what happens to the next token."""

    part: Part
    loss: float
    change: float
    probability: float  # of the token that is most likely with all parts
    next: Token  # the most likely token now


@dataclass(frozen=True, eq=False)
class Ablation(View):
    """A text's `loss` with the whole model, the most likely `next` token, and the same without each part."""

    caveat: ClassVar[str] = (
        "A part is ablated by adding nothing (zero ablation). Other parts were trained to rely on it, so a loss that "
        "rises shows that it was used, and one that does not can mean that other parts replace it."
    )

    tokens: list[Token]
    loss: float
    next: Token
    probability: float
    trials: list[Trial]
    left_out: int

    def tables(self) -> list[Table]:
        trials = sorted(self.trials, key=lambda trial: -trial.change)
        rows = [(str(each.part), each.loss, each.change, each.next.label, each.probability) for each in trials]
        title = f"loss {self.loss:.4f} nats per token; next: {self.next.label}, {self.probability:.3f}"
        return [Table(title, ("without", "loss", "change", "next", f"share of {self.next.label}"), rows)]


def ablation(run: RunLike, text: Text = None, *, layer: int | None = None, unknown: str = "error") -> Ablation:
    """The loss and the next token without each head, each attention, each MLP and each layer; or those of one `layer`.

    Takes the first 256 tokens of a text. Raises `OctavoError` for a text of one token, which has no loss.
    """
    loaded = runs.load(run)
    model, n_layer = loaded.model, loaded.model.settings.n_layer
    tokenized = tokenize(loaded, text, unknown, limit=min(_MAX_TOKENS, model.settings.block_size))
    if len(tokenized.tokens) < 2:
        raise OctavoError("the text is one token: there is nothing to predict, so it has no loss", "a longer text")
    layers = range(n_layer) if layer is None else [resolve_index(layer, n_layer, "layer")]
    outcomes = ablate(model, tokenized.ids, layers)
    whole = outcomes[0]

    def token(id: int) -> Token:
        return make_token(loaded.tokenizer, id)

    trials = [
        Trial(each.part, each.loss, each.change, each.probability, token(each.next)) for each in outcomes if each.part
    ]
    return Ablation(tokenized.tokens, whole.loss, token(whole.next), whole.probability, trials, tokenized.left_out)


class Outcome(NamedTuple):
    """What the model computes without a part; `next` is the id of the most likely token."""

    part: Part | None  # None: with all parts
    loss: float
    change: float
    probability: float
    next: int


def ablate(model: GPT, idx: Tensor, layers: Collection[int], logits_at_once: int = _LOGITS_AT_ONCE) -> list[Outcome]:
    """The outcome of the whole model on ids (1, T), then without each part of some layers.

    `logits_at_once` limits how many trials run together: it changes memory and speed only.
    """
    outcomes: list[Outcome] = []
    with inference(model):
        for i, step in enumerate(walk(model, model.embed(idx))):
            if i not in layers:
                continue
            parts, head_masks, mlp_mask = parts_and_masks(i, model.settings.n_head)
            at_once = max(1, logits_at_once // (idx.size(1) * model.settings.vocab_size))
            for first in range(0, len(parts), at_once):
                batch = slice(first, first + at_once)
                # The whole model runs in the same batch, so a change is due to the part and not to rounding.
                masks = (torch.cat([torch.ones_like(mask[:1]), mask[batch]]) for mask in (head_masks, mlp_mask))
                loss, probabilities = _evaluate(logits_without(model, step, i, *masks), idx)
                usual = int(probabilities[0].argmax())
                if not outcomes:
                    outcomes.append(Outcome(None, loss[0].item(), 0.0, probabilities[0, usual].item(), usual))
                for n, part in enumerate(parts[batch], 1):
                    change, probability = (loss[n] - loss[0]).item(), probabilities[n, usual].item()
                    outcomes.append(Outcome(part, loss[n].item(), change, probability, int(probabilities[n].argmax())))
    return outcomes


def parts_and_masks(layer: int, n_head: int) -> tuple[list[Part], Tensor, Tensor]:
    """The parts of a layer, and per part the masks that ablate it: of the heads (N, H), of the MLP (N,); 0 ablates."""
    heads, mlp = torch.ones(n_head + 3, n_head), torch.ones(n_head + 3)
    heads[:n_head] -= torch.eye(n_head)
    parts = [Part("head", layer, h) for h in range(n_head)]
    parts += [Part("attention", layer), Part("MLP", layer), Part("attention and MLP", layer)]
    heads[n_head], heads[n_head + 2] = 0, 0
    mlp[n_head + 1 :] = 0
    return parts, heads, mlp


def logits_without(model: GPT, step: Layer, layer: int, heads: Tensor, mlp: Tensor) -> Tensor:
    """Logits (N, T, V) of N trials, computed from a layer on with its heads masked by (N, H) and its MLP by (N,).

    A layer without any head has no attention bias either.
    """
    block = step.block
    masked = step.heads * heads[:, :, None, None]  # (N, H, T, D)
    x = step.before + block.attn.output(masked) * heads.any(1)[:, None, None]  # (N, T, C)
    x = x + block.mlp(block.ln_2(x)) * mlp[:, None, None]
    for later in model.transformer.h[layer + 1 :]:
        assert isinstance(later, Block)
        x = later(x)
    return require_finite(model.unembed(model.norm(x)))


def _evaluate(logits: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """Of logits (N, T, V), the losses in nats per token (N,) and the probabilities of the next token (N, V)."""
    targets = idx[:, 1:]
    losses = [next_token_loss(each[None, :-1], targets) / targets.numel() for each in logits]
    return torch.stack(losses), logits[:, -1].softmax(-1)
