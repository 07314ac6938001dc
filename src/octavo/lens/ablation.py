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
from octavo.lens.capture import LayerActivations, inference, require_finite, walk
from octavo.lens.contributions import Part
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.loss import next_token_loss
from octavo.model import GPT, Block
from octavo.runs import RunLike

_MAX_TOKENS = 256  # because the rest of the model runs again for every part
_LOGITS_AT_ONCE = 1 << 25  # limits the memory of trials that run together


@dataclass(frozen=True)
class Trial:
    """The effect of ablating one part on the loss of the text and on the next token."""

    part: Part
    loss: float
    change: float
    probability: float  # without the part, of the token that is most likely with all parts
    next: Token  # the most likely token without the part


@dataclass(frozen=True, eq=False)
class Ablation(View):
    """A text's `loss` and most likely `next` token with all parts, and `trials`, one for each part that is ablated."""

    caveat: ClassVar[str] = (
        "A part is ablated by adding nothing (zero ablation). Other parts were trained to rely on it, so a loss that "
        "rises shows that it was used, and one that does not can mean that other parts replace it."
    )

    tokens: list[Token]
    loss: float
    next: Token
    probability: float
    trials: list[Trial]
    left_out: int  # tokens at the end of the text that did not fit

    def tables(self) -> list[Table]:
        trials = sorted(self.trials, key=lambda trial: -trial.change)
        rows = [(str(each.part), each.loss, each.change, each.next.label, each.probability) for each in trials]
        title = f"loss {self.loss:.4f} nats per token; next: {self.next.label}, {self.probability:.3f}"
        return [Table(title, ("without", "loss", "change", "next", f"probability of {self.next.label}"), rows)]


def ablation(run: RunLike, text: Text = None, *, layer: int | None = None, unknown: str = "error") -> Ablation:
    """The loss and the next token without each head, each attention, each MLP and each layer, one at a time.

    With `layer`, only the parts of that layer are ablated. Takes the first 256 tokens of a text. Raises `OctavoError`
    for a text of one token, which has no loss.
    """
    loaded = runs.load(run)
    model, n_layer = loaded.model, loaded.model.settings.n_layer
    tokenized = tokenize(loaded, text, unknown, limit=min(_MAX_TOKENS, model.settings.block_size))
    if len(tokenized.tokens) < 2:
        raise OctavoError("the text is one token: there is nothing to predict, so it has no loss", "a longer text")
    layers = range(n_layer) if layer is None else [resolve_index(layer, n_layer, "layer")]
    outcomes = ablate(model, tokenized.ids, layers)
    baseline = outcomes[0]

    def token(id: int) -> Token:
        return make_token(loaded.tokenizer, id)

    trials = [
        Trial(each.part, each.loss, each.change, each.probability, token(each.next)) for each in outcomes if each.part
    ]
    return Ablation(
        tokenized.tokens, baseline.loss, token(baseline.next), baseline.probability, trials, tokenized.left_out
    )


class Outcome(NamedTuple):
    """A `Trial` with `next` as a token id; or, if `part` is None, the same numbers with all parts."""

    part: Part | None
    loss: float
    change: float
    probability: float
    next: int


def ablate(model: GPT, idx: Tensor, layers: Collection[int], logits_at_once: int = _LOGITS_AT_ONCE) -> list[Outcome]:
    """The outcome with all parts on ids (1, T), then the outcome without each part of `layers`.

    `logits_at_once` limits how many trials run together: it changes memory and speed only.
    """
    outcomes: list[Outcome] = []
    with inference(model):
        for i, activations in enumerate(walk(model, model.embed(idx))):
            if i not in layers:
                continue
            parts, head_masks, mlp_mask = parts_and_masks(i, model.settings.n_head)
            at_once = max(1, logits_at_once // (idx.size(1) * model.settings.vocab_size))
            for start in range(0, len(parts), at_once):
                batch = slice(start, start + at_once)
                # Row 0 has all parts. It runs in the same batch, so a change is due to the part and not to rounding.
                masks = (torch.cat([torch.ones_like(mask[:1]), mask[batch]]) for mask in (head_masks, mlp_mask))
                loss, probabilities = _evaluate(logits_without(model, activations, i, *masks), idx)
                baseline_id = int(probabilities[0].argmax())
                if not outcomes:
                    probability = probabilities[0, baseline_id].item()
                    outcomes.append(Outcome(None, loss[0].item(), 0.0, probability, baseline_id))
                for n, part in enumerate(parts[batch], 1):
                    change, probability = (loss[n] - loss[0]).item(), probabilities[n, baseline_id].item()
                    outcomes.append(Outcome(part, loss[n].item(), change, probability, int(probabilities[n].argmax())))
    return outcomes


def parts_and_masks(layer: int, n_head: int) -> tuple[list[Part], Tensor, Tensor]:
    """The N parts of a layer, and the masks that ablate each: head masks (N, H) and MLP masks (N,), where 0 ablates."""
    heads, mlp = torch.ones(n_head + 3, n_head), torch.ones(n_head + 3)
    heads[:n_head] -= torch.eye(n_head)
    parts = [Part("head", layer, h) for h in range(n_head)]
    parts += [Part("attention", layer), Part("MLP", layer), Part("attention and MLP", layer)]
    heads[n_head], heads[n_head + 2] = 0, 0
    mlp[n_head + 1 :] = 0
    return parts, heads, mlp


def logits_without(model: GPT, activations: LayerActivations, layer: int, heads: Tensor, mlp: Tensor) -> Tensor:
    """Logits (N, T, V) of N trials, which run the model from `layer` on, with masks of its heads (N, H) and MLP (N,).

    A trial that masks all heads also drops the bias of the output projection: the attention then adds nothing.
    """
    block = activations.block
    masked = activations.heads * heads[:, :, None, None]  # (N, H, T, D)
    x = activations.before + block.attn.output(masked) * heads.any(1)[:, None, None]  # (N, T, C)
    x = x + block.mlp(block.ln_2(x)) * mlp[:, None, None]
    for later in model.transformer.h[layer + 1 :]:
        assert isinstance(later, Block)
        x = later(x)
    return require_finite(model.unembed(model.norm(x)))


def _evaluate(logits: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (N,) in nats per token and the probabilities (N, V) of the next token, from logits (N, T, V)."""
    targets = idx[:, 1:]
    losses = [next_token_loss(each[None, :-1], targets) / targets.numel() for each in logits]
    return torch.stack(losses), logits[:, -1].softmax(-1)
