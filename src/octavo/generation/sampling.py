"""Sampling: chooses the next token from logits. Independent of models, caches and text.

Axis letters: `B` sequences, `V` vocabulary.
"""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from octavo.errors import NoTokenLeftError, OctavoError
from octavo.kernels.sampling import SamplingKernels, load_sampling_kernels

_TOP_TOKENS = 1024  # the nucleus is searched among this many top tokens before the whole vocabulary is sorted


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is sampled. `temperature` and `top_k` default to nanoGPT's values, all else to "off"."""

    temperature: float = 0.8  # 0: greedy
    top_k: int = 200  # sample from the K most likely tokens; 0: from all
    top_p: float = 1.0  # nucleus sampling: from the smallest set of tokens with total probability P
    min_p: float = 0.0  # drop tokens less likely than P times the top token
    repetition_penalty: float = 1.0  # above 1: tokens of the prompt and the output become less likely
    presence_penalty: float = 0.0  # subtracted from the logits of tokens in the output
    frequency_penalty: float = 0.0  # the same, times how often the token occurs in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # added to the logits of these ids
    allowed_token_ids: Collection[int] | None = None  # sample from these ids only; None: from all

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise OctavoError(f"temperature={self.temperature} is not between 0 and 100", "--temperature 0.8")
        if self.top_k < 0:
            raise OctavoError(f"top_k={self.top_k} is negative", "--top-k 200, or 0 for all tokens")
        if not 0 < self.top_p <= 1:
            raise OctavoError(f"top_p={self.top_p} is not above 0 and at most 1", "--top-p 0.95")
        if not 0 <= self.min_p <= 1:
            raise OctavoError(f"min_p={self.min_p} is not between 0 and 1", "--min-p 0.05")
        if not 0.01 <= self.repetition_penalty <= 100:
            message = f"repetition_penalty={self.repetition_penalty} is not between 0.01 and 100"
            raise OctavoError(message, "--repetition-penalty 1.1")
        for name in ("presence_penalty", "frequency_penalty"):
            if not -2 <= getattr(self, name) <= 2:
                flag = f"--{name.replace('_', '-')} 0.5"
                raise OctavoError(f"{name}={getattr(self, name)} is not between -2 and 2", flag)
        for id, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise OctavoError(f"the logit_bias {bias} of token {id} is not between -100 and 100", f"{id}: 5")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise OctavoError("allowed_token_ids has no token", "at least one token id, or None for all")

    @property
    def has_penalties(self) -> bool:
        """Whether sampling depends on the tokens so far."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is taken: the temperature is 0, or dividing by it would overflow float32."""
        return self.temperature < 1e-6

    @functools.cached_property
    def allowed(self) -> Tensor | None:
        """`allowed_token_ids` as a sorted tensor."""
        if self.allowed_token_ids is None:
            return None
        return torch.tensor(sorted(set(self.allowed_token_ids)), device="cpu")


def sample_token(
    logits: Tensor,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    prompt_counts: Tensor | None = None,
    output_counts: Tensor | None = None,
    excluded_ids: Collection[int] = (),
) -> Tensor:
    """Sample ids (B,) from logits (B, V), but none of `excluded_ids`.

    The counts, (V,) or (B, V), say how often each token occurs in the prompt and the output; penalties need them.
    Raises `OctavoError` if a logit is not finite: the weights are broken, and any token would be meaningless.
    Raises `NoTokenLeftError` if every token is excluded.
    """
    logits = apply_penalties(logits, sampling, prompt_counts, output_counts)
    if sampling.allowed is not None or excluded_ids:
        logits = exclude_tokens(logits, sampling.allowed, excluded_ids)
    if sampling.is_greedy:
        return torch.from_numpy(logits.numpy().argmax(-1))  # in a fifth of the time of PyTorch's
    kernels = load_sampling_kernels()
    if kernels is None and not 0 < sampling.top_k < logits.size(-1):
        return sample_multinomial(probabilities(logits, sampling), generator)
    ids = [_sample_row(row, sampling, generator, kernels) for row in logits.unbind()]
    return torch.from_numpy(np.array(ids, np.int64))  # a third of the time of `torch.tensor`


def _sample_row(
    logits: Tensor, sampling: Sampling, generator: torch.Generator | None, kernels: SamplingKernels | None
) -> int:
    """Sample one id from logits (V,).

    The same id as `sample_multinomial(probabilities(...))` in less time: all steps after the first handle only the
    `top_k` largest logits. `kernels` are None, or have the two functions below in C.
    """
    V = len(logits)
    if 0 < sampling.top_k < V:
        select = top_tokens if kernels is None else kernels.top_tokens
        ids, values = select(logits, sampling.temperature, sampling.top_k)  # (K,)
    else:
        ids, values = None, logits / sampling.temperature
    probs = _distribution(values[None], sampling)[0]
    winner = None if kernels is None else kernels.run_race(probs, generator, V, ids)
    if winner is None:
        winner = run_race(probs, generator, V, ids)
    return winner if ids is None else int(ids[winner])


def top_tokens(logits: Tensor, temperature: float, k: int) -> tuple[np.ndarray, Tensor]:
    """The ids, ascending, and the values of the k largest of logits (V,) after division by the temperature.

    More than k if several are equal to the last of them. numpy's partition takes a third of the time of PyTorch's topk.
    """
    values = (logits / temperature).numpy()
    ids = np.flatnonzero(values >= np.partition(values, -k)[-k])
    return ids, torch.from_numpy(values[ids])


def run_race(probs: Tensor, generator: torch.Generator | None, V: int, ids: np.ndarray | None) -> int:
    """Draw random bits for V tokens. Return the index of the token that wins an exponential race.

    The probabilities (K,) are those of the tokens `ids`, or of all if that is None.
    """
    bits = random_bits(V, generator)
    return int(_winners(probs[None], bits if ids is None else bits[ids])[0])


def apply_penalties(
    logits: Tensor,
    sampling: Sampling,
    prompt_counts: Tensor | None = None,
    output_counts: Tensor | None = None,
) -> Tensor:
    """Logits (B, V) in float32 with penalties and logit bias.

    The repetition penalty makes every token of the prompt and the output less likely (Keskar et al., "CTRL", 2019,
    4.1). Presence and frequency penalties count the output only, as in OpenAI's API.
    """
    logits = logits.float()
    if not np.isfinite(logits.numpy()).all():
        raise OctavoError("the model's logits are not finite: its weights are broken", "an earlier checkpoint")
    if sampling.has_penalties:
        assert prompt_counts is not None
        assert output_counts is not None
        if sampling.repetition_penalty != 1:
            penalty = np.float32(sampling.repetition_penalty)
            is_seen = np.logical_or(prompt_counts.numpy(), output_counts.numpy())  # (V,) or (B, V)
            seen = np.flatnonzero(np.broadcast_to(is_seen, logits.shape))
            values = logits.numpy().flatten()  # a copy
            before = values[seen]
            with np.errstate(over="ignore"):
                values[seen] = np.where(before > 0, before / penalty, before * penalty)
            logits = torch.from_numpy(values).view_as(logits)
        if sampling.presence_penalty or sampling.frequency_penalty:
            penalty_of_output = sampling.presence_penalty * (output_counts > 0)
            logits = (logits - penalty_of_output - sampling.frequency_penalty * output_counts).float()
    if sampling.logit_bias:
        ids = [id for id in sampling.logit_bias if 0 <= id < logits.size(-1)]
        logits = logits.clone()
        logits[:, ids] += logits.new_tensor([sampling.logit_bias[id] for id in ids])
    return logits


def exclude_tokens(logits: Tensor, allowed: Tensor | None, excluded_ids: Collection[int]) -> Tensor:
    """Logits (B, V) with -inf for `excluded_ids`, and for all tokens outside `allowed`, unless that is None."""
    V = logits.size(-1)
    is_excluded = torch.full((V,), allowed is not None, device="cpu")
    if allowed is not None:
        is_excluded[allowed] = False
    is_excluded[[id for id in excluded_ids if 0 <= id < V]] = True
    if is_excluded.all():
        raise NoTokenLeftError(
            "no token is left to sample", "more allowed_token_ids, fewer bad_words, or a smaller min_tokens"
        )
    return logits.masked_fill(is_excluded, -torch.inf)


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, V) to sample from: temperature, top-k, min-p, then top-p (Holtzman et al., 2020)."""
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.size(-1):
        threshold = logits.topk(sampling.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    return _distribution(logits, sampling)


def _distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """The distribution (B, V) of logits after temperature and top-k: softmax, min-p, then top-p."""
    probs = logits.softmax(-1)
    if sampling.min_p > 0:  # Nguyen et al., "Turning Up the Heat", 2024
        probs = probs.masked_fill(probs < sampling.min_p * probs.amax(-1, keepdim=True), 0.0)
        probs = probs / probs.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        probs = torch.from_numpy(np.stack([_keep_nucleus(row, sampling.top_p) for row in probs.numpy()]))
    return probs


def sample_multinomial(probs: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Sample ids (B,) from probabilities (B, V): the same ids as `torch.multinomial`, in a fifth of its time.

    Both divide each probability by an exponentially distributed random number and take the largest quotient (an
    exponential race). Both draw random bits for every token. Here only the bits of tokens with a probability above 0
    are converted to exponential numbers, because the conversion takes most of the time.
    """
    return torch.from_numpy(_winners(probs, random_bits(probs.numel(), generator)))


def random_bits(count: int, generator: torch.Generator | None = None) -> Tensor:
    """64 random bits for each of `count` tokens, as int64."""
    return torch.empty(count, dtype=torch.int64, device="cpu").random_(-(2**63), None, generator=generator)


def _winners(probs: Tensor, bits: Tensor) -> np.ndarray:
    """The ids (B,) that win an exponential race with these probabilities and random bits (B, V).

    In numpy, whose small operations take half the time of PyTorch's.
    """
    flat = probs.numpy().reshape(-1)  # (B * V,)
    possible = np.flatnonzero(flat)
    uniform = (bits.numpy().reshape(-1)[possible] & (2**53 - 1)) * 2.0**-53
    exponential = -np.log1p(-uniform)
    quotients = np.zeros_like(flat)
    with np.errstate(divide="ignore"):  # a random number can be 0
        quotients[possible] = flat[possible] / exponential.astype(flat.dtype)
    ids: np.ndarray = quotients.reshape(probs.shape).argmax(-1)
    return ids


def _keep_nucleus(probs: np.ndarray, top_p: float) -> np.ndarray:
    """Probabilities (V,) in which all but the smallest set of top tokens that reaches `top_p` are 0.

    In numpy: its partition and sort of 50,257 numbers take 30 and 90 us, PyTorch's topk and sort 350 and 4,000.
    """
    ordered = np.sort(np.partition(probs, -_TOP_TOKENS)[-_TOP_TOKENS:] if len(probs) > _TOP_TOKENS else probs)[::-1]
    if len(ordered) < len(probs) and ordered.sum(dtype=np.float64) < top_p:
        ordered = np.sort(probs)[::-1]
    before = np.cumsum(ordered, dtype=np.float64) - ordered
    count = np.count_nonzero(before < top_p)  # a token is kept if the tokens before it don't reach top_p
    smallest = ordered[count - 1]
    kept = np.where(probs < smallest, 0, probs)
    surplus = np.flatnonzero(probs == smallest)[count - np.count_nonzero(probs > smallest) :]  # ties beyond `count`
    kept[surplus] = 0
    return kept
