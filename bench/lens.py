"""Time and memory of views: 512 tokens through an untrained model (12 layers, 12 heads, width 768, 50,257 tokens).

    python bench/lens.py [--rounds 5]

Each view is timed `rounds` times in this process, on a loaded model; the median is shown beside its limit. The peak
memory of the logit lens is shown beside the size of all layers' logits.
"""

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import machine
import octavo
from octavo import checkpoint, lens, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.model import GPT
from octavo.settings import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(machine.summary())
    settings = resolve("gpt2-512", vocab_size=50257)
    tokenizer = tokenizers.build("byte", "")
    big = Checkpoint(GPT(settings, torch.Generator().manual_seed(0)).eval(), tokenizer, settings, {}, Path())
    text = np.random.default_rng(0).integers(0, 256, 512).tolist()
    with tempfile.TemporaryDirectory() as folder:
        small = resolve("tiny", vocab_size=257, tokenizer="byte")
        tiny = Path(folder) / "tiny"
        checkpoint.save(tiny, GPT(small, torch.Generator().manual_seed(0)), tokenizer, small, {})
        measure("shapes of the preset", 10, rounds, lambda: lens.shapes(settings))
        measure("attention, 512 tokens, one head", 1, rounds, lambda: lens.attention(big, text, layer=11, head=3))
        measure("next token after 512 tokens", None, rounds, lambda: lens.next_token(big, text))
        before = peak_memory()
        measure("logit lens, 512 tokens, 12 layers", 2, rounds, lambda: lens.logit_lens(big, text))
        lens_memory = peak_memory() - before
        measure("contributions at the last of 512 tokens", None, rounds, lambda: lens.contributions(big, text))
        measure("verify, tiny", 30, rounds, lambda: lens.verify(octavo.load(tiny)))
    all_logits = 4 * 13 * 512 * settings.vocab_size
    print(f"the logit lens took {lens_memory / 1e6:,.0f} MB; all layers' logits are {all_logits / 1e6:,.0f} MB")


def measure(name: str, limit: float | None, rounds: int, view: Callable[[], object]) -> None:
    """Print the median time of a view in seconds, and whether it is below the limit."""
    view()  # warm-up: the first call also builds what is cached
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        view()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    verdict = "" if limit is None else f"   limit {limit} s: {'met' if median < limit else 'MISSED'}"
    print(f"{name:40} {median:7.3f} s{verdict}", flush=True)


def peak_memory() -> int:
    """The peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
