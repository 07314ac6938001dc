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
from octavo.lens.capture import LayerActivations, inference, require_finite, run_blocks
from octavo.lens.contributions import Part
from octavo.lens.tokens import Text, Token, make_token, tokenize
from octavo.lens.view import Table, View
from octavo.loss import next_token_loss
from octavo.model import GPT, Block
from octavo.progress import ProgressReporter
from octavo.runs import RunLike

_MAX_TOKENS = 256  # because the rest of the model runs again for every part
_MAX_LOGITS_PER_BATCH = 1 << 25  # limits the memory of the trials of a batch


@dataclass(frozen=True)
class Trial:
    """The loss of the text and the next token without one part. The baseline is the model with all parts."""

    part: Part
    loss: float
    change: float
    probability: float  # of the baseline's most likely token, which is `Ablation.next`
    next: Token  # the most likely token without the part


@dataclass(frozen=True, eq=False)
class Ablation(View):
    """The baseline: a text's `loss` and its most likely `next` token with all parts. `trials` ablate one part each."""

    caveat: ClassVar[str] = (
        "An ablated part adds nothing to the residual stream (zero ablation). Other parts were trained to rely on it, "
        "so a higher loss shows that the part was used. If the loss stays the same, other parts may have replaced it."
    )

    tokens: list[Token]
    loss: float
    next: Token
    probability: float
    trials: list[Trial]
    left_out: int  # how many tokens at the end of the text were truncated

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
        Trial(each.part, each.loss, each.change, each.baseline_token_probability, token(each.next_id))
        for each in outcomes
        if each.part
    ]
    return Ablation(
        tokenized.tokens,
        baseline.loss,
        token(baseline.next_id),
        baseline.baseline_token_probability,
        trials,
        tokenized.left_out,
    )


class Outcome(NamedTuple):
    """The numbers of a `Trial` as `ablate` computes them; `part` is None for the baseline, which ablates nothing."""

    part: Part | None
    loss: float
    change: float
    baseline_token_probability: float
    next_id: int


def ablate(
    model: GPT, idx: Tensor, layers: Collection[int], max_logits_per_batch: int = _MAX_LOGITS_PER_BATCH
) -> list[Outcome]:
    """The outcomes on ids (1, T): first the baseline, then one without each part of `layers`.

    `max_logits_per_batch` limits the number of trials in a batch: it changes memory and speed only.
    """
    outcomes: list[Outcome] = []
    with inference(model):
        report = ProgressReporter("ablating the parts of each layer", model.settings.n_layer, "layers")
        for i, activations in enumerate(run_blocks(model, model.embed(idx))):
            report(i)
            if i not in layers:
                continue
            parts, head_masks, mlp_mask = parts_and_masks(i, model.settings.n_head)
            batch_size = max(1, max_logits_per_batch // (idx.size(1) * model.settings.vocab_size))
            for start in range(0, len(parts), batch_size):
                batch = slice(start, start + batch_size)
                # Row 0 is the baseline. It is added to every batch, so a change is due to the part and not to rounding.
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
    parts = [Part("head", layer, h) for h in range(n_head)]
    parts += [Part("attention", layer), Part("MLP", layer), Part("attention and MLP", layer)]
    attention, mlp, both = n_head, n_head + 1, n_head + 2  # the rows of the last three parts
    head_masks, mlp_mask = torch.ones(n_head + 3, n_head), torch.ones(n_head + 3)
    head_masks[:n_head] -= torch.eye(n_head)
    head_masks[[attention, both]] = 0
    mlp_mask[[mlp, both]] = 0
    return parts, head_masks, mlp_mask


def logits_without(
    model: GPT, activations: LayerActivations, layer: int, head_masks: Tensor, mlp_mask: Tensor
) -> Tensor:
    """Logits (N, T, V) of N trials, which run the model from `layer` on, with masks of its heads (N, H) and MLP (N,).

    A trial that masks all heads also drops the bias of the output projection: the attention then adds nothing.
    """
    block = activations.block
    masked = activations.heads * head_masks[:, :, None, None]  # (N, H, T, D)
    x = activations.resid_pre + block.attn.output(masked) * head_masks.any(1)[:, None, None]  # (N, T, C)
    x = x + block.mlp(block.ln_2(x)) * mlp_mask[:, None, None]
    for later in model.transformer.h[layer + 1 :]:
        assert isinstance(later, Block)
        x = later(x)
    return require_finite(model.unembed(model.norm(x)))


def _evaluate(logits: Tensor, idx: Tensor) -> tuple[Tensor, Tensor]:
    """The losses (N,) in nats per token and the probabilities (N, V) of the next token, from logits (N, T, V)."""
    targets = idx[:, 1:]
    losses = [next_token_loss(each[None, :-1], targets) / targets.numel() for each in logits]
    return torch.stack(losses), logits[:, -1].softmax(-1)
