"""Choosing the next token: values in, an id out. Nothing here knows of models, caches or text.

The axis letters: `B` rows, `V` the vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from octavo.errors import OctavoError

_SORTED = 1024  # the likeliest tokens, among which a nucleus is sought before all are sorted


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. The defaults are nanoGPT's; each of the rest, at its default, changes nothing."""

    temperature: float = 0.8  # 0: always the likeliest
    top_k: int = 200  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0  # at least this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1: what stands in the prompt or was written comes less
    presence_penalty: float = 0.0  # taken from the logit of what was written
    frequency_penalty: float = 0.0  # the same, for each time that it was
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these ids

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise OctavoError(f"temperature={self.temperature} is not between 0 and 100", "--temperature 0.8")
        if self.top_k < 0:
            raise OctavoError(f"top_k={self.top_k} is not a count of tokens", "--top-k 200, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise OctavoError(f"top_p={self.top_p} is not above 0 and at most 1", "--top-p 0.95")
        if not 0 <= self.min_p <= 1:
            raise OctavoError(f"min_p={self.min_p} is not between 0 and 1", "--min-p 0.05")
        if not 0.01 <= self.repetition_penalty <= 100:
            raise OctavoError(f"repetition_penalty={self.repetition_penalty} is not between 0.01 and 100",
                              "--repetition-penalty 1.1")  # fmt: skip
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                raise OctavoError(f"{name}={getattr(self, name)} is not between -2 and 2",
                                  f"--{name.replace('_', '-')} 0.5")  # fmt: skip
        for id, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise OctavoError(f"the logit_bias {bias} of token {id} is not between -100 and 100", f"{id}: 5")

    @property
    def remembers(self) -> bool:
        """Whether a draw depends on the tokens before it."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None,
               prompt: Tensor | None = None, written: Tensor | None = None) -> Tensor:  # fmt: skip
    """Ids (B,) drawn from logits (B, V).

    `prompt` and `written` count, (V,) or (B, V), how often each token came so far; what remembers needs them.
    Raises `OctavoError` if a logit is not a number: the weights are broken, and any token would be a lie.
    """
    logits = adjusted(logits, sampling, prompt, written)
    if sampling.temperature < 1e-6:  # 0, or so little above that float32 would overflow
        return logits.argmax(-1)
    return drawn(probabilities(logits, sampling), generator)


def adjusted(logits: Tensor, sampling: Sampling, prompt: Tensor | None = None,
             written: Tensor | None = None) -> Tensor:  # fmt: skip
    """Logits (B, V) in float32 with penalties and bias.

    The repetition penalty divides, towards less likely, the logits of all that was seen (Keskar et al., "CTRL",
    2019, 4.1); presence and frequency penalties are subtracted for what was written, as OpenAI's API has them.
    """
    logits = logits.float()
    if not math.isfinite(logits.sum(dtype=torch.float64)):  # which one that isn't finite makes so too
        raise OctavoError("the model's logits are not finite: its weights are broken", "an earlier checkpoint")
    if sampling.remembers:
        assert prompt is not None
        assert written is not None
        if sampling.repetition_penalty != 1:
            less = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
            logits = torch.where((prompt + written) > 0, less, logits)
        logits = logits - sampling.presence_penalty * (written > 0) - sampling.frequency_penalty * written
    if sampling.logit_bias:
        ids = [id for id in sampling.logit_bias if 0 <= id < logits.size(-1)]
        logits = logits.clone()
        logits[:, ids] += logits.new_tensor([sampling.logit_bias[id] for id in ids])
    return logits


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What each token is drawn with, (B, V): temperature, top-k, min-p, then top-p (Holtzman et al., 2020)."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    chances = logits.softmax(-1)
    if sampling.min_p > 0:  # Nguyen et al., "Turning Up the Heat", 2024
        chances = chances.masked_fill(chances < sampling.min_p * chances.amax(-1, keepdim=True), 0.0)
        chances = chances / chances.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        chances = torch.stack([_nucleus(row, sampling.top_p) for row in chances])
    return chances


def drawn(chances: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Ids (B,) by their chances (B, V): `torch.multinomial`'s, number for number, at a fifth of its time.

    Every token runs for an exponentially distributed time divided by its chance, and the first to arrive is drawn.
    The random bits of all are taken, as PyTorch does; but only those that may be drawn need a time made of them.
    """
    flat = chances.flatten()  # (B * V,)
    bits = torch.empty(len(flat), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    may = flat.nonzero().squeeze(-1)
    uniform = (bits[may] & (2**53 - 1)).double() * 2.0**-53
    speeds = torch.zeros_like(flat)
    speeds[may] = flat[may] / torch.log1p(-uniform).neg().to(flat.dtype)
    return speeds.view_as(chances).argmax(-1)


def _nucleus(chances: Tensor, top_p: float) -> Tensor:
    """Chances (V,), of which only the likeliest stay, until they make up `top_p`.

    By numpy: its partition and sort of 50,257 numbers take 30 and 90 us, PyTorch's topk and sort 350 and 4,000.
    """
    values = chances.numpy()
    ordered = np.sort(np.partition(values, -_SORTED)[-_SORTED:] if len(values) > _SORTED else values)[::-1]
    if ordered.sum(dtype=np.float64) < top_p:
        ordered = np.sort(values)[::-1]
    before = np.cumsum(ordered, dtype=np.float64) - ordered
    count = int((before < top_p).sum())  # a token stays while those before it don't reach top_p
    least = ordered[count - 1]
    tied = np.flatnonzero(values == least)[count - int((values > least).sum()) :]
    kept = chances.masked_fill(chances < float(least), 0.0)
    kept[torch.from_numpy(tied)] = 0.0
    return kept
