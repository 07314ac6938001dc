"""Helper for tests: generate token ids with a model, one at a time."""

from collections.abc import Iterator

import torch

from octavo.generation.engine import Engine, Request
from octavo.generation.sampling import Sampling
from octavo.model import GPT


def generate_ids(
    model: GPT,
    prompt: list[int],
    sampling: Sampling,
    generator: torch.Generator,
    vocab_size: int | None = None,
    overflow: str = "slide",
) -> Iterator[int]:
    """Yield tokens after a prompt, without end unless overflow="stop"."""
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
