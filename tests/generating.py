"""Helpers for tests of generation: models with random weights, requests, and functions that run an engine."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from octavo.generation.decoder import Batch, Decoder
from octavo.generation.engine import OVERFLOW, Engine, Job, Request
from octavo.generation.sampling import Sampling
from octavo.model import GPT
from octavo.settings import ModelSettings

GREEDY, FULL_SOFTMAX = Sampling(temperature=0), Sampling(temperature=1, top_k=0)
# The C code handles 16 columns and 16 outputs at a time: widths that are multiples of 16, and widths that are not.
SHAPES: dict[str, dict[str, Any]] = {
    "small": dict(n_layer=2, n_head=2, n_embd=16, block_size=24, vocab_size=11),
    "odd": dict(n_layer=2, n_head=3, n_embd=39, block_size=21, vocab_size=37),
    "wide heads": dict(n_layer=1, n_head=2, n_embd=100, block_size=40, vocab_size=16),
    "even": dict(n_layer=2, n_head=2, n_embd=64, block_size=64, vocab_size=64),
    "parts of tiles": dict(n_layer=1, n_head=3, n_embd=192, block_size=40, vocab_size=53),
    "no bias": dict(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=20, bias=False),
    "exact GELU": dict(n_layer=1, n_head=1, n_embd=48, block_size=16, vocab_size=20, activation="gelu"),
}


def random_model(seed: int = 9, **shape: Any) -> GPT:
    """A small model with weights so large that its tokens depend on the whole context."""
    model = GPT(ModelSettings(**SHAPES["small"] | shape)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        std = 3 * parameter.size(-1) ** -0.5 if parameter.dim() == 2 and "wte" not in name else 0.2
        nn.init.normal_(parameter, mean, std, generator=generator)
    return model


def random_ids(count: int, vocab_size: int, seed: int = 0) -> list[int]:
    return torch.randint(vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def decode(decoder: Decoder, ids: list[int], slot: int = 0, cuts: Sequence[int] = ()) -> Tensor:
    """The logits (T, V) of a sequence, computed in chunks that end at `cuts`."""
    ends = [*cuts, len(ids)]
    logits = []
    for start, end in zip([0, *ends], ends, strict=False):
        batch = Batch()
        batch.add(ids[start:end], slot, start, end - start)
        logits.append(decoder.forward(batch))
    return torch.cat(logits)


def make_request(number: int = 0, **fields: Any) -> Request:
    """Request `number` of many that differ in every field."""
    samplings = (
        FULL_SOFTMAX,
        GREEDY,
        Sampling(top_k=3),
        Sampling(top_p=0.7, min_p=0.01),
        Sampling(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2),
    )
    defaults = dict(
        prompt=random_ids(1 + 5 * number % 23, 11, number),
        max_new_tokens=30 + number,
        sampling=samplings[number % 5],
        overflow=OVERFLOW[number % 3],
        generator=torch.Generator().manual_seed(number),
    )
    return Request(**defaults | fields)


def run(engine: Engine, *requests: Request) -> list[Job]:
    """Submit the requests, step until all jobs are over, and return the jobs."""
    jobs = [engine.submit(request) for request in requests]
    while engine.step():
        pass
    return jobs


def token_ids(job: Job) -> list[int]:
    return [token.id for token in job.tokens]


def generate_ids(
    model: GPT,
    prompt: list[int],
    sampling: Sampling,
    generator: torch.Generator,
    vocab_size: int | None = None,
    overflow: str = "slide",
) -> Iterator[int]:
    """Yield the ids of generated tokens, without end unless overflow="stop"."""
    engine = Engine(model, 1, vocab_size=vocab_size)
    job = engine.submit(
        Request(prompt=prompt, max_new_tokens=1 << 62, sampling=sampling, generator=generator, overflow=overflow)
    )
    count = 0
    while engine.step():
        if job.error:
            raise job.error
        for token in job.tokens[count:]:
            count += 1
            yield token.id
