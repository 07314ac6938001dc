"""Choosing the next token: values in, an id out. Nothing here knows of models, caches or text.

The axis letters: `B` rows, `V` the vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.errors import OctavoError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn. The defaults are nanoGPT's."""

    temperature: float = 0.8  # 0: always the likeliest
    top_k: int = 200  # 0: all
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise OctavoError(f"temperature={self.temperature} is not between 0 and 100", "--temperature 0.8")
        if self.top_k < 0:
            raise OctavoError(f"top_k={self.top_k} is not a count of tokens", "--top-k 200, or 0 for all")
        if not 0 < self.top_p <= 1:
            raise OctavoError(f"top_p={self.top_p} is not above 0 and at most 1", "--top-p 0.95")


def next_token(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> Tensor:
    """Ids (B,) drawn from logits (B, V): temperature, then top-k, then top-p (Holtzman et al., 2020).

    Raises `OctavoError` if a logit is not a number: the weights are broken, and any token would be a lie.
    """
    logits = logits.float()
    if not bool(torch.isfinite(logits).all()):
        raise OctavoError("the model's logits are not finite: its weights are broken", "an earlier checkpoint")
    if sampling.temperature < 1e-6:  # 0, or so little above that float32 would overflow
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        least = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # a token stays while those before it don't reach top_p
        probabilities = probabilities.scatter(-1, order, ordered.masked_fill(before >= sampling.top_p, 0.0))
    return torch.multinomial(probabilities, 1, generator=generator).squeeze(-1)
