"""Time a training step with all of `octavo.kernels`, and with one of its replacements switched off at a time.

    python bench/kernels.py [--presets quick tiny] [--variants default autograd ...] [--steps 60] [--rounds 3] [--json]
                            [--cpu-time]

Each variant runs in its own process, and the variants alternate. Milliseconds per step; the median over the
rounds of each round's median. With `--cpu-time`, the least CPU time of a step in one thread, which depends less on
other programs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F

import machine
from octavo import kernels
from octavo.device import resolve_runtime
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.optimizers import muon
from octavo.training.step import Trainer

VARIANTS = {
    "default": "",
    "freed memory returned to the system": "memory",
    "pages of 4 KB": "pages",
    "Muon in PyTorch": "muon",
    "autograd": "autograd",
    "autograd, PyTorch's fused attention": "autograd attention",
    "float32": "fp32",
    "float32, matmuls in MKL": "fp32 mkl",
    "float32, autograd": "fp32 autograd",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=["quick", "tiny"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--variant", help=argparse.SUPPRESS)  # for the child process: time this variant of one preset
    options = parser.parse_args()
    if options.variant is not None:
        print(step_milliseconds(options.presets[0], options.variant.split(), options.steps, options.cpu_time))
        return 0
    variants = {name: VARIANTS[name] for name in options.variants}
    times: dict[str, dict[str, list[float]]] = {name: {p: [] for p in options.presets} for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            for preset in options.presets:
                command = [sys.executable, __file__, "--presets", preset, "--steps", str(options.steps)]
                command += ["--cpu-time"] if options.cpu_time else []
                process = subprocess.run([*command, "--variant", variant], check=True, capture_output=True, text=True)
                times[name][preset].append(float(process.stdout))
    medians = {name: {p: statistics.median(each) for p, each in row.items()} for name, row in times.items()}
    if options.json:
        print(json.dumps({"machine": machine.describe(), "milliseconds": medians}))
        return 0
    print(machine.summary())
    print(f"{'ms per step':36}" + "".join(f"{preset:>10}" for preset in options.presets))
    for name, row in medians.items():
        print(f"{name:36}" + "".join(f"{row[preset]:10.1f}" for preset in options.presets))
    return 0


def step_milliseconds(preset: str, variant: list[str], steps: int, cpu_time: bool) -> float:
    """The median time of a step on random tokens, or its least CPU time. The variant lists what is switched off."""
    if "attention" in variant:
        del kernels.REPLACEMENTS[F.scaled_dot_product_attention]
    if "pages" in variant:
        os.environ["THP_MEM_ALLOC_ENABLE"] = "0"  # PyTorch reads it at the first allocation
    if "memory" in variant:
        kernels.keep_freed_memory = lambda: None
    if "mkl" in variant:
        kernels.replacements.is_onednn_exact = lambda: False
    if "muon" in variant:
        muon.kernels.is_newton_schulz_supported = muon.kernels.is_elementwise_supported = lambda *arguments: False
    if "autograd" in variant:
        os.environ["OCTAVO_NATIVE"] = "0"
    settings = resolve(preset, vocab_size=65, **({"precision": "fp32"} if "fp32" in variant else {}))
    trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, resolve_runtime(settings))
    batch = np.random.default_rng(0).integers(0, 65, (settings.batch_size, settings.block_size + 1))
    if cpu_time:
        torch.set_num_threads(1)
        trainer.threads = None
    clock, times = time.thread_time if cpu_time else time.perf_counter, []
    for step in range(steps + 10):
        start = clock()
        trainer.update(batch)
        if step >= 10:  # the first are warm-up
            times.append(clock() - start)
    return 1000 * (min if cpu_time else statistics.median)(times)


if __name__ == "__main__":
    sys.exit(main())
