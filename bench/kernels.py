"""What each of the faster ways of `octavo.kernels` gives a training step here: as it is, and without one of them.

    python bench/kernels.py [--presets quick tiny] [--steps 60] [--rounds 3] [--json]

Each variant is timed in a process of its own, in turn; milliseconds of an update, medians of the rounds' medians.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

from octavo import kernels
from octavo.device import resolve_runtime
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.step import Trainer

VARIANTS = {
    "as it is": "",
    "PyTorch's fused attention": "attention",
    "memory given back to the system": "memory",
    "float32": "fp32",
    "float32, products by MKL": "fp32 mkl",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "tiny"])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # time this variant of the one preset, here
    options = parser.parse_args()
    if options.one is not None:
        print(update_milliseconds(options.presets[0], options.one.split(), options.steps))
        return 0
    times: dict[str, dict[str, list[float]]] = {name: {p: [] for p in options.presets} for name in VARIANTS}
    for _ in range(options.rounds):
        for name, without in VARIANTS.items():
            for preset in options.presets:
                words = [sys.executable, __file__, "--presets", preset, "--steps", str(options.steps), "--one", without]
                ran = subprocess.run(words, check=True, capture_output=True, text=True)
                times[name][preset].append(float(ran.stdout))
    medians = {name: {p: statistics.median(each) for p, each in row.items()} for name, row in times.items()}
    if options.json:
        print(json.dumps(medians))
        return 0
    print(f"{'ms a step':34}" + "".join(f"{preset:>10}" for preset in options.presets))
    for name, row in medians.items():
        print(f"{name:34}" + "".join(f"{row[preset]:10.1f}" for preset in options.presets))
    return 0


def update_milliseconds(preset: str, without: list[str], steps: int) -> float:
    """The median of updates on random tokens, without some of the faster ways."""
    if "attention" in without:
        del kernels.REPLACEMENTS[F.scaled_dot_product_attention]
    if "memory" in without:
        kernels.keep_freed_memory = lambda: None
    if "mkl" in without:
        kernels.is_onednn_exact = lambda: False
    settings = resolve(preset, vocab_size=65, **({"precision": "fp32"} if "fp32" in without else {}))
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, resolve_runtime(settings))
    batch = np.random.default_rng(0).integers(0, 65, (settings.batch_size, settings.block_size + 1))
    times = []
    for step in range(steps + 10):
        start = time.perf_counter()
        trainer.update(batch)
        if step >= 10:  # the first are warm-up
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
