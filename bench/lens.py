"""What the lens takes: 512 tokens through the notes' model (12 layers, 12 heads, 768 wide, 50,257 tokens), untrained.

    python bench/lens.py [--rounds 5]

Each view is timed `rounds` times in this process, on what is loaded already; the median is shown beside its ceiling.
The logit lens's peak of memory is shown beside what all layers' logits together would take.
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

import octavo
from octavo import checkpoint, lens, tokenizers
from octavo.checkpoint import Checkpoint
from octavo.model import GPT
from octavo.settings import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    settings = resolve("gpt2-512", vocab_size=50257)
    tokenizer = tokenizers.build("byte", "")
    big = Checkpoint(GPT(settings, torch.Generator().manual_seed(0)).eval(), tokenizer, settings, {}, Path())
    text = np.random.default_rng(0).integers(0, 256, 512).tolist()
    with tempfile.TemporaryDirectory() as folder:
        small = resolve("tiny", vocab_size=256, tokenizer="byte")
        tiny = Path(folder) / "tiny"
        checkpoint.save(tiny, GPT(small, torch.Generator().manual_seed(0)), tokenizer, small, {})
        show("shapes of the preset", 10, rounds, lambda: lens.shapes(settings))
        show("attention, 512 tokens, one head", 1, rounds, lambda: lens.attention(big, text, layer=11, head=3))
        show("a prediction after 512 tokens", None, rounds, lambda: lens.next_token(big, text))
        before = peak()
        show("logit lens, 512 tokens, 12 layers", 2, rounds, lambda: lens.logit_lens(big, text))
        held = peak() - before
        show("residual at the last of 512 tokens", None, rounds, lambda: lens.contributions(big, text))
        show("verify, tiny", 30, rounds, lambda: lens.verify(octavo.load(tiny)))
    whole = 4 * 13 * 512 * settings.vocab_size
    print(
        f"the logit lens took {held / 1e6:,.0f} MB more than was held before; all layers' logits are {whole / 1e6:,.0f}"
    )


def show(what: str, ceiling: float | None, rounds: int, view: Callable[[], object]) -> None:
    view()  # the first call makes what is made once
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        view()
        seconds.append(time.perf_counter() - start)
    below = (
        ""
        if ceiling is None
        else f"   ceiling {ceiling} s: {'met' if statistics.median(seconds) < ceiling else 'MISSED'}"
    )
    print(f"{what:36} {statistics.median(seconds):7.3f} s{below}", flush=True)


def peak() -> int:
    """The most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
