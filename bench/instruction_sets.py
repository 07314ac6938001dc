"""Compare the C code with PyTorch on instruction sets below this processor's, and with other compilers.

    python bench/instruction_sets.py [--compilers gcc gcc-11 clang] [--sets native AVX2 SSE2] [--rounds 3] [--json]

Each build runs in a separate process, in which the compiler and PyTorch's libraries (ATen, MKL, oneDNN) are limited to
one instruction set. C and PyTorch alternate, with one thread. The figures are ratios of CPU time,
the median over the rounds; above 1, C is faster:

    prefill   256 tokens; 6 layers of GPT-2's width, float32 and int8
    decode    32 tokens after 256, one at a time; the same model
    training  ten steps of `tiny` in bf16, or of `nanogpt-tiny` in float32, against autograd

It is an emulation: a real processor without AVX-512 has other caches and another clock.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import machine
from octavo import fused_step
from octavo.device import resolve_runtime
from octavo.generation.backends import create_decoder
from octavo.generation.decoder import Batch
from octavo.generation.native import NativeDecoder
from octavo.model import GPT
from octavo.settings import resolve
from octavo.training.step import Trainer

# The compiler's flags, and the variables that limit ATen, MKL and oneDNN.
SETS: dict[str, tuple[str, dict[str, str]]] = {
    "native": ("-march=native", {}),
    "AVX2": (
        "-march=haswell",
        {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    ),
    "SSE2": (
        "-march=x86-64",
        {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    ),
}
FIGURES = ("prefill fp32", "decode fp32", "prefill int8", "decode int8", "training bf16", "training fp32")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", nargs="+", default=["cc"], metavar="COMPILER")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES), metavar="FIGURE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps({figure: measure(figure, options.rounds) for figure in options.figures}))
        return 0
    rows = []
    if not options.json:
        print(machine.summary())
        print(f"{'PyTorch / C':16}" + "".join(f"{figure:>15}" for figure in options.figures))
    for compiler in options.compilers:
        for name in options.sets:
            times = measure_build(compiler, name, options.figures, options.rounds)
            rows.append({"compiler": compiler, "instructions": name, "seconds": times})
            if not options.json:
                ratios = [times[figure]["PyTorch"] / times[figure]["C"] for figure in options.figures]
                print(f"{compiler:8}{name:8}" + "".join(f"{ratio:15.2f}" for ratio in ratios), flush=True)
    if options.json:
        print(json.dumps({"machine": machine.describe(), "builds": rows}))
    return 0


def measure_build(compiler: str, name: str, figures: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """The seconds of C and of PyTorch for each figure, in a process with this compiler and instruction set."""
    flags, limits = SETS[name]
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder, "compiler")  # the last -march counts
        wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {flags}\n')
        wrapper.chmod(0o755)
        variables = {
            "CC": str(wrapper),
            "OCTAVO_NATIVE": "native",
            "OCTAVO_CACHE": folder,
            "OMP_NUM_THREADS": "1",
        } | limits
        command = [sys.executable, __file__, "--worker", "--rounds", str(rounds), "--figures", *figures]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    times: dict[str, dict[str, float]] = json.loads(output.stdout)
    return times


def measure(figure: str, rounds: int) -> dict[str, float]:
    """The seconds of C and of PyTorch: the median over the rounds, in which they alternate."""
    what, precision = figure.split()
    sides = training_steps(precision) if what == "training" else decoder_steps(what, precision)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for step in sides.values():
        step()
    for _ in range(rounds):
        for side, step in sides.items():
            start = time.process_time()
            step()
            times[side].append(time.process_time() - start)
    return {side: statistics.median(each) for side, each in times.items()}


def decoder_steps(what: str, precision: str) -> dict[str, Callable[[], object]]:
    """A prefill, or the decoding of 32 tokens, by each decoder."""
    settings = resolve("gpt2", n_layer=6, block_size=512, vocab_size=50257)
    model = GPT(settings, torch.Generator().manual_seed(0)).eval()
    steps: dict[str, Callable[[], object]] = {}
    for side, use_native in (("C", True), ("PyTorch", False)):
        decoder, notices = create_decoder(model, 1, "int8" if precision == "int8" else "none", use_native)
        if isinstance(decoder, NativeDecoder) != use_native:
            raise SystemExit(f"the C code can't be used: {notices}")
        prompt = Batch(list(range(256)), [0] * 256, list(range(256)), [255])
        tokens = [Batch([7], [0], [256 + i], [0]) for i in range(32)]
        decoder.forward(prompt)
        batches = [prompt] if what == "prefill" else tokens
        steps[side] = lambda decoder=decoder, batches=batches: [decoder.forward(batch) for batch in batches]  # type: ignore[misc]
    return steps


def training_steps(precision: str) -> dict[str, Callable[[], object]]:
    """Ten updates on random tokens, with the C code and by autograd."""
    settings = resolve("tiny" if precision == "bf16" else "nanogpt-tiny", vocab_size=65, precision=precision)
    batch = np.random.default_rng(0).integers(0, 65, (settings.batch_size, settings.block_size + 1))
    steps: dict[str, Callable[[], object]] = {}
    for side, in_c in (("C", True), ("PyTorch", False)):
        fused_step.is_faster = lambda in_c=in_c: in_c  # type: ignore[misc]
        trainer = Trainer(GPT(settings, torch.Generator().manual_seed(0)), settings, resolve_runtime(settings))
        steps[side] = lambda trainer=trainer: [trainer.update(batch) for _ in range(10)]  # type: ignore[misc]
    return steps


if __name__ == "__main__":
    sys.exit(main())
