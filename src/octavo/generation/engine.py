"""Ids in, ids out: running the model one token at a time on a KV cache."""

from collections.abc import Iterator

import torch

from octavo.generation.sampling import Sampling, next_token
from octavo.model import GPT, KVCache


@torch.inference_mode()
def generate_ids(model: GPT, prompt: list[int], sampling: Sampling, generator: torch.Generator,
                 known: int | None = None) -> Iterator[int]:  # fmt: skip
    """Draw tokens after a prompt of at least one, without end: whoever asks stops.

    Only ids below `known` are drawn: a vocabulary may have rows to spare, which stand for no token.
    Past `block_size` the window slides as nanoGPT's does: the last `block_size` tokens are run afresh for
    each new one, since every token's position, and with it all that was cached, has changed.
    """
    block_size = model.settings.block_size
    device = model.lm_head.weight.device
    vocab_size = known or model.settings.vocab_size
    seen = written = None
    if sampling.remembers:
        within = torch.tensor([id for id in prompt if id < vocab_size], dtype=torch.long)
        seen, written = torch.bincount(within, minlength=vocab_size), torch.zeros(vocab_size, dtype=torch.long)
    ids = prompt[-block_size:]
    cache = KVCache(model)
    unseen = ids
    while True:
        if len(unseen) + cache.length > block_size:
            cache, unseen = KVCache(model), ids
        hidden = model.hidden(torch.tensor([unseen], device=device), cache)  # (1, T, C)
        logits = model.unembed(hidden[:, -1])[:, :known]  # (1, V)
        token = int(next_token(logits.cpu(), sampling, generator, seen, written))
        yield token
        if written is not None:
            written[token] += 1
        ids = [*ids, token][-block_size:]
        unseen = [token]
